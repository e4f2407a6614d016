#!/usr/bin/env bash
# Checks and times all that a GPU does, in one call of under 10 minutes, with no network:
#
#     benchmarks/gpu.sh OUT [WHEELS]
#
# Needs torch 2.11 or later for the GPU, and what pyproject.toml lists; what is missing is installed from the folder WHEELS
# into OUT. Writes a log a step to OUT, and OUT/results.md: each figure beside what is asked. Ends with 1 where a step failed
# or a figure falls short.
set -uo pipefail
[ $# -ge 1 ] || { echo "usage: benchmarks/gpu.sh OUT [WHEELS]" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
wheels=${2:+$(cd "$2" && pwd)}
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 MPLBACKEND=agg NUMBA_CACHE_DIR=$out/numba
if [ -n "$wheels" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --find-links "$wheels" --target "$out/packages" "$wheels"/*.whl || exit 1
    PYTHONPATH=$PWD:$out/packages
fi
"$python" -c 'import torch; assert torch.cuda.is_available()' || { echo "benchmarks/gpu.sh: torch sees no GPU here" >&2; exit 1; }

failed=0
step() { # name seconds command...
    local name=$1 seconds=$2 began=$SECONDS
    shift 2
    if timeout "$seconds" "$@" > "$out/$name.log" 2>&1; then
        echo "$name: done in $((SECONDS - began)) s"
    else
        echo "$name: FAILED with $? after $((SECONDS - began)) s, see $out/$name.log"
        failed=1
    fi
}

step facts 30 "$python" benchmarks/gpu_results.py facts
step tests 150 "$python" -m pytest -q -p no:cacheprovider tests/test_engine.py tests/test_dataset.py tests/test_state.py -k "gpu or device"
for features in 20 40; do
    step "corpus-$features" 60 "$python" benchmarks/gpu_results.py corpus "$out/corpus-$features" --num_features "$features"
done
bench() { # name arguments...
    local name=$1
    shift
    step "$name" 60 "$python" -m spkid_dist.bench "$@" --repeats 3
}
bench limits limits --shards "$out/corpus-20/train"
bench stream stream --shards "$out/corpus-20/train"
for features in 20 40; do
    shards=$out/corpus-$features/train
    for size in 1000 65536; do
        bench "train-$features-$size-fp32-graph" train --shards "$shards" --batch_size "$size" --engine graph
        bench "train-$features-$size-bf16-graph" train --shards "$shards" --batch_size "$size" --engine graph --mixed_precision bf16
    done
done
bench train-40-1000-fp32-eager train --shards "$out/corpus-40/train" --engine eager
for engine in eager graph; do
    step "epochs-$engine" 60 "$python" -m spkid_dist.train --tr_shards "$out/corpus-40/train" --va_shards "$out/corpus-40/test" \
        --epoch 20 --patience 20 --log_freq 1000 --engine "$engine" --save_path "$out/epochs-$engine" --overwrite
done
"$python" benchmarks/gpu_results.py report "$out" || failed=1
rm -rf "$out/packages" "$out/numba" "$out"/corpus-*/ "$out"/epochs-*/
exit "$failed"
