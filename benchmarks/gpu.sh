#!/usr/bin/env bash
# Checks and times all that a GPU does, in one call of about 8 minutes, with no network:
#
#     benchmarks/gpu.sh OUT [WHEELS]
#     benchmarks/gpu.sh OUT --toy     every step tiny, on a CPU
#
# Needs torch 2.11 or later for the GPU, and what pyproject.toml lists; what is missing is installed from the folder WHEELS
# into OUT. Writes a log a step to OUT, OUT/gpu.json and OUT/results.md: each figure beside what is asked. Ends with 1 where a
# figure falls short. README's table of a GPU comes from benchmarks/results/gpu.json: copy OUT/gpu.json there.
set -uo pipefail
[ $# -ge 1 ] || { echo "usage: benchmarks/gpu.sh OUT [WHEELS | --toy]" >&2; exit 2; }
mkdir -p "$1"
out=$(cd "$1" && pwd)
toy=()
wheels=
case "${2:-}" in
    --toy) toy=(--toy) ;;
    ?*) wheels=$(cd "$2" && pwd) ;;
esac
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-python3}
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 MPLBACKEND=agg NUMBA_CACHE_DIR=$out/numba
if [ -n "$wheels" ]; then
    "$python" -m pip install --quiet --no-index --no-deps --find-links "$wheels" --target "$out/packages" "$wheels"/*.whl || exit 1
    PYTHONPATH=$PWD:$out/packages
fi
if [ ${#toy[@]} -eq 0 ] && ! "$python" -c 'import torch; assert torch.cuda.is_available()'; then
    echo "benchmarks/gpu.sh: torch sees no GPU here" >&2
    exit 1
fi
"$python" benchmarks/gpu_results.py run "$out" "${toy[@]}"
code=$?
rm -rf "$out/packages" "$out/numba" "$out"/corpus-*/ "$out"/epochs-*/
exit "$code"
