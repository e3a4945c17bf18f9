"""Write the predictions of several CSVs: a folder with a Parquet file per CSV, which readers take as one dataset."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from schemas.errors import DataContractError, WrongUsage
from schemas.layout import files_beside, is_litter, profile_beside
from schemas.references import CsvFile, FilePredictions, PredictedFiles, sha256sum_digest
from tasks.data.remote_folder import CSV_SUFFIXES
from tasks.registry.batch_prediction import require_replaceable
from tasks.runtime.files import atomic_folder, remove_leftover, remove_path, sweep_temporaries, temporary_name

_SUFFIX = ".parquet"
_CSV_SUFFIX = re.compile(r"(\.csv)?(\.gz)?\Z", re.IGNORECASE)


def is_several(images: Sequence[Path]) -> bool:
    """Return whether ``images`` are several CSVs: more than one path, or a folder."""
    return len(images) > 1 or images[0].is_dir()


def csvs_by_part(images: Sequence[Path]) -> dict[str, Path]:
    """Return the CSVs by the names of their Parquet files, in the order of these names.

    images: CSVs, and folders with CSVs directly in them. ``shirts.csv`` and ``shirts.csv.gz`` have the Parquet file
    ``shirts.parquet``.

    Raises `WrongUsage` for two CSVs with the same name, and for a name that readers of a dataset ignore. Raises
    `DataContractError` for a folder without a CSV.
    """
    parts: dict[str, Path] = {}
    for path in chain.from_iterable(map(_csvs_in, images)):
        name = _CSV_SUFFIX.sub("", path.name, count=1) + _SUFFIX
        if name.startswith(("_", ".")):
            raise WrongUsage(
                f"{path}: expected a name that does not begin with {name[0]!r}, because programs that read a folder of "
                "Parquet files ignore such files. Rename it."
            )
        if name in parts:
            raise WrongUsage(
                f"{parts[name]} and {path} would both be written to {name}. Expected CSVs with different names. Rename "
                "one of them."
            )
        parts[name] = path
    return {name: parts[name] for name in sorted(parts)}


def _csvs_in(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    entries = (entry for entry in path.iterdir() if not entry.name.startswith(".") and not is_litter(entry.name))
    if csvs := [entry for entry in entries if entry.name.lower().endswith(CSV_SUFFIXES)]:
        return csvs
    raise DataContractError(f"{path} contains no CSV. Expected files that end in {' or '.join(CSV_SUFFIXES)}.")


@contextmanager
def new_prediction_folder(output: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``output``, which replaces it when the block ends without an error.

    ``output``, or the target of a link, does not exist, is empty, or is a folder of predictions.

    Raises `WrongUsage` for any other output, before the block.
    """
    if output.suffix.lower() == ".csv":
        raise WrongUsage(
            f"The output {output} must be a folder: the predictions of several CSVs are Parquet files. Choose a name "
            "that does not end in .csv."
        )
    target = require_replaceable(output, "folder")
    _require_predictions(target)
    sweep_temporaries(target)
    earlier = temporary_name(target)
    try:
        with atomic_folder(target) as folder:
            try:
                yield folder
            except BaseException:
                # Tasks that still run, as after Ctrl-C, find no folder to write to while this one is removed.
                remove_path(folder.rename(temporary_name(target)))
                raise
            if target.exists():  # only an empty folder can be replaced; after a kill here there is no output
                target.rename(earlier)
    except BaseException:
        if earlier.exists() and not target.exists():
            earlier.rename(target)
        raise
    remove_leftover(earlier)  # the new output is complete


def _require_predictions(folder: Path) -> None:
    paths = list(folder.iterdir()) if folder.exists() else []
    beside = files_beside(path for path in paths if not path.name.startswith(("_", ".")))
    for path in paths:
        if is_litter(path.name) or path in beside:
            continue
        try:
            written = b"fashion_ann.version" in (pq.read_schema(path).metadata or {})
        except (OSError, pa.ArrowInvalid):
            written = False
        if not written:
            raise WrongUsage(
                f"The output {folder} is a folder with {path.name}, which is no file of predictions. Expected a new "
                "name, or a folder that `predict` wrote. Choose another name."
            )


def predicted_files(output: Path, files: Mapping[str, FilePredictions]) -> PredictedFiles:
    """Return the reference to the folder ``output`` with these files, by their names.

    Raises `DataContractError` if only some of the CSVs have labels: readers would drop the column, or leave it empty.
    """
    named = [
        file.model_copy(update={"output": output / name, "profile": profile_beside(output / name)})
        for name, file in files.items()
    ]
    labelled = [file.images.name for file in named if file.accuracy is not None]
    bare = [file.images.name for file in named if file.accuracy is None]
    if labelled and bare:
        raise DataContractError(
            f"{output} was not written: expected all CSVs with labels, or all without. {len(labelled)} have labels, "
            f"such as {labelled[0]}, and {len(bare)} have none, such as {bare[0]}. Predict them separately."
        )
    rows = sum(file.rows for file in named)
    right = sum(round(file.rows * (file.accuracy or 0)) for file in named)
    return PredictedFiles(
        version=named[0].version,
        rows=rows,
        accuracy=right / rows if labelled else None,
        checks=tuple(check for file in named for check in file.checks),
        warnings=tuple(warning for file in named for warning in file.warnings),
        output=output,
        sha256=sha256sum_digest(CsvFile(path=file.output, sha256=file.sha256) for file in named),
        profile=None,
        shadow=None,
        files=tuple(named),
    )
