#!/usr/bin/env bash
# Everything that a machine with a GPU can say, in one call and within limits:
# tests, sanitizers, kernels, models, peers.
#
#   t/bench/cuda/run.sh BUILD [PHASE ..]    check sanitize kernels models peers
#
# `make bench-cuda` builds what it runs; `make bench-cuda-pack` does for another
# machine.
#
# Full output goes to BUILD/cuda/*.log, or where OUT says; the table comes last,
# and then the goals beside what these phases have measured.  CHECK_S and so on
# bound each step of a phase in seconds; JOBS steps that time nothing run at a
# time.  So a phase ends within ten minutes where there are six cores.
#
# PEER=path/to/llama-bench, of a llama.cpp that was built for this GPU, is one
# more peer: the same weights, in a file of BUILD/peer that is written first.
set -u
cd "$(dirname "$0")/../../.."
build=$1
shift
phases=${*:-check kernels models peers sanitize}
out=${OUT:-$build/cuda}
jobs=${JOBS:-$(($(nproc) < 6 ? $(nproc) : 6))}
mkdir -p "$out"
: > "$out/bench.log"

say() {
    printf '== %s\n' "$*"
}

limited() {
    timeout -k 5 "$1" "${@:2}"
    case $? in
        0) ;;
        124 | 137) say "stopped after $1 s" ;;
        *) say "failed, status $?" ;;
    esac
}

# Waits where as many steps run as shall at a time.
queue() {
    while [ "$(jobs -pr | wc -l)" -ge "$jobs" ]; do
        wait -n
    done
}

