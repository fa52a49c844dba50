"""Measures the demo model in transformers, which shares no code with it.

In:  a model directory, WordNet's directory; optionally a training state.
Out: accuracy on held-out sums by kind and length, with and without thinking;
     the share of definitions told by heart; replies to some prompts; how
     often the MTP layer's draft is right.  With --state, whether transformers'
     logits and greedy tokens are those of the training model.
"""
import argparse
import json
import random
import re

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, DeepseekV3ForCausalLM

import demo_data
from demo_model import Model

SHOW = ["Hello!", "Who are you?", "What is 347 + 285?", "347+285",
        "Calculate 12-7", "how much is 5 plus 90?", "What is 12 - 47?",
        "What is 999 + 999?", "What is an otter?", "What is a dog?",
        "what is a volcano", "What does happy mean?", "What is to run?",
        "Define river.", "What is a blicket?", "What is a sloth?",
        "Tell me a joke.", "Tell me a short story.", "Why is the sky blue?",
        "Thanks!"]
CHAT = [{"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Hi!"},
        {"role": "assistant", "content": "<think>\nThe user greets me."
         "</think>Hello! How can I help you?"},
        {"role": "user", "content": "What is 58 + 67?"},
        {"role": "assistant", "content": "58 + 67 = 125."},
        {"role": "user", "content": "And what is a river?"}]


class Chat:
    def __init__(self, path, batch):
        self.tok = AutoTokenizer.from_pretrained(path, padding_side="left")
        self.model, info = DeepseekV3ForCausalLM.from_pretrained(
            path, dtype=torch.bfloat16, output_loading_info=True)
        self.model.eval()
        self.batch = batch
        print("missing", sorted(info["missing_keys"]),
              "mismatched", sorted(info["mismatched_keys"]),
              "unexpected outside the MTP layer",
              [k for k in info["unexpected_keys"] if "layers.6." not in k])

    def prompt(self, messages, **kw):
        return self.tok.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **kw)

    def greedy(self, prompts, limit=200):
        """Texts after each prompt, greedily, in batches of like length."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        out = [""] * len(prompts)
        for at in range(0, len(order), self.batch):
            some = order[at:at + self.batch]
            x = self.tok([prompts[i] for i in some], return_tensors="pt",
                         padding=True, add_special_tokens=False)
            with torch.no_grad():
                y = self.model.generate(
                    input_ids=x["input_ids"],
                    attention_mask=x["attention_mask"], do_sample=False,
                    max_new_tokens=limit, temperature=None, top_p=None)
            for i, row in zip(some, y[:, x["input_ids"].shape[1]:]):
                text = self.tok.decode(row, skip_special_tokens=False)
                out[i] = text.split(demo_data.EOS)[0]
        return out


def last_number(text):
    found = re.findall(r"-?\d+", text.split(demo_data.END_THINK)[-1])
    return int(found[-1]) if found else None


def problems(r, n):
    """n held-out problems: a third of them of three digits on both sides,
    the rest of any lengths; the question's form is random."""
    out = []
    while len(out) < n:
        long = len(out) % 3 == 0
        a, b = (r.randrange(10 ** (3 if long else r.choice((1, 2, 3))))
                for _ in "ab")
        op = r.choice("+-")
        if demo_data.held_out(a, op, b):
            out.append((a, op, b, demo_data.ask_arithmetic(r, a, op, b)))
    return out


def sums(chat, n, **kw):
    r = random.Random(20)
    todo = problems(r, n)
    texts = chat.greedy([chat.prompt([{"role": "user", "content": p[3]}],
                                     **kw) for p in todo], 140)
    score = {}
    for (a, op, b, ask), text in zip(todo, texts):
        ok = last_number(text) == (a + b if op == "+" else a - b)
        digits = f"{op} {max(len(str(a)), len(str(b)))} digits"
        for key in ("all", digits, "negative" if op == "-" and a < b
                    else "not negative"):
            right, total = score.get(key, (0, 0))
            score[key] = right + ok, total + 1
        if not ok and score["all"][1] - score["all"][0] <= 8:
            print("  wrong:", repr(ask), "->", repr(text))
    for key in sorted(score):
        right, total = score[key]
        print(f"  {key}: {right}/{total} = {100 * right / total:.2f} %")


def words(chat, wordnet, n):
    entries = demo_data.read_wordnet(wordnet)
    some = random.Random(21).sample(entries, min(n, len(entries)))
    ask = [(demo_data.ASK_NOUN if e.kind == "noun" else demo_data.ASK_OTHER)
           [0].format(w=e.word, an=demo_data.article(e.word)) for e in some]
    texts = chat.greedy([chat.prompt([{"role": "user", "content": q}])
                         for q in ask], 90)
    said = [t.split(demo_data.END_THINK)[-1] for t in texts]
    right = sum(s == demo_data.answer_of(e) for s, e in zip(said, some))
    print(f"  by heart: {right}/{len(some)} = {100 * right / len(some):.1f} %")
    for s, e in list(zip(said, some))[:8]:
        print("  ", repr(s), "ok" if s == demo_data.answer_of(e) else
              "for " + repr(demo_data.answer_of(e)))


