#!/usr/bin/env bash
# Train on several GPUs of one or more machines: tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
# More than one machine: set NNODES, MASTER_ADDR (one of them) and MASTER_PORT (free there) to the same on each.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: $0 CONFIG GPUS [options of tools/train.py]" >&2
    exit 2
fi
config=$1 gpus=$2
shift 2
meeting=()
if [ "${NNODES:-1}" -gt 1 ]; then
    meeting=(--nnodes "$NNODES" --rdzv-endpoint "$MASTER_ADDR:${MASTER_PORT:-29500}")
fi
here=$(dirname "$0")
python=$here/../.venv/bin/python # what `make venv` made
[ -x "$python" ] || python=python
exec "${PYTHON:-$python}" "$here/train.py" "$config" --gpus "$gpus" "${meeting[@]+"${meeting[@]}"}" "$@"
