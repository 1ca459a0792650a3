"""Searches for inputs from which anything but the project's own errors comes out of its readers, guided by coverage.

``make fuzz`` runs each reader of ``tests/shared/readers.py`` in a process of its own. What breaks a reader is kept in
``work_dirs/fuzz/READER/``; the inputs that reached new code are kept beside it, and the next search starts from them.
"""

import argparse
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
WORK = PROJECT / 'work_dirs' / 'fuzz'
MEMORY = 8192  # MiB; an input that makes a reader take more counts as broken
SLOWEST = 25  # seconds for one input
LONGEST = 20_000  # bytes of an input


def main() -> int:
    """Search in each reader, or in those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('readers', nargs='*', help='by default all')
    parser.add_argument('--seconds', type=int, default=600, help='for each reader')
    parser.add_argument('--inside', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        search(args.readers[0], args.seconds)
    broken = []
    for name in args.readers or reader_names():
        print(f'{name}: {args.seconds} seconds', flush=True)
        command = [sys.executable, __file__, '--inside', '--seconds', str(args.seconds), name]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace')
        broken += [name] if done.returncode else []
        tail = done.stdout.splitlines()[-40 if done.returncode else -1 :]
        print('\n'.join(line for line in tail if line.strip()), flush=True)
    print(f'broken: {", ".join(broken)}; see {WORK}' if broken else 'only own errors came out')
    return len(broken)


def reader_names() -> list[str]:
    """Return the names of the readers without importing what they read with."""
    code = 'import sys; sys.path[:0] = sys.argv[1:]; from readers import READERS; print("\\n".join(READERS))'
    done = subprocess.run([sys.executable, '-c', code, *paths()], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def paths() -> list[str]:
    """Return where the project and its test helpers are."""
    return [str(PROJECT), str(PROJECT / 'tests' / 'shared')]


def search(name: str, seconds: int) -> None:
    """Search in one reader; ends the process."""
    import atheris

    sys.path[:0] = paths()
    warnings.simplefilter('ignore')
    with atheris.instrument_imports(include=['backbones', 'dense', 'readers']):
        from readers import READERS

    reader = READERS[name]
    folder = WORK / name.replace(' ', '_')
    corpus = folder / 'inputs'
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(reader.seeds()):
        (corpus / f'seed-{number}').write_bytes(seed)
    scratch = tempfile.TemporaryDirectory()
    options = [f'-max_total_time={seconds}', f'-rss_limit_mb={MEMORY}', f'-timeout={SLOWEST}', f'-max_len={LONGEST}']
    options += [f'-artifact_prefix={folder}/', '-print_final_stats=1', '-verbosity=0']
    atheris.Setup([sys.argv[0], *options, str(corpus)], lambda content: reader.accepts(content, Path(scratch.name)))
    atheris.Fuzz()


if __name__ == '__main__':
    sys.exit(main())
