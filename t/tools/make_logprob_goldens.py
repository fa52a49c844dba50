#!/usr/bin/env python3
"""Makes t/data/prompt_logprobs.json: what transformers (float32, eager, CPU)
thinks of one prompt to the demo model.

    python3 t/tools/make_logprob_goldens.py

Needs torch, safetensors and transformers.  "tokens" are the prompt's ids;
"logprobs" the log-probability of each given those before it, the first null;
"top" the likeliest id at its place, and what that is worth.
"""

import json
import os

import torch
from transformers import AutoModelForCausalLM

ROOT = os.path.join(os.path.dirname(__file__), "..", "..")
N_TOK = 200


def main():
    model = AutoModelForCausalLM.from_pretrained(
        os.path.join(ROOT, "conf", "demo", "model"), dtype=torch.float32,
        attn_implementation="eager").eval()
    # Ids of letters and words, and every third what the model says itself.
    tokens = [300]
    with torch.no_grad():
        while len(tokens) < N_TOK:
            i = len(tokens)
            if i % 3 == 0:
                logits = model(torch.tensor([tokens])).logits
                tokens.append(int(logits[0, -1].argmax()))
            else:
                tokens.append(300 + i * i * 37 % 2000)
        logits = model(torch.tensor([tokens])).logits[0].double()
    values = torch.log_softmax(logits, -1)
    of_next = values[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    top = values[:-1].max(-1)

    out = {
        "tokens": tokens,
        "logprobs": [None] + [round(float(v), 5) for v in of_next],
        "top": [None] + [[int(i), round(float(v), 5)]
                         for v, i in zip(top.values, top.indices)],
    }
    path = os.path.join(ROOT, "t", "data", "prompt_logprobs.json")
    with open(path, "w") as file:
        json.dump(out, file, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
