"""Names for pictures of images: short, and never the same for two images."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePath

_SHEET = re.compile(r'sheet(-\d+)?')

# From the shortest name to one that is different for different files, of the path below the folder of all images.
_KINDS: Sequence[Callable[[PurePath], str]] = (
    lambda path: path.stem,
    lambda path: '-'.join((*path.parent.parts, path.stem)),
    lambda path: path.with_suffix('').as_posix(),
    lambda path: path.as_posix(),
)


def picture_names(paths: Iterable[str]) -> dict[str, str]:
    """Name the picture of each image: by the stem of its file, or by more of its path if stems are not different.

    All names are of the same kind. None is that of a sheet of pictures.

    Args:
        paths: Of all images, in any order; the same path always gives the same name.

    Returns:
        Path -> name without suffix, which may contain folders.
    """
    absolute = {path: os.path.abspath(path) for path in paths}
    files = sorted(set(absolute.values()))
    if not files:
        return {}
    root = os.path.commonpath([os.path.dirname(file) for file in files])
    below = [PurePath(os.path.relpath(file, root)) for file in files]
    names: list[str] = []
    for kind in _KINDS:
        names = [kind(path) for path in below]
        folded = {name.casefold() for name in names}  # some file systems ignore case
        if len(folded) == len(names) and not any(map(_SHEET.fullmatch, folded)):
            break
    by_file = dict(zip(files, names, strict=True))
    return {path: by_file[file] for path, file in absolute.items()}
