"""What other code reaches on the same GPU: a large product through PyTorch, and
transformers on the same shape with random weights.  Prints bench lines.

    python3 t/bench/cuda/peer.py ceiling | t/data/configs/SHAPE
"""
import sys
import time

import torch


def ceiling():
    n = 8192
    a = torch.randn(n, n, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(n, n, device="cuda", dtype=torch.bfloat16)
    best = 1e9
    for i in range(13):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(5):
            a @ b
        torch.cuda.synchronize()
        if i > 2:
            best = min(best, (time.perf_counter() - start) / 5)
    print(f"bench cuda.product_bf16 {2 * n ** 3 / best / 1e12:.4g} TFLOP/s")


def transformers(path):
    from transformers import AutoConfig, AutoModelForCausalLM
    config = AutoConfig.from_pretrained(path)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(1000, (1, 1024), device="cuda")
    name = path.rstrip("/").split("/")[-1]
    with torch.inference_mode():
        for n in (1, 8):
            out = model(ids.expand(n, -1).contiguous(), use_cache=True)
            cache, last = out.past_key_values, ids[:, -1:].expand(n, -1)
            steps, start = 0, 0
            while True:
                if steps == 5:
                    torch.cuda.synchronize()
                    start = time.perf_counter()
                out = model(last, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                last = out.logits[:, -1:].argmax(-1)
                steps += 1
                if steps > 25:
                    break
            torch.cuda.synchronize()
            rate = n * (steps - 5) / (time.perf_counter() - start)
            print(f"bench cuda.{name}.transformers_decode_{n}_ctx_1024 "
                  f"{rate:.5g} tok/s")


if sys.argv[1] == "ceiling":
    ceiling()
else:
    transformers(sys.argv[1])
