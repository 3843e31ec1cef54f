#!/usr/bin/env bash
# All checks of models on a GPU, about half an hour; benchmarks/gpu.py runs one of them, in under 10 minutes. Where
# NVIDIA's MPS daemon works, the processes use the GPU at the same time instead of in turns; NO_MPS=1 leaves it out.
# PARTS="exact pong" bash benchmarks/gpu.sh 0 makes some of the checks, on GPU 0.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
python="${PYTHON:-python3}"
if [ -z "${NO_MPS:-}" ] && command -v nvidia-cuda-mps-control >/dev/null; then
  CUDA_MPS_PIPE_DIRECTORY=$(mktemp -d) CUDA_MPS_LOG_DIRECTORY=$(mktemp -d)
  export CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
  trap 'echo "quit -t 5" | nvidia-cuda-mps-control' EXIT
  if ! { nvidia-cuda-mps-control -d && timeout 60 "$python" -c 'import torch; torch.zeros(1, device="cuda")'; }; then
    echo "MPS does not work here: without it"
    echo "quit -t 5" | nvidia-cuda-mps-control
    trap - EXIT
    unset CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
  fi
fi
code=0
for part in ${PARTS:-exact pong breakout a3g speed}; do  # speed kills processes while they use the GPU
  echo "== $part"
  "$python" benchmarks/gpu.py "$part" "$@" || { echo "== $part failed"; code=1; }
done
exit $code
