"""Trains the demo model on the CPU until a wall-clock deadline.

In:  WordNet's directory, a seed, minutes; a checkpoint to resume, if any.
Out: a complete model directory in Hugging Face layout (--out), a checkpoint
     for resuming (--state), a line of log per 20 steps.

One command, from the top of the repository:
    python3 t/tools/demo_train.py --wordnet /usr/share/wordnet --minutes 55

Muon (Jordan 2024) for matrices, AdamW for the rest.  The learning rate is a
function of elapsed time: warm up, hold, decay linearly over the last part, in
which the MTP layer is trained too.  Stop and resume as you like.

Each core has a process of one thread with its share of the rows, and they meet
once a step: two threads that meet in every small product took 6 s a step, not
1.3 s, when others used the machine.
"""
import argparse
import json
import os
import time

import torch
import torch.distributed as dist
from safetensors.torch import save_file

import demo_data
from demo_model import Model

CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "ep_size": 1,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 192,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "kv_lora_rank": 64,
    "max_position_embeddings": 4096,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 64,
    "moe_layer_freq": 1,
    "n_group": 4,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 6,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 6,
    "num_key_value_heads": 6,
    "num_nextn_predict_layers": 1,
    "pad_token_id": 2,
    "q_lora_rank": 96,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 10000,
    "routed_scaling_factor": 2.0,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 2,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "v_head_dim": 32,
    "vocab_size": 4096,
}
GENERATION = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
              "do_sample": True, "temperature": 0.2, "top_p": 0.95}
N_TOK, N_ROWS = 256, 16             # a step: 4096 tokens
LONG_EVERY, LONG_TOK = 10, 2048     # each tenth step has two long rows
DECAY = 0.40                        # share of the time that decays
MTP_WEIGHT = 0.2
BIAS_STEP = 5e-3    # of the correction bias; DeepSeek-V3's 1e-3 is for more
                    # steps: here the load was still on a few experts at 160
ADAM_LR, ROUTER_LR, MUON_LR = 3e-3, 5e-4, 0.015


@torch.no_grad()
def orthogonal(g):
    """Newton-Schulz, five steps, on (..., rows, cols)."""
    x = g.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return (x.mT if tall else x).float()


class Muon:
    def __init__(self, params, lr, momentum=0.95, decay=0.02):
        self.params, self.lr = list(params), lr
        self.momentum, self.decay = momentum, decay
        self.buf = [torch.zeros_like(p) for p in self.params]

    @torch.no_grad()
    def step(self, scale):
        by_shape = {}
        for p, b in zip(self.params, self.buf):
            if p.grad is None:
                continue
            b.lerp_(p.grad, 1 - self.momentum)
            g = p.grad.lerp(b, self.momentum)
            by_shape.setdefault(p.shape, []).append((p, g))
        for shape, pairs in by_shape.items():
            update = orthogonal(torch.stack([g for _, g in pairs]))
            size = max(1, shape[-2] / shape[-1]) ** 0.5
            for (p, _), u in zip(pairs, update):
                p.mul_(1 - self.lr * scale * self.decay)
                p.sub_(u, alpha=self.lr * scale * size)


def rate(done):
    """Learning rate, relative, at a share of the time."""
    return min(1.0, done / 0.02, (1 - done) / DECAY)


def probe(model, source, tokenizer, n=64):
    """Share of held-out sums and of definitions whose whole reply is the
    argmax at each token: what greedy decoding would say.  The phrasing of
    sums is random in the data, so only tokens up to </think> count there."""
    r = source.r
    sums, words = [], []
    while len(sums) < n:
        a, b = r.randrange(1000), r.randrange(1000)
        op = r.choice("+-")
        if demo_data.held_out(a, op, b):
            ask = f"What is {a} {op} {b}?"
            sums.append(demo_data.solve(r, a, op, b, ask)[:2])
    for e in r.sample(source.entries, n):
        ask = demo_data.ASK_NOUN[0] if e.kind == "noun" else \
            demo_data.ASK_OTHER[0]
        words.append((ask.format(w=e.word, an=demo_data.article(e.word)),
                      demo_data.answer_of(e)))
    right = []
    for kind, items in (("sum", sums), ("word", words)):
        rows, spans = [], []
        for ask, reply in items:
            text = demo_data.BOS + demo_data.USER + ask + demo_data.ASSISTANT
            if kind == "sum":
                text += demo_data.THINK + "\n"
                reply += demo_data.END_THINK
            else:
                text += demo_data.END_THINK
                reply += demo_data.EOS
            p, q = (tokenizer.encode(t, add_special_tokens=False).ids
                    for t in (text, reply))
            rows.append(p + q)
            spans.append((len(p), len(p) + len(q)))
        width = max(map(len, rows))
        ids = torch.tensor([x + [2] * (width - len(x)) for x in rows])
        model.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            guess = model.lm_head(model(ids)).argmax(-1)
        model.train()
        ok = [bool((guess[i, s - 1:e - 1] == ids[i, s:e]).all())
              for i, (s, e) in enumerate(spans)]
        right.append(sum(ok) / n)
    return right


