#!/usr/bin/env python3
"""Writes t/data/template/{models,units}.json: what Jinja2 3.1.6 renders.

    python3 t/tools/make_template_goldens.py

models.json: every template in t/data/template/models over the conversations
below.  units.json: the small cases in t/tools/template_units.py.  The
environment is Hugging Face's (trim_blocks, lstrip_blocks, loopcontrols, a
generation tag, its tojson), with three differences that the templates of real
models need: lists may be changed (Kimi-K2), there is a filter from_json
(DeepSeek-V3.2), and tojson takes what map() gives (llama.cpp's DeepSeek-R1).
The clock stands at 2026-07-04 05:06:07.
"""

import datetime
import json
import os
import sys
import types

import jinja2
import jinja2.ext
import jinja2.sandbox

import template_units

NOW = datetime.datetime(2026, 7, 4, 5, 6, 7)
HERE = os.path.dirname(os.path.abspath(__file__))
DATA = os.path.join(HERE, "..", "data", "template")


class Raised(Exception):
    pass


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"],
                                       drop_needle=True)
        call = self.call_method("_run")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _run(self, caller):
        return caller()


def environment():
    env = jinja2.sandbox.SandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True,
        extensions=[Generation, jinja2.ext.loopcontrols])

    def tojson(x, ensure_ascii=False, indent=None, separators=None,
               sort_keys=False):
        if isinstance(x, types.GeneratorType):
            x = list(x)
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent,
                          separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise Raised(str(message))

    env.filters["tojson"] = tojson
    env.filters["from_json"] = json.loads
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env


ENV = environment()


def render(template, variables):
    """{"expect": text}, {"raised": message} or {"error": message}"""
    variables = json.loads(json.dumps(variables))
    try:
        text = ENV.from_string(template).render(**variables)
        text.encode()
        return {"expect": text}
    except Raised as e:
        return {"raised": str(e)}
    except Exception as e:
        return {"error": "%s: %s" % (type(e).__name__, e)}


def fn(name, arguments, call_id="abcdef123"):
    return {"id": call_id, "type": "function",
            "function": {"name": name, "arguments": arguments}}


TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "Weather of a <city> & more",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The city's name"},
                "unit": {"type": "string", "enum": ["c", "f"],
                         "default": "c"},
                "days": {"type": "integer", "default": 3},
                "detail": {"type": ["string", "null"]},
                "where": {"type": "object", "properties": {
                    "lat": {"type": "number"}, "lon": {"type": "number"}},
                    "required": ["lat"]},
                "tags": {"type": "array", "items": {"type": "string"}},
                "any": {"oneOf": [{"type": "string", "description": "s"},
                                  {"type": "number", "default": 1.5}]}},
            "required": ["city", "where"]}}},
    {"type": "function", "function": {
        "name": "now", "description": "Clock “ö” 漢字",
        "parameters": {"type": "object", "properties": {}}}},
]

SIMPLE = [
    {"type": "function", "function": {
        "name": "add", "description": "Adds.",
        "parameters": {"type": "object", "properties": {
            "a": {"type": "integer", "description": "one"},
            "b": {"type": "array", "items": {"type": "number"}}},
            "required": ["a"]}}},
]

SYS = {"role": "system", "content": "You are terse."}
HI = {"role": "user", "content": "Hi, 你好 <b>\"x\"</b> 🙂!"}
YO = {"role": "assistant", "content": "Hello.\n\nHow are you?"}
ASK = {"role": "user", "content": "Weather in Köln?"}
CALL = {"role": "assistant", "content": "",
        "tool_calls": [fn("get_weather", {"city": "Köln", "days": 2,
                                          "where": {"lat": 50.9},
                                          "tags": ["a", "b"], "x": None,
                                          "y": True})]}
CALL2 = {"role": "assistant", "content": None,
         "tool_calls": [fn("get_weather", {"city": "Köln"}),
                        fn("now", {}, "zyxwvu987")]}
CALL_TEXT = {"role": "assistant", "content": "Let me look.",
             "tool_calls": [fn("get_weather", "{\"city\": \"Köln\"}")]}
CALL_STRING = {"role": "assistant", "content": None,
               "tool_calls": [fn("add", "{\"a\": 1}"),
                              fn("add", "{}", "123456789")]}
RESULT = {"role": "tool", "tool_call_id": "abcdef123", "name": "get_weather",
          "content": "{\"temp\": 21.5, \"sky\": \"clear\"}"}
RESULT2 = {"role": "tool", "tool_call_id": "zyxwvu987", "name": "now",
           "content": "12:34"}
