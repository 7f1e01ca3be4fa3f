#!/usr/bin/env bash
# Measure this toolkit on one GPU beside the alternatives: benchmarks/gpu.sh [folder for the results]   (9 minutes at most)
#
# Needs this repository and an environment with torch (CUDA), torchvision, accelerate, safetensors, scipy, timm, Pillow,
# pytest. On a machine without network the rest can come as wheels in the folder wheels/ (or $WHEELS): jsonargparse
# docstring-parser typeshed-client simplejpeg webdataset braceexpand open_clip_torch ftfy wcwidth torch_fidelity
# pytorch_fid. Parts whose rivals are not installed are left out, with a line. The tests that only a GPU can run
# are apart: python -m pytest -m gpu tests/test_gpu.py
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=${1:-benchmarks/results}
mkdir -p "$OUT"
PYTHON=${PYTHON:-python3}
WHEELS=${WHEELS:-wheels}
if [ -d "$WHEELS" ]; then
    SITE=$(mktemp -d)
    $PYTHON -m pip install -q --no-index --no-deps --no-compile --target "$SITE" "$WHEELS"/*.whl || exit 1
    export PYTHONPATH="$SITE${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

$PYTHON - <<'EOF' || exit 1
import sys, accelerate, torch
if not torch.cuda.is_available():
    sys.exit("gpu.sh: torch sees no GPU here; make bench measures a CPU")
print(torch.cuda.get_device_name(), "| torch", torch.__version__, "| CUDA", torch.version.cuda, "| cuDNN",
      torch.backends.cudnn.version(), "| accelerate", accelerate.__version__)
EOF

measure() {  # part, seconds at most, rounds; what has been measured by then is written
    timeout "$2" $PYTHON -m benchmarks --device cuda --only "$1" --rounds "$3" --out "$OUT" >/dev/null 2>"$OUT/$1.log" ||
        tail -3 "$OUT/$1.log"
}
measure step 270 5
measure inference 50 3
measure embedding 50 3
measure scoring 70 2
measure loading 80 3
[ "$(nvidia-smi -L | wc -l)" -gt 1 ] && measure scaling 120 3
$PYTHON -m benchmarks.table "$OUT"/20??-??-??-*.json
