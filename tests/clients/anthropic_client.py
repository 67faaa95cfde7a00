"""Anthropic's Python client with a key, beside the same client straight at the stand-in."""

import os
import sys

# Leave no __pycache__ in the source tree; it has to be said before the next import.
sys.dont_write_bytecode = True

import anthropic

from standin import DIRECT, ENDLESS, MODEL, TOKENS, TUNNEL, cancels, compare, same

MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
ASK = {"model": MODEL, "messages": MESSAGES, "max_tokens": TOKENS}


def settings(url):
    # A retry would hide what the way broke.
    return {"base_url": url, "api_key": os.environ.get("ADIT_KEY", "x"), "max_retries": 0, "timeout": 60}


def answers(client):
    with client.messages.stream(**ASK) as stream:
        said = list(stream.text_stream)
        final = stream.get_final_message()
    return {
        "message": client.messages.create(**ASK),
        "message, streamed": list(client.messages.create(**ASK, stream=True)),
        "message, read as text": (said, final),
        "unknown model": refusal(client),
    }


def refusal(client):
    try:
        client.messages.create(model="no such model", messages=MESSAGES, max_tokens=TOKENS)
    except anthropic.NotFoundError as error:
        return error.status_code, error.body
    return "no error"


def main():
    with anthropic.Anthropic(**settings(TUNNEL)) as through, anthropic.Anthropic(**settings(DIRECT)) as direct:
        given = answers(through)
        compare("sync", given, answers(direct))
        said, final = given["message, read as text"]
        same("the message comes token by token", len(said), TOKENS)
        same("the message says the same streamed and whole", "".join(said), given["message"].content[0].text)
        same("the message counts its tokens", final.usage.output_tokens, TOKENS)
        with cancels("message, left in the middle"):
            with through.messages.create(**{**ASK, "max_tokens": ENDLESS}, stream=True) as stream:
                for count, _ in enumerate(stream):
                    if count == 4:
                        break
        same("message, after the abort", through.messages.create(**ASK), given["message"])


main()
