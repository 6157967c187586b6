#!/usr/bin/env bash
# The GPU's part of benchmarks/rl_step.py, in pieces that each end within ten minutes on an H200.
#
#   benchmarks/gpu.sh pack FOLDER [PYTHON_VERSION]  where there is a network: packages and a tokenizer into FOLDER
#   benchmarks/gpu.sh PIECE FOLDER OUT              on the GPU's machine, which needs no network; see benchmarks/README.md
#   benchmarks/gpu.sh combine OUT                   all pieces in OUT as one report a model, with its plot
#
# PIECE is one of: search, b4, b4-default, b8, b8-default, ceilings; with MODEL=qwen3-1.7b the larger shape.
set -euo pipefail
cd "$(dirname "$0")/.."
model=${MODEL:-qwen3-0.6b}
# Whatever the machine does not have of these is taken from the folder; torch and transformers are expected there.
packages=(trl==1.16.* datasets dill multiprocess xxhash pydantic pydantic-core annotated-types typing-inspection
  boto3 botocore s3transfer jmespath)

if [ "$1" = pack ]; then
  python3 -m pip download --quiet --dest "$2/wheels" --no-deps --only-binary=:all: --implementation cp \
    --python-version "${3:-3.12}" --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 "${packages[@]}"
  checkpoint=$(PYTHONPATH=. python3 -c "
from rest_core.config import EMBEDDED_MODEL
from rest_core.model.loading import resolve
print(resolve(EMBEDDED_MODEL))")
  mkdir -p "$2/tokenizer"
  find "$checkpoint" -maxdepth 1 -type f ! -name '*.safetensors' -exec cp -t "$2/tokenizer" {} +
  du -sh "$2"
  exit
fi

if [ "$1" = combine ]; then
  for model in qwen3-0.6b qwen3-1.7b; do
    parts=()
    for piece in b4 b4-default b8 b8-default ceilings; do
      for file in "$2"/rl_step-*-"$model-$piece.json"; do [ ! -e "$file" ] || parts+=("$file"); done
    done
    [ ${#parts[@]} = 0 ] || PYTHONPATH=. python3 benchmarks/rl_step.py --combine "${parts[@]}" --name "$model"
  done
  exit
fi

piece=$1 folder=$2 out=$3
site=${TMPDIR:-/tmp}/rl-step-site
[ -d "$site" ] || python3 -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$folder"/wheels/*.whl
export PYTHONPATH="$PWD:$site" PYTHONUNBUFFERED=1
ours=${OURS:-"{rollout_batch_tokens: 400000, micro_batch_tokens: 32768}"}
run() {
  python3 benchmarks/rl_step.py --device cuda --model "random:$model" --tokenizer "$folder/tokenizer" \
    --output "$out" --ours "$ours" --name "$model-$piece" "$@"
}
# What `search` found on this machine, if it has been run; else the settings that the benchmark knows.
best() {
  local file
  file=$(ls "$out"/trl-*-"$model-search.json" 2>/dev/null | head -1) || true
  [ -z "$file" ] || python3 -c "import json; print(json.dumps(json.load(open('$file'))['search']['b4']['best']['settings']))"
}
found=$(best)
case "$piece" in
  search) run --search --work b4 --prompts 16 --steps 1 ;;
  b4 | b8) run --work "$piece" --arms ours,trl-best ${found:+--trl-best "$found"} ;;
  b4-default | b8-default) run --work "${piece%-default}" --arms ours,trl-default ;;
  ceilings) run --work none --decode --scaling --steps 3 ;;
  *) echo "unknown piece $piece" >&2; exit 2 ;;
esac
