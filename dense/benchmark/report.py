"""The benchmark's result as tables for the screen, as Markdown and as JSON."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median

from dense.benchmark.case import Measurement
from dense.benchmark.run import Result
from dense.console.tables import markdown, plain
from dense.errors import UserError

NAME_WIDTH = 30  # longer names are listed below the tables
SUFFIXES = ('.json', '.md')
SPEED = ('model', 'layout', 'batch', 'img/s', 'ms/step')
WORK = ('model', 'GFLOP/s', 'of GEMM', 'faults/step', 'peak MiB')


def check_out(path: str | Path) -> None:
    """Check before a long run that its result can be written.

    Raises:
        UserError: The file's name ends in neither ``.json`` nor ``.md``, or its folder does not exist.
    """
    if Path(path).suffix not in SUFFIXES:
        raise UserError(f'cannot tell the format of {path}', f'end its name in {" or ".join(SUFFIXES)}')
    if not Path(path).resolve().parent.is_dir():
        raise UserError(f'there is no folder {Path(path).resolve().parent}', 'create it, or choose another one')


def write(result: Result, path: str | Path) -> None:
    """Write a result as JSON or Markdown, depending on the file's suffix."""
    text = as_json(result) if Path(path).suffix == '.json' else as_markdown(result)
    Path(path).write_text(text + '\n')


def as_text(result: Result) -> str:
    """Return a result for a screen of 80 columns."""
    return '\n\n'.join([_setup(result), *_tables(result, plain)])


def as_markdown(result: Result) -> str:
    """Return a result as Markdown."""
    return '\n\n'.join([_setup(result).replace('\n', '  \n'), *_tables(result, markdown)])


def as_json(result: Result) -> str:
    """Return all measurements as JSON, with the numbers that the tables derive from them."""
    baseline = result.baseline_measurement()
    measurements = [
        {
            **asdict(m),
            'images_per_second': m.rate,
            'seconds_per_step': m.seconds,
            'flops_per_second': m.flop_rate,
            'ratio': m.ratio(baseline) if baseline else None,
            'is_best': m in result.best(),
        }
        for m in result.measurements
    ]
    return json.dumps({**asdict(result), 'measurements': measurements}, indent=2)


def _setup(result: Result) -> str:
    protocol, on_gpu = result.protocol, result.protocol.device == 'cuda'
    precision = ('TF32' if protocol.tf32 else 'FP32 without TF32') if on_gpu else 'FP32'
    mode = protocol.mode + (f' with {protocol.optimizer}' if protocol.mode == 'train' else '')
    lines = [
        f'{mode}: {protocol.warmup} + {protocol.iters} steps, {_counted(protocol.repeats, "turn")} each, '
        f'medians; {precision}, {_counted(protocol.threads or 1, "thread")}',
        result.hardware,
        ', '.join(f'{name} {version}' for name, version in result.versions.items()),
        'images ' + ', '.join(dict.fromkeys('x'.join(map(str, m.shape)) for m in result.measurements)),
        _fusion(result),
        *result.notes,
    ]
    return '\n'.join(lines)


def _counted(number: int, noun: str) -> str:
    return f'{number} {noun}' if number == 1 else f'{number} {noun}s'


def _fusion(result: Result) -> str:
    fused = list(dict.fromkeys(m.name for m in result.measurements if m.is_fused))
    return f'batch norms fused: {", ".join(fused)}' if fused else 'batch norms not fused'


def _tables(result: Result, draw: Callable[..., str]) -> list[str]:
    best = result.best()
    labels, legend = _labels([m.name for m in best])
    gemm = median(result.gemm)
    speed_header = [*SPEED, *(['ratio'] if result.baseline else [])]
    tables = [
        draw([[labels[m.name], *_speed(m, result)] for m in best], header=speed_header, texts=(0, 1)),
        draw([[labels[m.name], *_work(m, gemm)] for m in best], header=WORK),
        f'GEMM: a product of two 2048x2048 matrices, {gemm / 1e9:.0f} GFLOP/s in this run',
    ]
    if result.baseline:
        tables.append(f'ratio: speed over that of {labels[result.baseline]}')
    return [*tables, *(['\n'.join(legend)] if legend else [])]


def _labels(names: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return a short label for every name, and lines that explain the labels that are not names."""
    labels = {name: name if len(name) <= NAME_WIDTH else f'[{i}]' for i, name in enumerate(names, 1)}
    return labels, [f'- {label} {name}' for name, label in labels.items() if label != name]


def _speed(m: Measurement, result: Result) -> list[str]:
    baseline = result.baseline_measurement()
    ratio = [f'{m.ratio(baseline):.2f}'] if baseline else []
    return [m.layout, str(m.batch), _number(m.rate), _number(m.seconds * 1e3), *ratio]


def _number(value: float) -> str:
    """Format a number with four significant digits, without an exponent."""
    return f'{value:.0f}' if value >= 1000 else f'{value:.4g}'


def _work(m: Measurement, gemm: float) -> list[str]:
    return [
        f'{m.flop_rate / 1e9:.1f}',
        f'{m.flop_rate / gemm:.0%}',
        f'{median(m.faults):.0f}',
        f'{median(m.peak_growth) / 2**20:.0f}',
    ]
