"""A bare ASGI application: the same events as sse_server.c's, paced alike.

    HEAD=... TAIL=... uvicorn --loop uvloop --http httptools asgi:app

No framework, no model of the body, no queue between it and an engine: less than
any server in Python does.
"""
import asyncio
import itertools
import os
import re
import time

HEAD = os.environ["HEAD"].encode()
TAIL = os.environ["TAIL"].encode()
HEADERS = [(b"content-type", b"text/event-stream"),
           (b"cache-control", b"no-cache")]

phases = (i * 2654435769 % 2**32 / 2**32 for i in itertools.count(1))


def word(body, name):
    found = re.search(name + rb"=(\d+)", body)
    return int(found[1]) if found else 0


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)

    delay, step = word(body, rb"delay_ms") / 1e3, word(body, rb"step_ms") / 1e3
    spread, due = word(body, rb"spread"), time.monotonic()
    await send({"type": "http.response.start", "status": 200,
                "headers": HEADERS})
    for i in range(word(body, rb"tokens")):
        now = time.monotonic()
        await send({"type": "http.response.body", "more_body": True,
                    "body": b"%bt%016d %b" % (HEAD, now * 1e6, TAIL)})
        if spread:
            due = max(due + delay * (i > 0 or next(phases)), now)
        else:
            due = (now // step * step if step else now) + delay
        await asyncio.sleep(due - now)
