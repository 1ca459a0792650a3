#!/usr/bin/env bash
# Test on several GPUs of one or more machines: tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]
# More than one machine: set NNODES, MASTER_ADDR (one of them) and MASTER_PORT (free there) to the same on each.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT GPUS [options of tools/test.py]" >&2
    exit 2
fi
config=$1 checkpoint=$2 gpus=$3
shift 3
meeting=()
if [ "${NNODES:-1}" -gt 1 ]; then
    meeting=(--nnodes "$NNODES" --rdzv-endpoint "$MASTER_ADDR:${MASTER_PORT:-29500}")
fi
here=$(dirname "$0")
python=$here/../.venv/bin/python # what `make venv` made
[ -x "$python" ] || python=python
exec "${PYTHON:-$python}" "$here/test.py" "$config" "$checkpoint" --gpus "$gpus" "${meeting[@]+"${meeting[@]}"}" "$@"
