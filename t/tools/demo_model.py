"""The demo model as a compact PyTorch module: DeepSeek-V3's maths.

In:  token ids (rows, n_tok) and a config.json as transformers writes it.
Out: hidden states, logits, the loss of the main head and of the MTP layer.

Names of parameters are Hugging Face's, but for the routed experts, which are
kept stacked (n_experts, ...) for speed and unstacked by to_checkpoint().
It must not know what the tokens mean.  Written after DeepSeek-V3's technical
report (arXiv 2412.19437) and checked against transformers by demo_eval.py.
"""
import torch
import torch.nn.functional as F
from torch import nn


class Norm(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype),
                          self.eps)


def linear(n_in, n_out):
    return nn.Linear(n_in, n_out, bias=False)


def rotate(x, cos, sin):
    """Interleaved rope: dims (2i, 2i+1) of x (..., n_tok, rope) are a pair."""
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Attention(nn.Module):
    """MLA, with keys and values expanded: right for training."""

    def __init__(self, c):
        super().__init__()
        self.c, self.heads = c, c["num_attention_heads"]
        self.nope, self.rope = c["qk_nope_head_dim"], c["qk_rope_head_dim"]
        self.v, self.rank = c["v_head_dim"], c["kv_lora_rank"]
        dim, qk = c["hidden_size"], self.nope + self.rope
        self.q_a_proj = linear(dim, c["q_lora_rank"])
        self.q_a_layernorm = Norm(c["q_lora_rank"])
        self.q_b_proj = linear(c["q_lora_rank"], self.heads * qk)
        self.kv_a_proj_with_mqa = linear(dim, self.rank + self.rope)
        self.kv_a_layernorm = Norm(self.rank)
        self.kv_b_proj = linear(self.rank, self.heads * (self.nope + self.v))
        self.o_proj = linear(self.heads * self.v, dim)

    def forward(self, x, cos, sin):
        rows, n, _ = x.shape
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)))
        q = q.view(rows, n, self.heads, -1).transpose(1, 2)
        q_nope, q_pe = q.split([self.nope, self.rope], -1)
        latent, k_pe = self.kv_a_proj_with_mqa(x).split(
            [self.rank, self.rope], -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent))
        kv = kv.view(rows, n, self.heads, -1).transpose(1, 2)
        k_nope, v = kv.split([self.nope, self.v], -1)
        q_pe = rotate(q_pe, cos, sin)
        k_pe = rotate(k_pe.unsqueeze(1), cos, sin)
        q = torch.cat([q_nope, q_pe], -1)
        k = torch.cat([k_nope, k_pe.expand(-1, self.heads, -1, -1)], -1)
        # The fused CPU kernel wants v as wide as q; the padding is cut off.
        v = F.pad(v, (0, self.nope + self.rope - self.v))
        y = F.scaled_dot_product_attention(
            q, k, v.to(q.dtype), is_causal=True,
            scale=(self.nope + self.rope) ** -0.5)
        y = y[..., :self.v].transpose(1, 2).reshape(rows, n, -1)
        return self.o_proj(y)


class Mlp(nn.Module):
    def __init__(self, dim, width):
        super().__init__()
        self.gate_proj, self.up_proj = linear(dim, width), linear(dim, width)
        self.down_proj = linear(width, dim)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Permute(torch.autograd.Function):
    """Rows of x in the order src; backward is a gather as well, since every
    row is used exactly n_copies times and back lists where."""

    @staticmethod
    def forward(ctx, x, src, back, n_copies):
        ctx.save_for_backward(back)
        ctx.n_copies = n_copies
        return x[src]

    @staticmethod
    def backward(ctx, g):
        (back,) = ctx.saved_tensors
        g = g[back]
        if ctx.n_copies > 1:
            g = g.view(-1, ctx.n_copies, g.shape[-1]).sum(1)
        return g, None, None, None


