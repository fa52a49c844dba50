#!/usr/bin/env python3
"""Makes t/data/model/: tiny random models in Hugging Face's layout, and what
transformers (float32, eager, CPU) computes with them.

    python3 t/tools/make_model_goldens.py [NAME...]

Needs torch, safetensors and a transformers of after 2026-07-20: before, its
DeepseekV2Attention left out YaRN's mscale (pull request 47435).

golden.json of a model: the tokens of one sequence; the argmax after each of
them; and the rows of logits at some positions.  transformers computes them in
one prefill and again token by token with its cache; the script fails where the
two differ.  Weights are drawn so that each branch matters: projections with
variance 1/fan-in, norms about 1, router biases large enough to be felt.
"""

import json
import math
import os
import shutil
import sys

import torch
import transformers
from safetensors.torch import save_file
from transformers import (DeepseekV2Config, DeepseekV2ForCausalLM,
                          DeepseekV3Config, DeepseekV3ForCausalLM,
                          MixtralConfig, MixtralForCausalLM, OlmoeConfig,
                          OlmoeForCausalLM, Qwen3MoeConfig,
                          Qwen3MoeForCausalLM)

OUT = os.path.join(os.path.dirname(__file__), "..", "data", "model")

BASE = dict(
    vocab_size=128, hidden_size=32, intermediate_size=56, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=4, n_shared_experts=1,
    n_routed_experts=8, routed_scaling_factor=1.0, kv_lora_rank=24,
    q_lora_rank=None, qk_rope_head_dim=8, v_head_dim=12, qk_nope_head_dim=16,
    num_experts_per_tok=2, moe_intermediate_size=20, first_k_dense_replace=1,
    moe_layer_freq=1, hidden_act="silu", max_position_embeddings=4096,
    rms_norm_eps=1e-6, tie_word_embeddings=False, rope_theta=10000,
    attention_bias=False, bos_token_id=0, eos_token_id=1)

V2 = dict(BASE, model_type="deepseek_v2",
          architectures=["DeepseekV2ForCausalLM"], scoring_func="softmax",
          topk_method="greedy", norm_topk_prob=False, n_group=1, topk_group=1)

V3 = dict(BASE, model_type="deepseek_v3",
          architectures=["DeepseekV3ForCausalLM"], scoring_func="sigmoid",
          topk_method="noaux_tc", norm_topk_prob=True, n_group=4,
          topk_group=2, q_lora_rank=20, routed_scaling_factor=2.5)

# Grouped-query attention: heads are a multiple of 16 wide.
GQA = dict(
    vocab_size=128, hidden_size=32, num_hidden_layers=3,
    num_attention_heads=6, num_key_value_heads=2, head_dim=16,
    num_experts_per_tok=3, hidden_act="silu", max_position_embeddings=4096,
    rms_norm_eps=1e-6, tie_word_embeddings=False, rope_theta=1000000.0,
    bos_token_id=0, eos_token_id=1)

QWEN3 = dict(GQA, model_type="qwen3_moe",
             architectures=["Qwen3MoeForCausalLM"], intermediate_size=56,
             moe_intermediate_size=20, num_experts=8, norm_topk_prob=True,
             decoder_sparse_step=1, mlp_only_layers=[], attention_bias=False,
             use_sliding_window=False, sliding_window=None)


def yarn(factor, mscale, **more):
    return dict(dict(type="yarn", factor=factor, mscale=mscale,
                     mscale_all_dim=mscale, beta_fast=32, beta_slow=1,
                     original_max_position_embeddings=64), **more)


