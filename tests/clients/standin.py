"""What the Python scripts here share: where to go, what the stand-in counts, and how to complain.

ADIT_URL leads to the stand-in through the tunnel, ADIT_DIRECT leads straight to it.
"""

import contextlib
import faulthandler
import json
import os
import time
import urllib.request

# A client that hangs is a failure to see, with the line it hangs on.
faulthandler.dump_traceback_later(120, exit=True)

# Both addresses are on this machine, whatever proxy the environment names.
for name in list(os.environ):
    if name.lower().endswith("_proxy"):
        del os.environ[name]

TUNNEL = os.environ["ADIT_URL"].rstrip("/")
DIRECT = os.environ["ADIT_DIRECT"].rstrip("/")

SEED = 20260101
TOKENS = 8
# Without end for any purpose; an aborted request must not be over before it is aborted.
ENDLESS = 1_000_000_000
# How soon the stand-in has to notice that a client is gone.
SOON = 5.0


def get(path):
    """What the stand-in answers, asked directly."""
    with urllib.request.urlopen(DIRECT + path, timeout=10) as answer:
        return json.load(answer)


MODEL = get("/api/tags")["models"][0]["name"]


def same(what, got, want):
    """Fails unless both are equal."""
    if got != want:
        raise SystemExit(f"{what}: differs\n   got {got!r}\n  want {want!r}")
    print(f"ok  {what}")


def compare(kind, through, direct):
    """Fails unless two dictionaries of answers are equal, and names the one that differs."""
    for what, want in direct.items():
        same(f"{kind} {what}", through[what], want)


def wait_for(holds, what):
    """Waits until the counters are as wished, and returns them."""
    end = time.monotonic() + SOON
    while not holds(now := get("/test/counters")):
        if time.monotonic() > end:
            raise SystemExit(f"{what}: not within {SOON:g} s; the stand-in counts {now}")
        time.sleep(0.01)
    return now


@contextlib.contextmanager
def cancels(what):
    """Fails unless the block leaves one more cancelled generation behind; gives it the counters from before."""
    before = get("/test/counters")
    yield before
    gone = before["cancelled"] + 1
    after = wait_for(lambda now: now["cancelled"] >= gone and now["running"] == before["running"], what)
    same(what, (after["started"], after["cancelled"]), (before["started"] + 1, gone))


def has_started(before):
    """Waits until one more generation than before has started."""
    wait_for(lambda now: now["started"] > before["started"], "the request reaches the stand-in")
