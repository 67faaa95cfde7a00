"""A Python SDK whose key is revoked in the middle of an answer. The argument is the name of its package.

Writes `begun` when a part of an answer without an end has come, and `cut` when the SDK reports that the answer is
broken. Then asks once more, and fails unless the key is refused.
"""

import os
import sys

# Leave no __pycache__ in the source tree; it has to be said before the next import.
sys.dont_write_bytecode = True

from standin import ENDLESS, MODEL, TOKENS, TUNNEL, same

KEY = os.environ["ADIT_KEY"]
MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
# A retry would hide the cut.
SETTINGS = {"api_key": KEY, "max_retries": 0, "timeout": 60}


def with_openai():
    import openai

    client = openai.OpenAI(base_url=f"{TUNNEL}/v1", **SETTINGS)
    create = client.chat.completions.create
    return lambda tokens: create(model=MODEL, messages=MESSAGES, max_tokens=tokens, stream=True)


def with_anthropic():
    import anthropic

    create = anthropic.Anthropic(base_url=TUNNEL, **SETTINGS).messages.create
    return lambda tokens: create(model=MODEL, messages=MESSAGES, max_tokens=tokens, stream=True)


def with_ollama():
    import ollama

    chat = ollama.Client(host=TUNNEL, headers={"X-Api-Key": KEY}).chat
    return lambda tokens: chat(MODEL, MESSAGES, options={"num_predict": tokens}, stream=True)


def main():
    ask = {"openai": with_openai, "anthropic": with_anthropic, "ollama": with_ollama}[sys.argv[1]]()
    same("a whole answer has its tokens", sum(1 for _ in ask(TOKENS)) > TOKENS, True)
    try:
        for count, _ in enumerate(ask(ENDLESS)):
            if count == 3:
                print("begun", flush=True)
    except Exception as error:
        print(f"cut: {type(error).__name__}: {error}", flush=True)
    else:
        raise SystemExit("the broken answer looks like a whole one")
    try:
        list(ask(TOKENS))
    except Exception as error:
        same("the next request is refused", getattr(error, "status_code", error), 401)
    else:
        raise SystemExit("the revoked key is still accepted")


main()
