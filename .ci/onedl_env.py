"""Make a second environment with the onedl forks in the place of the OpenMMLab packages; the rest is linked.

The forks own the same import names, so the two families cannot live in one environment. Every other package is a
symbolic link into the environment that runs this command: PyTorch is neither downloaded nor stored twice.
"""

import argparse
import importlib.metadata
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]

# Not linked: what the forks replace, and what the group `onedl` installs. pip would follow a link and remove the
# files behind it, were it ever to replace one of these.
LEFT_OUT = (
    *('mmengine', 'mmengine-lite', 'mmcv', 'mmcv-lite', 'mmcv-full', 'mmdet', 'mmsegmentation'),
    *('onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection', 'onedl-mmsegmentation'),
    *('imageio', 'imaug', 'lazy-loader', 'scikit-image'),
)


def left_out_entries(site: Path) -> set[str]:
    """Names in a site-packages folder that belong to the distributions of :data:`LEFT_OUT`.

    Args:
        site: A site-packages folder.
    """
    found = importlib.metadata.distributions(path=[str(site)])
    distributions = [item for item in found if item.metadata['Name'].lower().replace('_', '-') in LEFT_OUT]
    return {file.parts[0] for item in distributions for file in item.files or [] if file.parts[0] != '..'}


def link_packages(source: Path, target: Path) -> int:
    """Link what lies in one site-packages folder into another.

    Args:
        source: Folder of the environment that is reused.
        target: Folder of the new environment.

    Returns:
        Number of links made.
    """
    skipped = left_out_entries(source) | {'__pycache__'}
    entries = [entry for entry in source.iterdir() if entry.name not in skipped]
    for entry in entries:
        (target / entry.name).symlink_to(entry.resolve(), target_is_directory=entry.is_dir())
    return len(entries)


def main() -> None:
    """Make the environment anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', type=Path, nargs='?', default=PROJECT / '.venv-onedl', help='default: %(default)s')
    folder = parser.parse_args().folder.resolve()
    if folder.exists() and not (folder / 'pyvenv.cfg').is_file():
        sys.exit(f'error: {folder} exists and is no virtual environment\nName another folder, or remove it.')
    shutil.rmtree(folder, ignore_errors=True)
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    site = Path(sysconfig.get_path('purelib', vars={'base': str(folder), 'platbase': str(folder)}))
    count = link_packages(Path(sysconfig.get_path('purelib')), site)
    print(f'Linked {count} entries; installing the onedl packages.', flush=True)
    python = folder / 'bin' / 'python'
    pip = [sys.executable, '-m', 'pip', '--python', str(python), '--disable-pip-version-check', '-q']
    subprocess.run([*pip, 'install', '--no-deps', '-c', 'constraints.txt', '--group', 'onedl'], cwd=PROJECT, check=True)
    print(f'Installed into {folder}.')


if __name__ == '__main__':
    main()