# name: (config, options)
MODELS = {
    # V2-Lite: softmax, greedy, no q_lora, YaRN with mscale 0.707
    "v2_lite": (dict(V2, rope_scaling=yarn(40, 0.707), torch_dtype="bfloat16",
                     num_experts_per_tok=3, n_shared_experts=2),
                dict(n_tok=1100)),
    # V2: groups by their maximum, q_lora, scale 16 (here 4)
    "v2_groups": (dict(V2, topk_method="group_limited_greedy", n_group=4,
                       topk_group=2, q_lora_rank=20, n_routed_experts=16,
                       num_experts_per_tok=3, moe_intermediate_size=12,
                       routed_scaling_factor=4.0,
                       rope_scaling=yarn(40, 0.707)), dict(n_tok=300)),
    # V3: noaux_tc with groups, q_lora, YaRN with mscale 1.0; sharded
    "v3": (dict(V3, rope_scaling=yarn(40, 1.0), n_routed_experts=16,
                num_experts_per_tok=4, moe_intermediate_size=12),
           dict(n_tok=1100, shards=3)),
    # Moonlight: one group, no YaRN, eps 1e-5 (but not of the latents' norms)
    "moonlight": (dict(V3, n_group=1, topk_group=1, q_lora_rank=None,
                       rms_norm_eps=1e-2, rope_theta=50000.0,
                       routed_scaling_factor=2.446, n_shared_experts=2),
                  dict(n_tok=300, small_latent=True)),
    # Kimi-K2: beta_fast == beta_slow, numbers written as 32.0
    "kimi": (dict(V3, model_type="kimi_k2", n_group=1, topk_group=1,
                  rope_theta=50000.0, routed_scaling_factor=2.827,
                  rope_scaling=yarn(32.0, 1.0, beta_fast=1.0, beta_slow=1.0,
                                    original_max_position_embeddings=64.0),
                  num_nextn_predict_layers=0), dict(n_tok=600)),
    # OpenSeek-Small: tied, MTP declared but absent, fused experts, v5's keys
    "openseek": ({k: v for k, v in
                  dict(V3, n_group=1, topk_group=1, q_lora_rank=None,
                       rope_parameters=dict(rope_type="default",
                                            rope_theta=1e6),
                       tie_word_embeddings=True, num_nextn_predict_layers=1,
                       routed_scaling_factor=2.446, dtype="bfloat16").items()
                  if k != "rope_theta"}, dict(n_tok=300, fused=True)),
    # V3 in FP8, blocks of 128, sizes that are not multiples of it
    "v3_fp8": (dict(V3, hidden_size=144, intermediate_size=200,
                    num_hidden_layers=2, n_routed_experts=4, n_group=2,
                    topk_group=1, moe_intermediate_size=136, v_head_dim=36,
                    quantization_config=dict(
                        quant_method="fp8", fmt="e4m3",
                        activation_scheme="dynamic",
                        weight_block_size=[128, 128])),
               dict(n_tok=120, fp8="f32")),
    # V3.1: scales are powers of two, in a dtype of their own; odd blocks
    "v31_ue8m0": (dict(V3, quantization_config=dict(
                          quant_method="fp8", fmt="e4m3", scale_fmt="ue8m0",
                          activation_scheme="dynamic",
                          weight_block_size=[16, 24])),
                  dict(n_tok=120, fp8="e8m0")),
    # Fused experts in FP8: blocks start anew at each expert
    "fused_fp8": (dict(V3, quantization_config=dict(
                          quant_method="fp8", fmt="e4m3",
                          weight_block_size=[16, 16])),
                  dict(n_tok=120, fp8="f32", fused=True)),
    "f16": (dict(V3, torch_dtype="float16"), dict(n_tok=120, dtype="f16")),
    # FP32 weights; rotate_half instead of interleaved pairs; MoE every 2nd
    "f32_halves": (dict(V3, rope_interleave=False, torch_dtype="float32",
                        num_hidden_layers=2), dict(n_tok=300, dtype="f32")),
    # An MTP layer and old rotary frequencies in the file, to be passed over
    "mtp": (dict(V3, num_nextn_predict_layers=1, num_hidden_layers=2),
            dict(n_tok=120, mtp=True)),
    # Biased scores below 0, so that masked groups must be -inf, not 0; and
    # experts in equal pairs, so that ties are everywhere
    "ties": (dict(V3, n_routed_experts=16, num_experts_per_tok=3,
                  moe_intermediate_size=12), dict(n_tok=300, ties=True)),
    # Sizes that are not multiples of anything
    "odd": (dict(V3, vocab_size=101, hidden_size=37, intermediate_size=53,
                 num_attention_heads=3, num_key_value_heads=3,
                 kv_lora_rank=19, q_lora_rank=13, qk_rope_head_dim=6,
                 qk_nope_head_dim=11, v_head_dim=7, moe_intermediate_size=9,
                 n_shared_experts=3), dict(n_tok=300)),
    # Qwen3-30B-A3B: every layer has experts, weights add up to 1
    "qwen3": (dict(QWEN3, torch_dtype="bfloat16"), dict(n_tok=600)),
    # A dense layer by name and every other; tied, fused, YaRN, not normed; a
    # head as wide as the residual stream is divided
    "qwen3_mixed": ({k: v for k, v in
                     dict(QWEN3, hidden_size=64, num_attention_heads=4,
                          num_key_value_heads=4, num_hidden_layers=4,
                          decoder_sparse_step=2, mlp_only_layers=[1],
                          norm_topk_prob=False, tie_word_embeddings=True,
                          rope_theta=10000,
                          rope_scaling=dict(
                              rope_type="yarn", factor=4.0,
                              original_max_position_embeddings=64)).items()
                     if k != "head_dim"}, dict(n_tok=300, fused=True)),
    # OLMoE: the norms are of all heads
    "olmoe": ({k: v for k, v in
               dict(GQA, model_type="olmoe", hidden_size=64,
                    architectures=["OlmoeForCausalLM"], intermediate_size=20,
                    num_attention_heads=4, num_experts=8, clip_qkv=None,
                    norm_topk_prob=False, rms_norm_eps=1e-5,
                    attention_bias=False).items()
               if k != "head_dim"}, dict(n_tok=300)),
    # Mixtral: no norms, other names
    "mixtral": (dict(GQA, model_type="mixtral", num_attention_heads=8,
                     architectures=["MixtralForCausalLM"], num_hidden_layers=2,
                     intermediate_size=36, num_local_experts=4,
                     num_experts_per_tok=2, num_key_value_heads=1,
                     sliding_window=None), dict(n_tok=300)),
}

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}


