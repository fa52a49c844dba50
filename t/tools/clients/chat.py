# chat.py BASE_URL MODE - OpenAI's own Python client against this server: what
# a program written for their service sees.  Prints "ok - NAME" or
# "not ok - NAME: WHY" for each check; t/clients.t reads that.
#
# MODE is mock (t/tools/mock_engine, which does what its prompt says) or model
# (the demo model).

import sys
import time

import openai

BASE, MODE = sys.argv[1:3]
MOCK = MODE == "mock"
client = openai.OpenAI(base_url=BASE + "/v1", api_key="none", max_retries=0,
                       timeout=120)

ASK = "mock reasoning=3 tokens=4" if MOCK else "What is 347 + 285?"
ANSWER = "w0 w1 w2 w3" if MOCK else "632"
THOUGHT = "r0 r1 r2" if MOCK else "347"
LONG = ("mock tokens=5000 delay_ms=20" if MOCK
        else "What is 999 - 111?")


def user(text):
    return [{"role": "user", "content": text}]


def chat(text=ASK, **k):
    k.setdefault("temperature", 0)
    return client.chat.completions.create(model=NAME, messages=user(text), **k)


def check(name, call):
    try:
        r = call()
        print("ok -", name) if r is None or r is True else \
            print("not ok -", name + ":", "got", repr(r))
    except Exception as e:
        print("not ok -", name + ":", type(e).__name__, str(e).split("\n")[0])
    sys.stdout.flush()


def raises(kind, call, **attributes):
    def run():
        try:
            call()
        except openai.OpenAIError as e:
            if type(e) is not kind:
                return type(e).__name__ + ": " + str(e)
            for k, v in attributes.items():
                if getattr(e, k) != v:
                    return "%s is %r" % (k, getattr(e, k))
            return True
        return "no error"
    return run


def models():
    m = list(client.models.list())
    return len(m) == 1 and m[0].object == "model" and m[0].created > 0


def retrieve():
    m = client.models.retrieve(NAME)
    return m.id == NAME and m.object == "model"


def plain():
    r = chat()
    c = r.choices[0]
    u = r.usage
    return (r.object == "chat.completion" and r.id.startswith("chatcmpl-")
            and r.model == NAME and c.message.role == "assistant"
            and ANSWER in c.message.content
            and THOUGHT in c.message.reasoning_content
            and c.finish_reason == "stop" and u.completion_tokens > 3
            and u.prompt_tokens > 0
            and u.total_tokens == u.prompt_tokens + u.completion_tokens) or r


def stream():
    content = thought = ""
    finish = []
    n = 0
    ids = set()
    for part in chat(stream=True):
        ids.add(part.id)
        if part.usage is not None or len(part.choices) != 1:
            return "usage unasked for"
        d = part.choices[0].delta
        if d.content and getattr(d, "reasoning_content", None):
            return "two kinds of text in one event"
        if d.content:
            content += d.content
            n += 1
        if getattr(d, "reasoning_content", None):
            if content:
                return "a thought after the answer"
            thought += d.reasoning_content
            n += 1
        if part.choices[0].finish_reason:
            finish.append(part.choices[0].finish_reason)
    return (ANSWER in content and THOUGHT in thought and n > 3
            and finish == ["stop"] and len(ids) == 1) or (content, thought, n)


def stream_usage():
    parts = list(chat(stream=True, stream_options={"include_usage": True}))
    last = parts[-1]
    plain_usage = chat().usage
    return (last.choices == [] and last.usage is not None
            and last.usage.completion_tokens == plain_usage.completion_tokens
            and last.usage.prompt_tokens == plain_usage.prompt_tokens
            and last.usage.completion_tokens_details.reasoning_tokens > 0
            and all(p.usage is None for p in parts[:-1])) or last


def several():
    r = chat(n=2)
    parts = list(chat(n=2, stream=True))
    text = ["", ""]
    for p in parts:
        for c in p.choices:
            text[c.index] += c.delta.content or ""
    return ([c.index for c in r.choices] == [0, 1]
            and all(ANSWER in c.message.content for c in r.choices)
            and all(ANSWER in t for t in text)) or (r, text)


def logprobs():
    r = chat(logprobs=True, top_logprobs=2)
    c = r.choices[0]
    lp = c.logprobs.content
    return (len(lp) > 0 and all(x.logprob <= 0 and len(x.top_logprobs) == 2
                                and isinstance(x.bytes, list) for x in lp)
            or c.logprobs)


def stop():
    r = chat(stop=["632"])
    c = r.choices[0]
    text = (c.message.content or "") + (c.message.reasoning_content or "")
    return (c.finish_reason == "stop" and "632" not in text) or c


def length():
    c = chat(max_completion_tokens=2).choices[0]
    return c.finish_reason == "length" or c


def legacy():
    r = client.completions.create(model=NAME, prompt="mock tokens=3" if MOCK
                                  else "What is 1 + 1?", max_tokens=8,
                                  temperature=0)
    parts = list(client.completions.create(
        model=NAME, prompt="mock tokens=3" if MOCK else "What is 1 + 1?",
        max_tokens=8, stream=True, temperature=0))
    return (r.object == "text_completion" and r.choices[0].text != ""
            and r.usage.completion_tokens > 0
            and "".join(p.choices[0].text for p in parts if p.choices) != ""
            and parts[-1].choices[0].finish_reason in ("stop", "length")) or r


def cancel():
    s = chat(LONG, stream=True)
    for i, part in enumerate(s):
        if i == 3:
            break
    s.close()
    return True


def wrong_type():
    try:
        chat(temperature="hot")
    except openai.BadRequestError as e:
        return (e.param == "temperature" and e.status_code == 400
                and e.type == "invalid_request_error") or e.body
    return "no error"


def too_long():
    try:
        chat("mock error=context" if MOCK else "word " * 100000)
    except openai.BadRequestError as e:
        return e.code == "context_length_exceeded" or e.body
    return "no error"


NAME = client.models.list().data[0].id

check("list models", models)
check("retrieve a model", retrieve)
check("a model that is not there is NotFoundError",
      raises(openai.NotFoundError,
             lambda: client.models.retrieve("no-such-model"), status_code=404))
check("a chat", plain)
check("a streamed chat", stream)
check("usage with include_usage", stream_usage)
check("n=2", several)
check("max_completion_tokens", length)
check("logprobs", logprobs)
if not MOCK:
    check("stop", stop)
check("legacy completions", legacy)
check("a wrong parameter is BadRequestError that names it", wrong_type)
check("n=99 is BadRequestError",
      raises(openai.BadRequestError, lambda: chat(n=99), param="n"))
check("no messages is BadRequestError", raises(
    openai.BadRequestError, lambda: client.chat.completions.create(
        model=NAME, messages=[]), param="messages"))
check("a prompt that is too long is BadRequestError", too_long)
if MOCK:
    check("a full engine is RateLimitError",
          raises(openai.RateLimitError, lambda: chat("mock error=busy"),
                 status_code=429))
    check("a draining engine is status 503",
          raises(openai.InternalServerError,
                 lambda: chat("mock error=unavailable"), status_code=503))
    check("an error inside a stream is an APIError", raises(
        openai.APIError, lambda: list(chat(
            "mock tokens=9 delay_ms=20 at=3 error=internal", stream=True))))
check("a closed stream", cancel)
