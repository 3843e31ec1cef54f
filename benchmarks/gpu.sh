#!/usr/bin/env bash
# All checks of models on a GPU, about half an hour; benchmarks/gpu.py runs one of them, in under 10 minutes. Where
# NVIDIA's MPS daemon is installed, the processes use the GPU at the same time instead of in turns; NO_MPS=1 leaves it out.
# PARTS="exact pong" bash benchmarks/gpu.sh 0 makes some of the checks, on GPU 0.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
if [ -z "${NO_MPS:-}" ] && command -v nvidia-cuda-mps-control >/dev/null; then
  CUDA_MPS_PIPE_DIRECTORY=$(mktemp -d) CUDA_MPS_LOG_DIRECTORY=$(mktemp -d)
  export CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY
  nvidia-cuda-mps-control -d
  trap 'echo quit | nvidia-cuda-mps-control' EXIT
fi
for part in ${PARTS:-exact speed pong breakout a3g}; do
  echo "== $part"
  "${PYTHON:-python3}" benchmarks/gpu.py "$part" "$@"
done