def make_model(config):
    cls = {
        "deepseek_v2": (DeepseekV2Config, DeepseekV2ForCausalLM),
        "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
        "olmoe": (OlmoeConfig, OlmoeForCausalLM),
        "mixtral": (MixtralConfig, MixtralForCausalLM),
    }.get(config["model_type"], (DeepseekV3Config, DeepseekV3ForCausalLM))
    known = {k: v for k, v in config.items()
             if k not in ("model_type", "quantization_config", "torch_dtype",
                          "dtype")}
    rope = known.get("rope_scaling")
    if rope and isinstance(rope["original_max_position_embeddings"], float):
        known["rope_scaling"] = dict(
            rope, original_max_position_embeddings=int(
                rope["original_max_position_embeddings"]))
    hf = cls[0](**known)
    hf._attn_implementation = "eager"
    model = cls[1](hf).to(torch.float32).eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model


@torch.no_grad()
def fill(model, opt, gen):
    for name, p in model.state_dict().items():
        if name.endswith("e_score_correction_bias"):
            p.copy_(torch.randn(p.shape, generator=gen) * 0.3)
            if opt.get("ties"):
                p.sub_(1.5)             # biased scores are all negative
                p[1::2] = p[0::2]
        elif "norm" in name:
            p.copy_(1 + 0.2 * torch.randn(p.shape, generator=gen))
        elif "embed" in name or "lm_head" in name:
            p.copy_(torch.randn(p.shape, generator=gen) * 0.5)
        else:
            p.copy_(torch.randn(p.shape, generator=gen)
                    / math.sqrt(p.shape[-1]))
        if opt.get("small_latent") and "kv_a_proj" in name:
            p.mul_(2e-3)                # now eps 1e-6 and 1e-5 differ
        if opt.get("ties") and ("experts.gate_up" in name
                                or "experts.down" in name
                                or name.endswith("mlp.gate.weight")):
            p[1::2] = p[0::2]


def e4m3(bits):
    """The value of an e4m3fn byte, from its definition."""
    sign = -1.0 if bits & 0x80 else 1.0
    exponent, fraction = bits >> 3 & 15, bits & 7
    if bits & 0x7f == 0x7f:
        return float("nan")
    if exponent == 0:
        return sign * fraction / 8 * 2.0 ** -6
    return sign * (1 + fraction / 8) * 2.0 ** (exponent - 7)


E4M3 = torch.tensor([e4m3(b) for b in range(256)], dtype=torch.float64)