class Router(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        n = c["n_routed_experts"]
        self.weight = nn.Parameter(torch.empty(n, c["hidden_size"]))
        self.register_buffer("e_score_correction_bias", torch.zeros(n))
        self.register_buffer("load", torch.zeros(n), persistent=False)

    def forward(self, x):
        """x (n_tok, dim) -> weights, experts (n_tok, n_active)."""
        c, n = self.c, self.weight.shape[0]
        with torch.autocast("cpu", enabled=False):
            score = F.linear(x.float(), self.weight).sigmoid()
        with torch.no_grad():
            biased = score + self.e_score_correction_bias
            groups = biased.view(-1, c["n_group"], n // c["n_group"])
            top2 = groups.topk(2, -1)[0].sum(-1)
            keep = top2.topk(c["topk_group"], -1)[1]
            mask = torch.zeros_like(top2).scatter_(1, keep, 1).bool()
            biased = groups.masked_fill(~mask.unsqueeze(-1), -torch.inf)
            expert = biased.flatten(1).topk(c["num_experts_per_tok"], -1)[1]
            if self.training:
                self.load += torch.bincount(expert.flatten(), minlength=n)
        w = score.gather(1, expert)
        if c["norm_topk_prob"]:
            w = w / (w.sum(-1, keepdim=True) + 1e-20)
        return w * c["routed_scaling_factor"], expert

    @torch.no_grad()
    def balance(self, gamma):
        """The aux-loss-free rule: raise the bias of the idle, lower that of
        the busy; selection shifts, the weights of the chosen do not."""
        self.e_score_correction_bias += gamma * torch.sign(
            self.load.mean() - self.load)
        share = self.load.max() / self.load.mean().clamp(min=1)
        self.load.zero_()
        return share.item()


class Experts(nn.Module):
    def __init__(self, c):
        super().__init__()
        n, dim = c["n_routed_experts"], c["hidden_size"]
        width = c["moe_intermediate_size"]
        self.gate_up = nn.Parameter(torch.empty(n, 2 * width, dim))
        self.down = nn.Parameter(torch.empty(n, dim, width))

    def forward(self, x, weight, expert):
        n_tok, k = expert.shape
        order = expert.flatten().argsort(stable=True)
        back = torch.empty_like(order)
        back[order] = torch.arange(order.numel())
        counts = torch.bincount(expert.flatten(),
                                minlength=len(self.gate_up)).tolist()
        rows = Permute.apply(x, order // k, back, k).split(counts)
        out = []
        for r, up, down in zip(rows, self.gate_up, self.down):
            a, b = F.linear(r, up).chunk(2, -1)
            out.append(F.linear(F.silu(a) * b, down))
        y = Permute.apply(torch.cat(out), back, order, 1)
        y = y.view(n_tok, k, -1)
        return (y * weight.unsqueeze(-1).to(y.dtype)).sum(1)


class Moe(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate, self.experts = Router(c), Experts(c)
        self.shared_experts = Mlp(
            c["hidden_size"], c["moe_intermediate_size"]
            * c["n_shared_experts"])

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        weight, expert = self.gate(flat)
        y = self.experts(flat, weight, expert).view(x.shape)
        return y + self.shared_experts(x)


class Layer(nn.Module):
    def __init__(self, c, dense):
        super().__init__()
        dim, eps = c["hidden_size"], c["rms_norm_eps"]
        self.input_layernorm = Norm(dim, eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = Norm(dim, eps)
        self.mlp = Mlp(dim, c["intermediate_size"]) if dense else Moe(c)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Mtp(Layer):
    """Predicts token i+2 from the main model's normed output at i and the
    embedding of token i+1; embedding and head are the main model's."""

    def __init__(self, c):
        super().__init__(c, dense=False)
        dim, eps = c["hidden_size"], c["rms_norm_eps"]
        self.enorm, self.hnorm = Norm(dim, eps), Norm(dim, eps)
        self.eh_proj = linear(2 * dim, dim)
        self.final = Norm(dim, eps)

    def forward(self, h, e, cos, sin):
        x = self.eh_proj(torch.cat([self.enorm(e), self.hnorm(h)], -1))
        return self.final(super().forward(x, cos, sin))


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, dim = c, c["hidden_size"]
        n, dense = c["num_hidden_layers"], c["first_k_dense_replace"]
        self.embed_tokens = nn.Embedding(c["vocab_size"], dim)
        self.layers = nn.ModuleList([Layer(c, i < dense) for i in range(n)])
        self.norm = Norm(dim, c["rms_norm_eps"])
        self.lm_head = linear(dim, c["vocab_size"])
        self.mtp = Mtp(c)
        self.reset()

    def reset(self):
        depth = 2 * self.c["num_hidden_layers"]
        for name, p in self.named_parameters():
            if p.ndim < 2:
                continue
            std = p.shape[-1] ** -0.5
            if "embed" in name or "gate.weight" in name:
                std = 0.02
            elif "o_proj" in name or "down" in name:
                std /= depth ** 0.5
            elif "lm_head" in name:
                std *= 0.5
            nn.init.normal_(p, std=std)

    def angles(self, n, start=0):
        d = self.c["qk_rope_head_dim"]
        freq = self.c["rope_theta"] ** -(torch.arange(0, d, 2) / d)
        a = torch.outer(torch.arange(start, start + n), freq)
        return a.cos(), a.sin()

    def forward(self, ids, start=0):
        """ids (rows, n_tok) -> normed output (rows, n_tok, dim)."""
        cos, sin = self.angles(ids.shape[1], start)
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)

    def loss(self, ids, mask, start=0, with_mtp=True):
        """mask (rows, n_tok): whether a token is to be learned.
        Returns the means of the main and the MTP loss over those tokens."""
        h = self(ids[:, :-1], start)
        main = self.head_loss(h, ids[:, 1:], mask[:, 1:])
        if not with_mtp:
            return main, torch.zeros(())
        cos, sin = self.angles(ids.shape[1] - 2, start)
        h2 = self.mtp(h[:, :-1], self.embed_tokens(ids[:, 1:-1]), cos, sin)
        return main, self.head_loss(h2, ids[:, 2:], mask[:, 2:])

    def head_loss(self, h, target, mask):
        h, target = h[mask], target[mask]
        return F.cross_entropy(self.lm_head(h).float(), target)

    def routers(self):
        return [m for m in self.modules() if isinstance(m, Router)]

    def to_checkpoint(self):
        """name -> bf16 tensor, in the layout of DeepSeek-V3's own files; the
        correction biases stay fp32, as transformers keeps them."""
        out, n = {}, self.c["num_hidden_layers"]
        state = self.state_dict()
        for name, t in state.items():
            if name == "lm_head.weight":
                key = name
            elif name == "mtp.final.weight":
                key = f"model.layers.{n}.shared_head.norm.weight"
            elif name.startswith("mtp."):
                key = f"model.layers.{n}." + name[4:]
            else:
                key = "model." + name
            if key.endswith("correction_bias"):
                out[key] = t.float().contiguous().clone()
                continue
            t = t.to(torch.bfloat16)
            base = key.rsplit(".", 1)[0]
            for e in range(len(t) if ".experts." in key else 0):
                if key.endswith("gate_up"):
                    gate, up = t[e].chunk(2)
                    out[f"{base}.{e}.gate_proj.weight"] = gate.clone()
                    out[f"{base}.{e}.up_proj.weight"] = up.clone()
                else:
                    out[f"{base}.{e}.down_proj.weight"] = t[e].clone()
            if ".experts." not in key:
                out[key] = t.contiguous().clone()
        out[f"model.layers.{n}.embed_tokens.weight"] = \
            out["model.embed_tokens.weight"].clone()
        out[f"model.layers.{n}.shared_head.head.weight"] = \
            out["lm_head.weight"].clone()
        return out
