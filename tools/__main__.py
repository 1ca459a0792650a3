"""All commands under one name: ``dense COMMAND ...`` once installed, ``python -m tools COMMAND ...`` in a clone."""

import difflib
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

DISTRIBUTION = 'inceptionnext-dense'
# Command -> what it does, in the order in which a user needs them.
COMMANDS = {
    'doctor': 'show what is installed, what runs where, and what is wrong',
    'demo': 'train and test both tasks on generated scenes, 10 to 13 minutes on two cores',
    'configs': 'list the configs',
    'train': 'train a detector, a segmentor or a classifier',
    'test': 'evaluate a checkpoint',
    'export': 'write a trained model to one file',
    'infer': 'run an exported file on pictures',
    'complexity': 'count parameters and multiply-accumulates',
    'benchmark': 'measure how fast models train or infer',
    'table': "write the tables of models in a clone's README.md and docs",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names.

    Args:
        argv: Arguments without the program's name; those of the process by default.

    Returns:
        Exit status of the command; 2 if there is no such command.
    """
    name, *rest = [*(sys.argv[1:] if argv is None else argv)] or ['--help']
    if name in COMMANDS:
        return int(importlib.import_module(f'.{name}', __package__).main(rest))
    if name in ('-h', '--help'):
        print(page())
        return 0
    if name in ('-V', '--version'):
        print(f'dense {version()}')
        return 0
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    remedy = f'did you mean `dense {near[0]}`?' if near else f'commands: {", ".join(COMMANDS)}'
    sys.stderr.write(f'error: there is no command {name!r}\nremedy: {remedy}\n')
    return 2


def page() -> str:
    """Return the text of ``dense --help``."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f'  {name:<{width}}{what}' for name, what in COMMANDS.items()]
    return '\n'.join(
        [
            'usage: dense COMMAND ...',
            '',
            'Efficient convolutional backbones in detectors and segmentors: train, test, ship.',
            '',
            *lines,
            '',
            '`dense COMMAND --help` shows the options of a command, `dense --version` the version.',
        ]
    )


def version() -> str:
    """Return the version of the installed distribution."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return '(clone, not installed)'


if __name__ == '__main__':
    sys.exit(main())
