"""OpenAI's Python client through the tunnel, beside the same client without it."""

import asyncio
import os
import sys

# Leave no __pycache__ in the source tree; it has to be said before the next import.
sys.dont_write_bytecode = True

import openai

from standin import DIRECT, ENDLESS, MODEL, SEED, TOKENS, TUNNEL, cancels, compare, has_started, same

MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
CHAT = {"model": MODEL, "messages": MESSAGES, "seed": SEED, "max_tokens": TOKENS}
STREAMED = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
FOREVER = {**CHAT, "max_tokens": ENDLESS}
TEXT = {"model": MODEL, "prompt": "Why?", "seed": SEED, "max_tokens": TOKENS}
EMBED = {"model": MODEL, "input": ["one", "two"]}


def settings(url):
    # A retry would hide what the tunnel broke.
    return {"base_url": f"{url}/v1", "api_key": os.environ.get("ADIT_KEY", "x"), "max_retries": 0, "timeout": 60}


def answers(client):
    return {
        "chat": client.chat.completions.create(**CHAT),
        "chat, streamed": list(client.chat.completions.create(**STREAMED)),
        "completion": client.completions.create(**TEXT),
        "completion, streamed": list(client.completions.create(**TEXT, stream=True)),
        "embeddings": client.embeddings.create(**EMBED),
        "models": list(client.models.list()),
        "unknown model": refusal(client),
    }


def refusal(client):
    try:
        client.chat.completions.create(model="no such model", messages=MESSAGES)
    except openai.NotFoundError as error:
        return error.status_code, error.body
    return "no error"


async def async_answers(client):
    async def parts(stream):
        return [part async for part in await stream]

    return {
        "chat": await client.chat.completions.create(**CHAT),
        "chat, streamed": await parts(client.chat.completions.create(**STREAMED)),
        "embeddings": await client.embeddings.create(**EMBED),
        "models": [model async for model in client.models.list()],
    }


def a_stream_says_what_a_whole_answer_says(kind, given):
    *chunks, usage = given["chat, streamed"]
    text = "".join(chunk.choices[0].delta.content for chunk in chunks)
    same(f"{kind} chat comes token by token", len(chunks), TOKENS + 1)
    same(f"{kind} chat says the same streamed and whole", text, given["chat"].choices[0].message.content)
    same(f"{kind} chat counts its tokens", usage.usage.completion_tokens, TOKENS)


def abort(client):
    with cancels("sync chat, left in the middle"):
        with client.chat.completions.create(**FOREVER, stream=True) as stream:
            for count, _ in enumerate(stream):
                if count == 2:
                    break


async def async_abort(client):
    async def read(seen):
        async for _ in await client.chat.completions.create(**FOREVER, stream=True):
            seen.set()

    with cancels("async chat, cancelled in the middle"):
        seen = asyncio.Event()
        task = asyncio.create_task(read(seen))
        await seen.wait()
        await cancel(task)

    with cancels("async chat, cancelled before its answer") as before:
        task = asyncio.create_task(client.chat.completions.create(**FOREVER))
        await asyncio.to_thread(has_started, before)
        await cancel(task)


async def cancel(task):
    task.cancel()
    results = await asyncio.gather(task, return_exceptions=True)
    same("the task ends cancelled", type(results[0]), asyncio.CancelledError)


async def main():
    with openai.OpenAI(**settings(TUNNEL)) as through, openai.OpenAI(**settings(DIRECT)) as direct:
        given = answers(through)
        compare("sync", given, answers(direct))
        a_stream_says_what_a_whole_answer_says("sync", given)
        abort(through)
        same("sync chat, after the abort", through.chat.completions.create(**CHAT), given["chat"])

    async with openai.AsyncOpenAI(**settings(TUNNEL)) as through, openai.AsyncOpenAI(**settings(DIRECT)) as direct:
        given = await async_answers(through)
        compare("async", given, await async_answers(direct))
        a_stream_says_what_a_whole_answer_says("async", given)
        await async_abort(through)
        same("async chat, after the aborts", await through.chat.completions.create(**CHAT), given["chat"])


asyncio.run(main())
