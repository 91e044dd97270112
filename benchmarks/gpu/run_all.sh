#!/usr/bin/env bash
# Everything that has to be measured on an NVIDIA GPU, in order of value, on a machine without network.
#
#   benchmarks/gpu/run_all.sh --out gpu-results [--data DATA] [--experts EXPERTS] [--wheels FOLDER]
#   benchmarks/gpu/run_all.sh --out FOLDER --tiny        # small models, on a CPU: to see that it runs
#
# Needs Python 3.11, PyTorch for CUDA, timm, onnx, numpy, opencv. What else is missing is said first, with
# the steps that need it; FOLDER may hold wheels of it (see wheels.txt), which are unpacked beside the
# results and leave the machine's own packages alone. Every step takes at most 8 minutes and writes its
# JSON as it goes. Run it again to go on where it stopped: what is done stays done. A table comes last.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD:$PWD/export:$PWD/build_engines:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "${PYTHON:-python3}" -m simo_bench.gpu.run "$@"
