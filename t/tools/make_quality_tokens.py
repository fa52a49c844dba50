#!/usr/bin/env python3
"""Makes t/data/quality.json: text in tokens of the demo model, by which
t/unit/model_quant.c measures what weights of few bits cost.

    python3 t/tools/make_quality_tokens.py

Needs tokenizers.  "sums": problems held out of training with their working, up
to </think>; "talk": small talk and stories with new seeds.  Of each, `from` is
the first token that the model itself would write.
"""

import json
import os
import random

from tokenizers import Tokenizer

import demo_data
import demo_talk

HERE = os.path.dirname(os.path.abspath(__file__))
MODEL = os.path.join(HERE, "..", "..", "conf", "demo", "model")
OUT = os.path.join(HERE, "..", "data", "quality.json")
N_SUMS, N_TALK = 80, 40


def problem(r):
    while True:
        a, b = (r.randrange(10 ** r.choice((1, 2, 3, 3))) for _ in "ab")
        op = r.choice("+-")
        if demo_data.held_out(a, op, b):
            return demo_data.solve(r, a, op, b,
                                   demo_data.ask_arithmetic(r, a, op, b))


def main():
    tokenizer = Tokenizer.from_file(os.path.join(MODEL, "tokenizer.json"))
    r = random.Random(4004)

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    def item(ask, think, answer):
        head = encode(demo_data.BOS + demo_data.USER + ask
                      + demo_data.ASSISTANT) + encode(demo_data.THINK + "\n")
        tail = encode(think + demo_data.END_THINK + answer)
        return {"from": len(head), "tokens": head + tail}

    sums = [item(ask, work, "") for ask, work, _ in
            (problem(r) for _ in range(N_SUMS))]
    talk = [item(*(demo_talk.story(r) if i % 3 == 0 else demo_talk.talk(r)))
            for i in range(N_TALK)]

    with open(OUT, "w") as f:
        json.dump({"sums": sums, "talk": talk}, f, separators=(",", ":"))
        f.write("\n")

    print(sum(len(x["tokens"]) - x["from"] for x in sums + talk), "tokens")


if __name__ == "__main__":
    main()
