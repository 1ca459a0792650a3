"""Runs a function in several processes that know each other, quickly: a server that has imported everything forks."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed

LONGEST = 280  # seconds


def in_processes(number: int, folder: Path, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Run a function of a module in several processes of one group; a single one has no group.

    Args:
        number: Of processes.
        folder: Where they meet and leave their results; must not exist.
        function: Called once in each.
        *args: Its arguments, which can be pickled.

    Returns:
        What it returned in each; tensors, numbers, text and lists or dicts of these.
    """
    folder.mkdir(parents=True)
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['dense.engine.launch', 'dense.classify', 'mmdet.datasets'])
    processes = [context.Process(target=_child, args=(r, number, folder, function, args)) for r in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LONGEST)
    alive = [process for process in processes if process.is_alive()]
    for process in alive:
        process.kill()
    errors = [path.read_text() for path in sorted(folder.glob('*.error'))]
    assert not errors and not alive, '\n'.join(errors) or f'{len(alive)} of {number} processes did not end'
    return [torch.load(folder / f'{rank}.pt', weights_only=True) for rank in range(number)]


def _child(rank: int, number: int, folder: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    if number > 1:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(number))
        distributed.init_process_group('gloo', f'file://{folder}/meeting', rank=rank, world_size=number)
    try:
        torch.save(function(*args), folder / f'{rank}.pt')
    except BaseException:
        (folder / f'{rank}.error').write_text(traceback.format_exc())
        os._exit(1)  # the others wait for this process
