"""Writes results for pictures: :func:`predict_files`, which `dense infer` calls."""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2

from dense.errors import UserError
from dense.predict.exported import ExportedModel
from dense.predict.pictures import read_picture
from dense.predict.write_result import result_files, write_result


def predict_files(
    model: str | Path,
    pictures: Sequence[str | Path],
    out: str | Path,
    *,
    least_score: float = 0.3,
    threads: int = 0,
    say: Callable[[str], object],
) -> None:
    """Run an exported file on pictures and write what it finds.

    Args:
        model: File from `dense export`.
        pictures: Files.
        out: Folder for the results.
        least_score: Objects with a lower score are left out.
        threads: CPU threads; 0 leaves the choice to the runtime.
        say: Called with one line for each picture.

    Raises:
        UserError: The model cannot be used, two results would have the same name, or (raised after all others are
            done) some pictures could not be read.
    """
    # Damaged pictures are reported here in one line each, not by OpenCV.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    network = ExportedModel(model, threads=threads)
    stems = [Path(out) / Path(name).stem for name in pictures]
    _check_names(network, pictures, stems)
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'cannot make the folder {out}: {error.strerror}', 'choose another one with --out') from error
    unread = []
    for name, stem in zip(pictures, stems, strict=True):
        try:
            picture = read_picture(name)
        except UserError as error:
            say(f'skipped {error.cause}')
            unread.append(str(name))
            continue
        say(f'{name}: {write_result(network, picture, stem, least_score)}')
    if unread:
        raise UserError(
            f'{len(unread)} of {len(pictures)} pictures could not be read: {", ".join(unread)}',
            'give files that OpenCV reads, such as .jpg and .png',
        )


def _check_names(network: ExportedModel, pictures: Sequence[str | Path], stems: Sequence[Path]) -> None:
    """Raise if one result would overwrite another, or a picture that has yet to be read."""
    given = {Path(name).resolve(): name for name in pictures}
    taken: dict[Path, str | Path] = {}
    for name, stem in zip(pictures, stems, strict=True):
        for file in result_files(network, stem):
            if file.resolve() in given:
                raise UserError(f'the result {file} would overwrite a given picture', 'use another folder with --out')
            if taken.setdefault(file, name) != name:
                raise UserError(
                    f'{taken[file]} and {name} would both be written to {file}', 'run them into different folders'
                )