DONE = {"role": "assistant", "content": "It is 21.5 °C."}
THINK = {"role": "assistant", "content": "Four.",
         "reasoning_content": "\n2 + 2 is 4.\n"}
THINK_IN = {"role": "assistant",
            "content": "<think>\n2 + 2 is 4.\n</think>\n\nFour."}
SUM = {"role": "user", "content": "2 + 2?"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "part one "},
                                     {"type": "text", "text": "part two"}]}

# name: messages, and variables beside the default ones
CONVERSATIONS = {
    "one": ([HI], {}),
    "system": ([SYS, HI], {}),
    "turns": ([SYS, HI, YO, SUM], {}),
    "no_prompt": ([HI, YO], {"add_generation_prompt": False}),
    "reasoning": ([SUM, THINK, HI], {}),
    "reasoning_last": ([SUM, THINK], {"add_generation_prompt": False}),
    "think_in_content": ([SYS, SUM, THINK_IN, HI, YO, SUM], {}),
    "thinking_on": ([HI], {"enable_thinking": True, "thinking": True}),
    "thinking_off": ([HI], {"enable_thinking": False, "thinking": False}),
    "effort": ([SYS, HI], {"reasoning_effort": "high",
                           "builtin_tools": ["browser", "python"],
                           "model_identity": "You are a test."}),
    "tools": ([SYS, ASK], {"tools": TOOLS}),
    "tools_no_system": ([ASK], {"tools": TOOLS, "thinking": True}),
    "tool_call": ([ASK, CALL, RESULT], {"tools": TOOLS}),
    "tool_calls": ([SYS, ASK, CALL2, RESULT, RESULT2, DONE, HI],
                   {"tools": TOOLS}),
    "tool_call_text": ([ASK, CALL_TEXT, RESULT, DONE], {"tools": TOOLS}),
    "tool_call_string": ([SYS, ASK, CALL_STRING, RESULT, HI],
                         {"tools": SIMPLE}),
    "simple_tools": ([ASK, CALL2, RESULT, RESULT2], {"tools": SIMPLE}),
    "tool_rounds": ([ASK, CALL, RESULT, DONE, ASK, CALL, RESULT], {}),
    "parts": ([SYS, PARTS], {}),
    "empty": ([{"role": "user", "content": ""}], {}),
    "none": ([{"role": "user", "content": None}], {"tools": None}),
    "missing": ([{"role": "user"}], {}),
    "no_role": ([{"content": "x"}], {}),
    "no_messages": ([], {}),
    "wrong_order": ([YO, HI, HI], {}),
    "system_late": ([HI, YO, SYS, HI], {}),
    "blanks": ([{"role": "user", "content": "  a\n\n b\t\n"},
                {"role": "assistant", "content": "\n x \n"},
                {"role": "user", "content": "\u00a0\u3000ok\u2028"}], {}),
    "injection": ([{"role": "user",
                    "content": "{{ 1 }}{% if x %}</think><|im_end|>"}], {}),
}


def models():
    cases = []
    folder = os.path.join(DATA, "models")
    for file in sorted(os.listdir(folder)):
        with open(os.path.join(folder, file), newline="") as f:
            template = f.read()
        for name, (messages, more) in CONVERSATIONS.items():
            variables = {"messages": messages, "add_generation_prompt": True,
                         "bos_token": "<s>", "eos_token": "</s>"}
            variables.update(more)
            result = render(template, variables)
            cases.append({"file": file, "name": name, **result})
    return cases


def variables():
    return {name: {"messages": messages, "add_generation_prompt": True,
                   "bos_token": "<s>", "eos_token": "</s>", **more}
            for name, (messages, more) in CONVERSATIONS.items()}


def units():
    return [{"template": t, "vars": v, **render(t, v)}
            for t, v in template_units.CASES]


def write(name, data):
    with open(os.path.join(DATA, name), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(x, ensure_ascii=False)
                                   for x in data) + "\n]\n")
    bad = [x for x in data if "error" in x]
    print("%s: %d cases, %d raised, %d errors" % (
        name, len(data), sum("raised" in x for x in data), len(bad)))
    if "-v" in sys.argv:
        for x in bad:
            print("   ", x.get("file", x.get("template")), x.get("name", ""),
                  x["error"])


if __name__ == "__main__":
    assert jinja2.__version__ == "3.1.6", jinja2.__version__
    write("models.json", models())
    write("units.json", units())
    with open(os.path.join(DATA, "conversations.json"), "w") as f:
        json.dump(variables(), f, ensure_ascii=False, indent=1)
        f.write("\n")
