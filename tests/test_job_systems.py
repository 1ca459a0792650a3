"""Do the job script for Slurm and the recipe for a cloud start every machine alike, and continue what was stopped?

Slurm's own programs are stand-ins here, which write down how they were called.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from faults import PROJECT
from processes import wait_for

from dense.distributed import launcher

SCRIPT = PROJECT / 'tools' / 'slurm_train.sh'
SRUN = """#!{python} -S
import os, signal, sys, time
from pathlib import Path
here = Path({here!r})
(here / 'srun').write_text('\\n'.join(sys.argv[1:]))
def save(number, frame):
    (here / 'signal').write_text(str(number))
    sys.exit(75)
signal.signal(signal.SIGUSR1, save)
signal.signal(signal.SIGTERM, save)
(here / 'ready').touch()
time.sleep({seconds})
sys.exit({status})
"""
SCONTROL = """#!/bin/sh
echo "$@" >> {here}/scontrol
[ "$1" = requeue ] || printf 'node7\\nnode8\\n'
"""


def start(here: Path, seconds: float = 0, status: int = 0, **variables: str) -> subprocess.Popen[str]:
    """Start the script as ``sbatch`` does: a copy of it, in another folder."""
    filled = dict(
        srun=SRUN.format(python=sys.executable, here=str(here), seconds=seconds, status=status),
        scontrol=SCONTROL.format(here=here),
        job=SCRIPT.read_text(),
    )
    for name, text in filled.items():
        path = here / ('.' if name == 'job' else 'bin') / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    slurm = dict(SLURM_JOB_ID='70001', SLURM_JOB_NODELIST='node[7-8]', SLURM_SUBMIT_DIR=str(PROJECT))
    env = {**os.environ, 'PATH': f'{here / "bin"}:{os.environ["PATH"]}', 'PYTHON': 'py', **slurm, **variables}
    return subprocess.Popen([str(here / 'job'), 'a.py', '--amp'], env=env, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    'variables, options',
    [
        ({}, '--gpus 1'),
        ({'SLURM_GPUS_ON_NODE': '8', 'SLURM_JOB_NUM_NODES': '1'}, '--gpus 8'),
        (
            {'SLURM_GPUS_ON_NODE': '8', 'SLURM_JOB_NUM_NODES': '2'},
            '--gpus 8 --nnodes 2 --rdzv-endpoint node7:30001',
        ),
        ({'SLURM_RESTART_COUNT': '1'}, '--gpus 1 --resume-if-any'),
    ],
)
def test_machines_start_the_same_command(variables: dict[str, str], options: str, tmp_path: Path) -> None:
    assert start(tmp_path, **variables).wait(20) == 0
    called = (tmp_path / 'srun').read_text().splitlines()
    assert ' '.join(called) == f'--kill-on-bad-exit=0 py {PROJECT}/tools/train.py a.py --amp {options}'


def test_cores_reach_the_step(tmp_path: Path) -> None:
    assert start(tmp_path, SLURM_CPUS_PER_TASK='16').wait(20) == 0
    assert '--cpus-per-task=16' in (tmp_path / 'srun').read_text().splitlines()


@pytest.mark.parametrize('sign, again', [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_only_a_job_whose_time_is_over_goes_back_into_the_queue(
    sign: signal.Signals, again: bool, tmp_path: Path
) -> None:
    """One that was cancelled stays so; one that was preempted, Slurm itself puts there."""
    process = start(tmp_path, seconds=60)
    assert wait_for((tmp_path / 'ready').exists, 20)
    process.send_signal(sign)
    assert process.wait(20) == 75
    assert (tmp_path / 'signal').read_text() == str(int(sign))
    assert (tmp_path / 'scontrol').exists() is again
    assert not again or (tmp_path / 'scontrol').read_text() == 'requeue 70001\n'


def test_a_failed_job_stays_failed(tmp_path: Path) -> None:
    assert start(tmp_path, status=2).wait(20) == 2
    assert not (tmp_path / 'scontrol').exists()


def test_it_is_submitted_from_the_projects_folder(tmp_path: Path) -> None:
    process = start(tmp_path, SLURM_SUBMIT_DIR=str(tmp_path))
    assert process.wait(20) == 2 and process.stderr is not None
    first, second = process.stderr.read().splitlines()
    assert first.startswith('error: there is no ') and second.startswith('remedy: call sbatch in')


@pytest.mark.parametrize('nodes, meeting', [('1', []), ('2', ['--nnodes', '2', '--rdzv-endpoint', '10.0.0.1:29500'])])
def test_the_recipe_for_a_cloud_continues_what_lies_in_the_bucket(
    nodes: str, meeting: list[str], tmp_path: Path
) -> None:
    recipe = yaml.safe_load((PROJECT / 'docs' / 'recipes' / 'skypilot.yaml').read_text())
    assert recipe['resources']['job_recovery']['recover_on_exit_codes'] == [launcher.STOPPED]
    python = tmp_path / '.venv' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > called\n')
    python.chmod(0o755)
    given = dict(SKYPILOT_NUM_NODES=nodes, SKYPILOT_NODE_IPS='10.0.0.1\n10.0.0.2', SKYPILOT_NUM_GPUS_PER_NODE='8')
    env = {**os.environ, **recipe['envs'], **given}
    subprocess.run(['bash', '-eu', '-c', recipe['run']], cwd=tmp_path, env=env, check=True, timeout=20)
    called = (tmp_path / 'called').read_text().splitlines()
    name = Path(recipe['envs']['CONFIG']).stem
    assert called == [
        'tools/train.py', recipe['envs']['CONFIG'], '--data-root', '/data', '--work-dir', f'/runs/{name}',
        '--resume-if-any', '--gpus', '8', '--max-restarts', '3', *meeting,
    ]  # fmt: skip