def export(model, out, tokenizer):
    os.makedirs(out, exist_ok=True)
    demo_data.write_tokenizer(tokenizer, out)
    for name, value in (("config.json", CONFIG),
                        ("generation_config.json", GENERATION)):
        with open(os.path.join(out, name), "w") as f:
            json.dump(value, f, indent=2)
            f.write("\n")
    path = os.path.join(out, "model.safetensors")
    save_file(model.to_checkpoint(), path + ".new", {"format": "pt"})
    os.replace(path + ".new", path)


def optimizers(model):
    matrices, routers, rest = [], [], []
    for name, p in model.named_parameters():
        if "mlp.gate.weight" in name:
            routers.append(p)
        elif p.ndim < 2 or "embed" in name or "lm_head" in name:
            rest.append(p)
        else:
            matrices.append(p)
    adam = torch.optim.AdamW(
        [{"params": rest, "base": ADAM_LR},
         {"params": routers, "base": ROUTER_LR}],
        betas=(0.9, 0.98), eps=1e-10, weight_decay=0.0)
    return Muon(matrices, MUON_LR), adam


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--wordnet", default="/usr/share/wordnet")
    p.add_argument("--out", default="conf/demo/model")
    p.add_argument("--state", default="build/demo-train.pt")
    p.add_argument("--minutes", type=float, default=55)
    p.add_argument("--ranks", type=int, default=2)
    p.add_argument("--seed", type=int, default=1)
    a = p.parse_args()
    os.makedirs(os.path.dirname(a.state) or ".", exist_ok=True)
    meet = os.path.abspath(a.state) + ".meet"
    if os.path.exists(meet):
        os.remove(meet)
    torch.multiprocessing.spawn(train, (a, meet), nprocs=a.ranks)


def mean_over_ranks(model, ranks):
    """Gradients and router loads, averaged in one message."""
    some = [p.grad for p in model.parameters() if p.grad is not None]
    some += [r.load for r in model.routers()]
    flat = torch.cat([t.flatten() for t in some])
    dist.all_reduce(flat)
    flat /= ranks
    for t, part in zip(some, flat.split([t.numel() for t in some])):
        t.copy_(part.view_as(t))


def train(rank, a, meet):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method="file://" + meet, rank=rank,
                            world_size=a.ranks)
    torch.manual_seed(a.seed)
    tokenizer = demo_data.train_tokenizer(a.wordnet, a.seed)
    model = Model(CONFIG)
    muon, adam = optimizers(model)
    step, elapsed = 0, 0.0
    if os.path.exists(a.state):
        s = torch.load(a.state)
        model.load_state_dict(s["model"])
        adam.load_state_dict(s["adam"])
        muon.buf, step, elapsed = s["muon"], s["step"], s["elapsed"]
    source = demo_data.Source(a.wordnet, (a.seed * 1000003 + step) * 64
                              + rank)
    check = demo_data.Source(a.wordnet, a.seed + 77)
    saved = last = time.time()
    while elapsed < a.minutes * 60:
        done = elapsed / (a.minutes * 60)
        scale, with_mtp = rate(done), done > 1 - DECAY
        long = step % LONG_EVERY == LONG_EVERY - 1
        shape = (2, LONG_TOK) if long else (N_ROWS, N_TOK)
        shape = (max(1, shape[0] // a.ranks), shape[1])
        ids, learn = source.rows(tokenizer, *shape, long)
        ids, learn = torch.tensor(ids), torch.tensor(learn).bool()
        with torch.autocast("cpu", torch.bfloat16):
            main_loss, mtp_loss = model.loss(ids, learn, with_mtp=with_mtp)
        (main_loss + MTP_WEIGHT * mtp_loss).backward()
        mean_over_ranks(model, a.ranks)
        torch.nn.utils.clip_grad_norm_(adam.param_groups[0]["params"], 1.0)
        for group in adam.param_groups:
            group["lr"] = group["base"] * scale
        adam.step()
        muon.step(scale)
        for q in model.parameters():
            q.grad = None
        peak = [r.balance(BIAS_STEP * scale)
                for r in model.routers()]
        step += 1
        now = time.time()
        clock = torch.tensor(elapsed + now - last, dtype=torch.float64)
        dist.broadcast(clock, 0)
        elapsed, last = clock.item(), now
        if rank > 0:
            continue
        if step % 20 == 0:
            print(f"{step} {elapsed:.0f}s rate {scale:.3f} loss "
                  f"{main_loss.item():.4f} mtp {mtp_loss.item():.4f} "
                  f"peak load {max(peak):.2f}", flush=True)
        if step % 300 == 0:
            print("held-out sums %.3f, words %.3f"
                  % tuple(probe(model, check, tokenizer)), flush=True)
        if now - saved > 180:
            saved = now
            torch.save({"model": model.state_dict(), "muon": muon.buf,
                        "adam": adam.state_dict(), "step": step,
                        "elapsed": elapsed}, a.state + ".new")
            os.replace(a.state + ".new", a.state)
            export(model, a.out, tokenizer)
    if rank > 0:
        return
    export(model, a.out, tokenizer)
    print(f"{step} steps of {N_TOK * N_ROWS} tokens in {elapsed:.0f} s")
    print("held-out sums %.3f, words %.3f"
          % tuple(probe(model, check, tokenizer, 200)))


if __name__ == "__main__":
    main()
