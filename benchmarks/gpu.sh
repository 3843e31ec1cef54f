#!/usr/bin/env bash
# All checks of models on a GPU, about 45 minutes; benchmarks/gpu.py runs one of them, in under 10.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
for part in exact speed pong breakout a3g memory; do
  echo "== $part"
  "${PYTHON:-python3}" benchmarks/gpu.py "$part" "$@"
done