# A line a test: which backend, how many cases passed and failed.
check() {
    local runs=({ops,step,attention}:cuda model:cuda
                {ops,step,attention}:cuda:{unpaired,mma,deterministic})

    for run in "${runs[@]}"; do
        queue
        MOE_TEST_BACKEND=${run#*:} limited "${CHECK_S:-180}" \
            "$build/t/cuda/${run%%:*}.gpu" > "$out/${run//:/-}.log" 2>&1 &
    done
    wait

    for run in "${runs[@]}"; do
        log="$out/${run//:/-}.log"
        printf '%-29s %3d passed %3d failed %s\n' "$run" \
            "$(grep -c '^ok' "$log")" "$(grep -c '^not ok' "$log")" \
            "$(grep -E '^== |# SKIP' "$log" | tail -1)"
        grep -E '^not ok|^ERROR|^[^ ]+\.cu:[0-9]+|error' "$log" | head -20
    done
}

sanitize() {
    command -v compute-sanitizer > /dev/null \
        || { say 'no compute-sanitizer'; return; }

    local runs=({memcheck,racecheck,initcheck,synccheck}-{ops,step,attention})

    for run in "${runs[@]}"; do
        queue
        MOE_TEST_SMALL=1 limited "${SANITIZE_S:-270}" compute-sanitizer \
            --tool "${run%-*}" --error-exitcode 3 \
            "$build/t/cuda/${run#*-}.gpu" > "$out/$run.log" 2>&1 &
    done
    wait

    for run in "${runs[@]}"; do
        say "$run: $(grep -E 'SUMMARY|ERROR: |stopped' "$out/$run.log" \
            | tail -1)"
    done
}

# What the device reaches at best, and then the kernels beside it; those for
# many rows, and attention, also without clusters and without warpgroups.
kernels() {
    ceiling
    limited "${KERNELS_S:-150}" "$build/t/bench/cuda/kernels" \
        > "$out/kernels.log" 2>&1
    for kind in unpaired mma; do
        limited "${KERNELS_S:-150}" "$build/t/bench/cuda/kernels" cuda:$kind \
            2048 2>&1 | grep -v 'cuda\.copy' >> "$out/kernels.log"
    done
    cat "$out/kernels.log" >> "$out/bench.log"
}

models() {
    grep -q cuda.copy "$out/bench.log" || limited 30 \
        "$build/t/bench/cuda/kernels" copy >> "$out/bench.log" 2>&1
    COPY_GB_S=${COPY_GB_S:-$(awk '$2 == "cuda.copy" { print $3 }' \
        "$out/bench.log")}
    export COPY_GB_S
    {
        limited "${MODELS_S:-240}" "$build/t/bench/cuda/model"
        QUANT=fp8 limited "${MODELS_S:-240}" "$build/t/bench/cuda/model" \
            deepseek-v2-lite
    } > "$out/models.log" 2>&1
    cat "$out/models.log" >> "$out/bench.log"
}

has_torch() {
    command -v python3 > /dev/null && python3 -c 'import torch' 2> /dev/null
}

peer() {
    limited "${PEERS_S:-120}" python3 t/bench/cuda/peer.py "$1" \
        > "$out/peer.log" 2>&1
    grep ^bench "$out/peer.log" >> "$out/bench.log" || tail -3 "$out/peer.log"
}

ceiling() {
    has_torch || { say 'no PyTorch: no ceiling of products'; return; }
    peer ceiling
    PRODUCT_TFLOP_S=$(awk '$2 == "cuda.product_bf16" { print $3 }' \
        "$out/bench.log" | tail -1)
    export PRODUCT_TFLOP_S
}

# llama.cpp on weights of seed 1 as this type.
llama() {
    local shape=$1 type=$2 file="$build/peer/$1-$2.gguf"

    mkdir -p "$build/peer"
    [ -e "$file" ] || {
        limited "${GGUF_S:-200}" "$build/t/tools/gguf" \
            "t/data/configs/$shape" "$file.new" "$type" 1 \
            && mv "$file.new" "$file"
    } || { say "$file: not written"; return; }

    for args in '-p 2048,8192 -n 0' '-p 0 -n 64 -d 1024,8192'; do
        limited "${PEERS_S:-120}" "$PEER" -m "$file" -ngl 99 -fa 1 -r 3 \
            -o jsonl $args 2> "$out/llama.log"
    done | perl -MJSON::PP -ne '
        next if !/^\{/;
        my $r = decode_json($_);
        printf "bench cuda.%s.llama_%s_%s %.5g tok/s\n", @what,
            $r->{n_prompt} ? "prefill_$r->{n_prompt}"
                           : "decode_1_ctx_$r->{n_depth}", $r->{avg_ts};
        BEGIN { @what = splice @ARGV, 0, 2 }' "$shape" "$type" \
        > "$out/llama.bench"
    cat "$out/llama.bench" >> "$out/bench.log"
    [ -s "$out/llama.bench" ] || tail -3 "$out/llama.log"
}

peers() {
    if has_torch; then
        peer t/data/configs/deepseek-v2-lite
    else
        say 'no PyTorch: no transformers beside it'
    fi

    if [ -n "${PEER:-}" ]; then
        llama deepseek-v2-lite bf16
        llama deepseek-v2-lite q8_0
    else
        say 'no PEER: no llama.cpp beside it'
    fi
}

# What each goal is, beside what was measured.
goals() {
    awk '
    $1 == "bench" { value[$2] = $3 }
    function put(what, got, goal, unit) {
        if (got == "") {
            printf "| %-40s not measured\n", what
        } else {
            printf "| %-40s %10.4g of %6g %-8s %s\n", what, got, goal, unit,
                (got + 0 >= goal) ? "yes" : "NO"
        }
    }
    function tell(what, name, goal, unit) {
        name = "cuda." name
        put(what, (name in value) ? value[name] : "", goal, unit)
    }
    function copies(what, name) {
        name = "cuda." name ".rate"
        put(what, (name in value) ? value[name] / copy * 100 : "", 85,
            "% copy")
    }
    END {
        v2 = "deepseek-v2-lite."
        copy = (value["cuda.copy"] > 0) ? value["cuda.copy"] : 1e9
        ours = value["cuda." v2 "bf16.decode_1_ctx_1024"]
        peer = value["cuda." v2 "transformers_decode_1_ctx_1024"]
        tell("decode, 1, bf16", v2 "bf16.decode_1_ctx_1024", 734, "tok/s")
        tell("decode, 1, fp8", v2 "fp8.decode_1_ctx_1024", 1080, "tok/s")
        tell("decode, 64, bf16", v2 "bf16.decode_64_ctx_1024", 5600, "tok/s")
        put("decode, 1, bf16, over transformers",
            (peer > 0 && ours > 0) ? ours / peer : "", 10, "times")
        tell("prefill 8k, bf16", v2 "bf16.prefill_8192", 90000, "tok/s")
        copies("MLA, 16 heads, 64 x 8k", "mla_16.64x1x8192")
        copies("MLA, 128 heads, 64 x 8k", "mla_128.64x1x8192")
        copies("GQA, 32 heads to 4, 64 x 8k", "gqa_32_4.64x1x8192")
        tell("MLA, 128 heads, 64 x 2 x 8k", "mla_128.64x2x8192.flops", 550,
             "TFLOP/s")
        tell("MoE product, 8k rows, bf16", "moe_v2_lite_routed.8192.flops",
             600, "TFLOP/s")
        tell("MoE product, 8k rows, fp8", "moe_fp8_v2_lite_routed.8192.flops",
             1000, "TFLOP/s")

        for (n = 1; n <= 8; n *= 2) {
            copies("MoE, " n " tokens, bf16", "moe_v2_lite." n)
            copies("MoE, " n " tokens, fp8", "moe_fp8_v2_lite." n)
        }
    }' "$out/bench.log"
}

printf '%s, commit %s\n' "$(date -u +%F)" \
    "$(git rev-parse --short HEAD 2> /dev/null || echo none)"
nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem \
    --format=csv,noheader 2> /dev/null || say 'no nvidia-smi'

for phase in $phases; do
    say "$phase"
    $phase
done

grep '^|' "$out/bench.log" | cut -c3-
goals
grep -E '^bench cuda\.(copy|product|.*(transformers|llama_))' "$out/bench.log"
exit 0