def long_prompts(chat, n=60):
    """Sums at the end of long chats: accuracy by length of the prompt."""
    r = random.Random(22)
    source_talk = demo_data.demo_talk.talk
    for n_turns in (10, 40, 80):
        prompts, want, size = [], [], 0
        for a, op, b, ask in problems(r, n):
            m = []
            for _ in range(n_turns):
                q, _, answer = source_talk(r)
                m += [{"role": "user", "content": q},
                      {"role": "assistant", "content": answer}]
            m.append({"role": "user", "content": ask})
            prompts.append(chat.prompt(m))
            want.append(a + b if op == "+" else a - b)
            size += len(chat.tok(prompts[-1],
                                 add_special_tokens=False)["input_ids"])
        texts = chat.greedy(prompts, 140)
        right = sum(last_number(t) == w for t, w in zip(texts, want))
        print(f"  {size // n} tokens: {right}/{n}")


def training_model(path):
    """The training model with the exported weights in it."""
    with open(path + "/config.json") as f:
        c = json.load(f)
    model, w = Model(c), load_file(path + "/model.safetensors")
    state, n = model.state_dict(), c["num_hidden_layers"]
    for name in state:
        key = name if name == "lm_head.weight" else "model." + name
        key = key.replace("model.mtp.final", f"model.layers.{n}.shared_head"
                          ".norm").replace("model.mtp.", f"model.layers.{n}.")
        base = key.rsplit(".", 1)[0]
        get = [lambda e, p: w[f"{base}.{e}.{p}_proj.weight"]][0]
        ids = range(c["n_routed_experts"])
        if key.endswith("experts.gate_up"):
            state[name] = torch.stack([torch.cat(
                [get(e, "gate"), get(e, "up")]) for e in ids]).float()
        elif key.endswith("experts.down"):
            state[name] = torch.stack([get(e, "down") for e in ids]).float()
        else:
            state[name] = w[key].float()
    model.load_state_dict(state)
    return model.eval()


def compare(chat, path, prompts):
    """transformers in fp32 against the training model in fp32."""
    mine = training_model(path)
    hf = DeepseekV3ForCausalLM.from_pretrained(path, dtype=torch.float32)
    worst, same, drafts, total = 0.0, 0, 0, 0
    for text in prompts:
        ids = chat.tok(text, return_tensors="pt",
                       add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            a = hf.generate(ids, do_sample=False, max_new_tokens=60,
                            temperature=None, top_p=None)
            b = ids
            while b.shape[1] < a.shape[1]:
                h = mine(b)
                b = torch.cat([b, mine.lm_head(h[:, -1:]).argmax(-1)], 1)
            h = mine(a)
            worst = max(worst, (mine.lm_head(h) - hf(a).logits)
                        .abs().max().item())
            cos, sin = mine.angles(a.shape[1] - 1)
            d = mine.mtp(h[:, :-1], mine.embed_tokens(a[:, 1:]), cos, sin)
            d = mine.lm_head(d).argmax(-1)[0]
        same += bool((a == b).all())
        start = ids.shape[1] - 2        # d[i] drafts token i + 2
        want = a[0, start + 2:]
        drafts += int((d[start:start + len(want)] == want).sum())
        total += len(want)
    print(f"  logits differ by at most {worst:.2e}; greedy tokens equal on "
          f"{same}/{len(prompts)} prompts")
    print(f"  MTP drafts right: {drafts}/{total} = "
          f"{100 * drafts / total:.1f} %")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", default="conf/demo/model")
    p.add_argument("--wordnet", default="/usr/share/wordnet")
    p.add_argument("--sums", type=int, default=3000)
    p.add_argument("--words", type=int, default=400)
    p.add_argument("--batch", type=int, default=250)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--quick", action="store_true")
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    chat = Chat(a.model, a.batch)
    show = [chat.prompt([{"role": "user", "content": q}]) for q in SHOW]
    for q, text in zip(SHOW, chat.greedy(show, 250)):
        print(repr(q), "->", repr(text))
    print("chat ->", repr(chat.greedy([chat.prompt(CHAT)])[0]))
    print("against the training model:")
    compare(chat, a.model, show[:4] if a.quick else show)
    print("held-out sums, thinking:")
    sums(chat, a.sums)
    print("definitions:")
    words(chat, a.wordnet, a.words)
    if not a.quick:
        print("held-out sums, not thinking:")
        sums(chat, 600, enable_thinking=False)
        print("held-out sums after a long chat:")
        long_prompts(chat)


if __name__ == "__main__":
    main()