def quantise(w, block, kind):
    """(n, k) to e4m3 bytes, block scales and the values that they mean."""
    n, k = w.shape
    rows, cols = -(-n // block[0]), -(-k // block[1])
    scale = torch.zeros(rows, cols)
    value = torch.zeros(n, k, dtype=torch.float64)
    stored = torch.zeros(n, k, dtype=torch.float8_e4m3fn)
    for i in range(rows):
        for j in range(cols):
            r = slice(i * block[0], min(n, (i + 1) * block[0]))
            c = slice(j * block[1], min(k, (j + 1) * block[1]))
            s = w[r, c].abs().max().item() / 448
            if kind == "e8m0":
                s = 2.0 ** math.ceil(math.log2(s))
            scale[i, j] = s
            stored[r, c] = (w[r, c] / scale[i, j]).to(torch.float8_e4m3fn)
            value[r, c] = (E4M3[stored[r, c].view(torch.uint8).long()]
                           * scale[i, j].double())
    if kind == "e8m0":
        scale = scale.to(torch.float8_e8m0fnu)
    return stored, scale, value.to(torch.float32)


def is_fp8(name):
    return (name.endswith("_proj.weight") or "proj_with_mqa" in name
            or ".experts." in name)


@torch.no_grad()
def disk_tensors(model, config, opt):
    """The file's tensors; rounds the model's own to what they say."""
    dtype = DTYPES[opt.get("dtype", "bf16")]
    block = config.get("quantization_config", {}).get("weight_block_size")
    out = {}

    def put(name, p):
        if config["model_type"] == "mixtral":
            name = name.replace(".mlp.", ".block_sparse_moe.")
            for ours, file in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
                name = name.replace(f".{ours}_proj.", f".{file}.")
        if name.endswith("e_score_correction_bias"):
            out[name] = p.clone()
        elif opt.get("fp8") and is_fp8(name) and p.dim() == 3:
            q = [quantise(e, block, opt["fp8"]) for e in p]
            out[name] = torch.stack([x[0] for x in q])
            out[name + "_scale_inv"] = torch.stack([x[1] for x in q])
            p.copy_(torch.stack([x[2] for x in q]))
        elif opt.get("fp8") and is_fp8(name):
            out[name], out[name + "_scale_inv"], value = quantise(
                p, block, opt["fp8"])
            p.copy_(value)
        else:
            out[name] = p.to(dtype)
            p.copy_(out[name].to(torch.float32))

    for name, p in model.state_dict().items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        if ".mlp.experts." in name and not opt.get("fused"):
            stem = name.rsplit(".", 1)[0]
            for e in range(p.shape[0]):
                if name.endswith("gate_up_proj"):
                    half = p.shape[1] // 2
                    put(f"{stem}.{e}.gate_proj.weight", p[e, :half])
                    put(f"{stem}.{e}.up_proj.weight", p[e, half:])
                else:
                    put(f"{stem}.{e}.down_proj.weight", p[e])
        else:
            put(name, p)

    if opt.get("mtp"):
        h = config["hidden_size"]
        stem = f"model.layers.{config['num_hidden_layers']}."
        out[stem + "enorm.weight"] = torch.ones(h)
        out[stem + "eh_proj.weight"] = torch.zeros(h, 2 * h)
        out[stem + "embed_tokens.weight"] = torch.zeros(4, h)
        out[stem + "shared_head.head.weight"] = torch.zeros(4, h)
        out["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        out[stem + "counter"] = torch.ones(2, dtype=torch.int64)

    return {k: v.contiguous() for k, v in out.items()}


def write_model(path, config, tensors, shards):
    shutil.rmtree(path, ignore_errors=True)
    os.makedirs(path)
    with open(f"{path}/config.json", "w") as f:
        json.dump(config, f, indent=1)
        f.write("\n")
    if shards == 1:
        save_file(tensors, f"{path}/model.safetensors", {"format": "pt"})
        return
    names = sorted(tensors)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = names[i::shards]
        save_file({n: tensors[n] for n in part}, f"{path}/{file}")
        weight_map.update({n: file for n in part})
    with open(f"{path}/model.safetensors.index.json", "w") as f:
        json.dump({"metadata": {}, "weight_map": weight_map}, f, indent=0)


@torch.no_grad()
def run(model, n_tok, vocab, gen):
    ids = torch.randint(0, vocab, (1, n_tok), generator=gen)
    whole = model(ids).logits[0]
    cache, steps = None, []
    for i in range(min(n_tok, 160)):
        r = model(ids[:, i:i + 1], past_key_values=cache, use_cache=True)
        cache = r.past_key_values
        steps.append(r.logits[0, -1])
    steps = torch.stack(steps)
    span = (whole.max() - whole.min()).item()
    apart = (steps - whole[:len(steps)]).abs().max().item() / span
    assert apart < 1e-4, f"prefill and decode differ by {apart}"
    at = sorted({p for p in (0, 1, 2, 63, 64, 65, 100, 119, 299, 599, 1099)
                 if p < n_tok})
    return {
        "tokens": ids[0].tolist(),
        "range": span,
        "argmax": whole.argmax(-1).tolist(),
        "positions": at,
        "logits": [[float(f"{x:.7g}") for x in whole[p].tolist()]
                   for p in at],
    }


def main():
    torch.set_num_threads(1)
    for seed, (name, (config, opt)) in enumerate(MODELS.items()):
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        gen = torch.Generator().manual_seed(1000 + seed)
        model = make_model(config)
        fill(model, opt, gen)
        tensors = disk_tensors(model, config, opt)
        path = os.path.join(OUT, name)
        write_model(path, config, tensors, opt.get("shards", 1))
        golden = run(model, opt["n_tok"], config["vocab_size"], gen)
        golden["transformers"] = transformers.__version__
        with open(f"{path}/golden.json", "w") as f:
            json.dump(golden, f, separators=(",", ":"))
            f.write("\n")
        size = sum(os.path.getsize(f"{path}/{f}") for f in os.listdir(path))
        print(f"{name}: {size} bytes, range {golden['range']:.2f}")


if __name__ == "__main__":
    main()
