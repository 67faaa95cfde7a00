"""Ollama's own Python client through the tunnel, beside the same client without it."""

import asyncio
import sys

# Leave no __pycache__ in the source tree; it has to be said before the next import.
sys.dont_write_bytecode = True

import ollama

from standin import DIRECT, ENDLESS, MODEL, SEED, TOKENS, TUNNEL, cancels, compare, has_started, same

PROMPT = "Why is the sky blue?"
MESSAGES = [{"role": "user", "content": PROMPT}]
OPTIONS = {"seed": SEED, "num_predict": TOKENS}
FOREVER = {"seed": SEED, "num_predict": ENDLESS}


def answers(client):
    return {
        "generate": client.generate(MODEL, PROMPT, options=OPTIONS),
        "generate, streamed": list(client.generate(MODEL, PROMPT, options=OPTIONS, stream=True)),
        "chat": client.chat(MODEL, MESSAGES, options=OPTIONS),
        "chat, streamed": list(client.chat(MODEL, MESSAGES, options=OPTIONS, stream=True)),
        "list": client.list(),
        "show": client.show(MODEL),
        "ps": client.ps(),
        "embed": client.embed(MODEL, ["one", "two"]),
        "pull, streamed": list(client.pull(MODEL, stream=True)),
        "unknown model": refusal(client),
    }


def refusal(client):
    try:
        client.generate("no such model", PROMPT)
    except ollama.ResponseError as error:
        return error.status_code, error.error
    return "no error"


async def async_answers(client):
    async def parts(stream):
        return [part async for part in await stream]

    return {
        "generate": await client.generate(MODEL, PROMPT, options=OPTIONS),
        "generate, streamed": await parts(client.generate(MODEL, PROMPT, options=OPTIONS, stream=True)),
        "chat": await client.chat(MODEL, MESSAGES, options=OPTIONS),
        "chat, streamed": await parts(client.chat(MODEL, MESSAGES, options=OPTIONS, stream=True)),
        "list": await client.list(),
        "show": await client.show(MODEL),
        "embed": await client.embed(MODEL, ["one", "two"]),
    }


def streams_say_what_whole_answers_say(kind, given):
    generated = [part.response for part in given["generate, streamed"]]
    said = [part.message.content for part in given["chat, streamed"]]
    for what, parts, whole in [
        ("generate", generated, given["generate"].response),
        ("chat", said, given["chat"].message.content),
    ]:
        same(f"{kind} {what} comes token by token", len(parts), TOKENS + 1)
        same(f"{kind} {what} says the same streamed and whole", "".join(parts), whole)


def abort(client):
    with cancels("sync generate, left in the middle"):
        stream = client.generate(MODEL, PROMPT, options=FOREVER, stream=True)
        for count, _ in enumerate(stream):
            if count == 2:
                break
        stream.close()


async def async_abort(client):
    async def read(seen):
        async for _ in await client.chat(MODEL, MESSAGES, options=FOREVER, stream=True):
            seen.set()

    with cancels("async chat, cancelled in the middle"):
        seen = asyncio.Event()
        task = asyncio.create_task(read(seen))
        await seen.wait()
        await cancel(task)

    with cancels("async generate, cancelled before its answer") as before:
        task = asyncio.create_task(client.generate(MODEL, PROMPT, options=FOREVER))
        await asyncio.to_thread(has_started, before)
        await cancel(task)


async def cancel(task):
    task.cancel()
    results = await asyncio.gather(task, return_exceptions=True)
    same("the task ends cancelled", type(results[0]), asyncio.CancelledError)


async def main():
    with ollama.Client(TUNNEL) as through, ollama.Client(DIRECT) as direct:
        given = answers(through)
        compare("sync", given, answers(direct))
        streams_say_what_whole_answers_say("sync", given)
        abort(through)
        same("sync generate, after the abort", through.generate(MODEL, PROMPT, options=OPTIONS), given["generate"])

    async with ollama.AsyncClient(TUNNEL) as through, ollama.AsyncClient(DIRECT) as direct:
        given = await async_answers(through)
        compare("async", given, await async_answers(direct))
        streams_say_what_whole_answers_say("async", given)
        await async_abort(through)
        same("async list, after the aborts", await through.list(), given["list"])


asyncio.run(main())
