#!/usr/bin/env bash
# Everything that has to be measured on an NVIDIA GPU, in order of value, on a machine without network.
#
#   benchmarks/gpu/run_all.sh --smoke --wheels FOLDER    # two minutes: will the rest run?
#   benchmarks/gpu/run_all.sh --minutes 8 [--out gpu-results] [--pack results.tgz] [--data DATA]
#   benchmarks/gpu/run_all.sh --out FOLDER --tiny        # small models, on a CPU: to see that it runs
#
# Needs Python 3.11, PyTorch for CUDA, timm, onnx, numpy, opencv. What else is missing is said first, with
# the steps that need it; FOLDER may hold wheels of it (see wheels.txt), which are unpacked into a folder of
# their own and leave the machine's packages alone. Every step takes at most 8 minutes and writes its JSON
# as it goes. Run it again to go on where it stopped: what is done stays done. A table comes last.
# benchmarks/README.md says more.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD:$PWD/export:$PWD/build_engines:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "${PYTHON:-python3}" -m simo_bench.gpu.run "$@"
