#!/usr/bin/env bash
# Everything that a machine with a GPU can say, in one call and within limits:
# tests, sanitizers, kernels, models, peers.
#
#   t/bench/cuda/run.sh BUILD [PHASE ..]    check sanitize kernels models peers
#
# `make bench-cuda` builds what it runs; that may be done on another machine.
#
# Full output goes to BUILD/cuda/*.log, or where OUT says; the table comes last.
# CHECK_S and so on bound each phase in seconds.
set -u
cd "$(dirname "$0")/../../.."
build=$1
shift
phases=${*:-check kernels models peers sanitize}
out=${OUT:-$build/cuda}
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

# A line a test: which backend, how many cases passed and failed.
check() {
    for run in ops:cuda ops:cuda:mma ops:cuda:deterministic model:cuda; do
        log="$out/${run//:/-}.log"
        MOE_TEST_BACKEND=${run#*:} limited "${CHECK_S:-120}" \
            "$build/t/cuda/${run%%:*}.gpu" > "$log" 2>&1
        printf '%-24s %3d passed %3d failed %s\n' "$run" \
            "$(grep -c '^ok' "$log")" "$(grep -c '^not ok' "$log")" \
            "$(grep -E '^== |# SKIP' "$log" | tail -1)"
        grep -E '^not ok|^ERROR|^[^ ]+\.cu:[0-9]+|error' "$log" | head -20
    done
}

sanitize() {
    command -v compute-sanitizer > /dev/null \
        || { say 'no compute-sanitizer'; return; }
    for tool in memcheck racecheck initcheck synccheck; do
        MOE_TEST_SMALL=1 limited "${SANITIZE_S:-120}" compute-sanitizer \
            --tool $tool --error-exitcode 3 "$build/t/cuda/ops.gpu" \
            > "$out/$tool.log" 2>&1
        say "$tool: $(grep -E 'SUMMARY|ERROR: |stopped' "$out/$tool.log" \
            | tail -1)"
    done
}

# What the device reaches at best, and then the kernels beside it; those for
# many rows also without warpgroups.
kernels() {
    ceiling
    limited "${KERNELS_S:-150}" "$build/t/bench/cuda/kernels" \
        > "$out/kernels.log" 2>&1
    limited "${KERNELS_S:-150}" "$build/t/bench/cuda/kernels" cuda:mma 2048 \
        2>&1 | grep -v 'cuda\.copy' >> "$out/kernels.log"
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

peers() {
    has_torch || { say 'no PyTorch: no peers'; return; }
    peer t/data/configs/deepseek-v2-lite
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
grep -E '^bench cuda\.(copy|product|.*transformers)' "$out/bench.log"
exit 0
