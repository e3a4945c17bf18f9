"""From a CSV of images to a class and its probabilities a row, by a version out of the store; streamed."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from prefect import task

from schemas.contract import DatasetContract, contract_of
from schemas.errors import StageNotWritten, WrongUsage
from schemas.layout import WEIGHTS_NAME
from schemas.references import Predictions
from tasks.data.csv_blocks import Rows
from tasks.data.csv_reader import open_csv
from tasks.data.splits import scale_pixels
from tasks.registry.store import store_folder
from tasks.registry.verify import load_version
from tasks.runtime.files import atomic_write, sha256_file, sweep_temporaries

logger = logging.getLogger(__name__)

# Rows that the network is asked for at once, and of a row group: 51 MB as float32, whatever the file's size.
_BATCH_ROWS = 16_384


@task(name="predict", task_run_name="predict")
def predict(images: Path, output: Path, version: str, dataset: str, artifacts_dir: Path) -> Predictions:
    """`predict_csv` as a task; a reference comes back, not the predictions."""
    return predict_csv(images, output, version, dataset, artifacts_dir)


def predict_csv(images: Path, output: Path, version: str, dataset: str, artifacts_dir: Path) -> Predictions:
    """Write what ``version`` (a number or an alias) of ``dataset`` says about each row of the CSV ``images``.

    images: the form that `tasks.ingest` takes, plain or gzip, with or without the label column, one row or more.
    output: a table with the columns of `predictions_schema`, one row an image, in file order; Parquet or CSV by its
    suffix. A Parquet says in its metadata which version made it. A file that is there is replaced when all is done.

    Raises `WrongUsage` for an ``output`` that cannot be written to, before anything else; `DataContractError` for the
    CSV; `VersionNotFound` or `StoredArtifactError` for the version. ``output`` is then as it was before.
    """
    contract = contract_of(dataset)
    images, output = images.absolute(), output.absolute()
    open_table = _writer_for(output, images)
    # The header is looked at before the version is loaded, which costs seconds.
    with ExitStack() as reading:
        csv = reading.enter_context(open_csv(images, contract, label_optional=True))
        if csv.reordered is not None:
            logger.warning("%s", csv.reordered)
        manifest, model = load_version(store_folder(artifacts_dir, dataset), version)
        schema = predictions_schema(contract, manifest)
        start = right = 0
        sweep_temporaries(output)
        with _told_where(output), atomic_write(output) as temporary:
            with open_table(temporary, schema) as writer:
                for rows in in_batches(csv, _BATCH_ROWS):
                    pixels = rows[:, 1:] if csv.labelled else rows
                    probabilities = model.predict_on_batch(scale_pixels(pixels, contract))
                    table = predictions_table(probabilities, start, contract, schema)
                    writer.write_table(table)
                    if csv.labelled:
                        right += int(np.count_nonzero(table["label"].to_numpy() == rows[:, 0]))
                    start += len(rows)
            # Before the output takes its name: images that changed while they were read leave none.
            reading.close()
            sha256 = sha256_file(temporary)
    return Predictions(
        version=manifest["version"],
        rows=start,
        accuracy=right / start if csv.labelled else None,
        output=output,
        sha256=sha256,
    )


def predictions_schema(contract: DatasetContract, manifest: Mapping[str, Any]) -> pa.Schema:
    """``row`` int64, ``label`` int32, ``name`` string, ``p0`` .. float32, none of them null; the version as metadata.

    ``row`` counts the data rows of the CSV from 0, as the index of a frame that pandas reads from it does: the two join
    without arithmetic. ``label`` is the predicted class, ``name`` its name, ``p<label>`` its probability.
    """
    return pa.schema(
        [
            pa.field("row", pa.int64(), nullable=False),
            pa.field("label", pa.int32(), nullable=False),
            pa.field("name", pa.string(), nullable=False),
            *(pa.field(f"p{label}", pa.float32(), nullable=False) for label in range(contract.classes)),
        ],
        metadata={
            "fashion_ann.version": str(manifest["version"]),
            "fashion_ann.dataset": contract.name,
            "fashion_ann.manifest_sha256": manifest["manifest_sha256"],
            "fashion_ann.weights_sha256": manifest["files"][WEIGHTS_NAME]["sha256"],
        },
    )


def predictions_table(
    probabilities: npt.NDArray[np.float32], start: int, contract: DatasetContract, schema: pa.Schema
) -> pa.Table:
    """A table of ``schema`` from probabilities float32 (N, classes), of which the first is that of row ``start``."""
    labels = probabilities.argmax(axis=1).astype(np.int32)
    rows = np.arange(start, start + len(labels))
    names = pa.array(contract.class_names).take(pa.array(labels))
    columns = [pa.array(np.ascontiguousarray(column)) for column in probabilities.T]
    return pa.Table.from_arrays([pa.array(rows), pa.array(labels), names, *columns], schema=schema)


def in_batches(blocks: Iterable[Rows], size: int) -> Iterator[Rows]:
    """The same rows in the same order, ``size`` at a time, fewer in the last: uint8 (size, columns)."""
    waiting: list[Rows] = []
    held = 0
    for block in blocks:
        waiting.append(block)
        held += len(block)
        if held >= size:
            rows = np.concatenate(waiting)
            whole = held - held % size
            for start in range(0, whole, size):
                yield rows[start : start + size]
            waiting, held = [rows[whole:]], held - whole
    if held:
        yield np.concatenate(waiting)


def _open_parquet(path: Path, schema: pa.Schema) -> Any:
    # Probabilities hardly ever repeat, names do.
    return pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=["name"])


def _open_csv(path: Path, schema: pa.Schema) -> Any:
    # float32 is written with as many digits as give the same float32 again.
    return pa_csv.CSVWriter(path, schema, write_options=pa_csv.WriteOptions(quoting_header="none"))


_WRITERS: Mapping[str, Callable[[Path, pa.Schema], Any]] = {".parquet": _open_parquet, ".csv": _open_csv}


def _writer_for(output: Path, images: Path) -> Callable[[Path, pa.Schema], Any]:
    """What writes a file of that suffix, if it can be written at all."""
    writer = _WRITERS.get(output.suffix.lower())
    if writer is None:
        raise WrongUsage(f"The output {output} was expected to end in {' or '.join(_WRITERS)}. Give it another name.")
    if not output.parent.is_dir():
        raise WrongUsage(
            f"The output {output} was expected to go into a folder that is there. Make {output.parent}, or give "
            "another path."
        )
    if output.is_dir():
        raise WrongUsage(f"The output {output} was expected to be a file, it is a folder. Give it another name.")
    if output.exists() and images.exists() and output.samefile(images):
        raise WrongUsage(f"The output {output} is the file of the images, too. Give it another name.")
    return writer


@contextmanager
def _told_where(output: Path) -> Iterator[None]:
    """A full disk, mostly: pyarrow does not say which."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise StageNotWritten(f"predict could not write {output}: {error.strerror or error}.") from error
