#!/usr/bin/env bash
# Train on the GPUs of one or more machines under Slurm. Submit it from the project's folder:
#   sbatch --nodes 2 --gpus-per-node 8 --cpus-per-task 64 --time 24:00:00 tools/slurm_train.sh CONFIG [options]
# The options are those of tools/train.py. Five minutes before its time is over, the job saves, stops, and goes back
# into the queue; when it starts again, it continues from its newest checkpoint.
#SBATCH --job-name=dense-train
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail
saved_and_stopped=75 # exit status of tools/train.py

if [ $# -lt 1 ]; then
    echo "usage: sbatch [options of sbatch] $0 CONFIG [options of tools/train.py]" >&2
    exit 2
fi
# Slurm runs a copy of this file that lies elsewhere.
train=${SLURM_SUBMIT_DIR:-.}/tools/train.py
if [ ! -f "$train" ]; then
    echo "error: there is no $train" >&2
    echo "remedy: call sbatch in the folder that holds tools/" >&2
    exit 2
fi

python=${SLURM_SUBMIT_DIR:-.}/.venv/bin/python # what `make venv` made
[ -x "$python" ] || python=python

options=(--gpus "${SLURM_GPUS_ON_NODE:-1}")
if [ "${SLURM_JOB_NUM_NODES:-1}" -gt 1 ]; then
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    options+=(--nnodes "$SLURM_JOB_NUM_NODES" --rdzv-endpoint "$first:$((20000 + SLURM_JOB_ID % 20000))")
fi
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
    options+=(--resume-if-any)
fi

time_is_over='' step=''
# shellcheck disable=SC2317 # the traps call it
pass_on() {
    time_is_over=$1
    kill "-$2" "$step" 2>/dev/null # srun forwards it to the machines
}
trap 'pass_on yes USR1' USR1
trap 'pass_on "" TERM' TERM
# One machine may have finished while another still writes the checkpoint: a status other than 0 ends no other.
srun --kill-on-bad-exit=0 ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"} \
    "${PYTHON:-$python}" "$train" "$@" "${options[@]}" &
step=$!
while true; do
    wait "$step" # a signal ends this, not the step
    status=$?
    kill -0 "$step" 2>/dev/null || break
done
if [ -n "$time_is_over" ] && [ "$status" -eq "$saved_and_stopped" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
