"""Predict the images of a CSV with a stored version, in bounded memory."""

import errno
import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from schemas.contract import DatasetContract, contract_of
from schemas.errors import DataContractError, FashionAnnError, StageNotWritten, WrongUsage
from schemas.layout import WEIGHTS_NAME, profile_beside, shadow_beside
from schemas.predictions import EstimatedAccuracy, ShadowComparison
from schemas.references import Predictions
from schemas.store import Manifest
from tasks.checks.estimated_accuracy import Counts, estimate_accuracy
from tasks.data.csv_blocks import Rows
from tasks.data.csv_reader import open_csv
from tasks.data.splits import scale_pixels
from tasks.data.statistics import mcnemar, same_shares_test, wilson_interval
from tasks.registry.prediction_checks import PredictionChecks, read_class_profile
from tasks.registry.prediction_records import PredictionRecord, recording
from tasks.registry.store import ModelStore, StoredVersion
from tasks.registry.verify import load_model
from tasks.registry.watched_predictions import Baseline, paired_labels
from tasks.runtime.files import (
    atomic_write,
    is_mount_point,
    sha256_file,
    sweep_temporaries,
    without_temporary_names,
    write_json,
)

logger = logging.getLogger(__name__)

# Rows per prediction and per row group: 51 MB as float32, whatever the size of the file.
BATCH_ROWS = 16_384

# The models of the last `predict_csv` with ``keep_model``, by the digest of their manifest.
_kept: dict[str, Any] = {}
_loading = threading.Lock()
# Threads read files at the same time and predict in turns, because a batch takes 51 MB and its activations more. More
# threads than these would mostly wait.
_reading = threading.BoundedSemaphore(4)
_predicting = threading.Lock()


def predict_csv(
    images: Path,
    output: Path,
    version: str,
    dataset: str,
    artifacts_dir: Path,
    strict: bool = False,
    *,
    keep_model: bool = False,
    shadow: str | None = None,
    now: datetime | None = None,
) -> Predictions:
    """Predict each row of the CSV ``images`` with a version (a number or an alias) of ``dataset``.

    images: plain or gzip, as ingest reads it, with or without the label column, at least one row.
    output: the table of `predictions_schema`, one row per image in file order, as Parquet or CSV by its suffix. An
    existing file, or the target of a link, is replaced at the end.
    strict: raise `DataContractError` if the images, or the accuracy on their labels, cause a warning.
    keep_model: keep the model for the next call in this process, from any thread.
    shadow: another version, whose answers are written to `shadow_beside` the output. They do not change the output.
    now: the time of the predictions, in UTC.

    `profile_beside` the output has counts of the predictions, and `recording` keeps them for watch-predictions.

    Raises `WrongUsage` for an ``output`` that cannot be written, before any other work, `DataContractError` for the
    CSV, and `VersionNotFound` or `StoredArtifactError` for the version. An existing ``output`` is then unchanged.
    """
    contract = contract_of(dataset)
    images, output = images.absolute(), output.absolute()
    open_table, target = _writer_for(output, images)
    shown = without_temporary_names(str(output))  # the file may be in a folder that is renamed later
    # The header is checked before the model is loaded, which takes seconds.
    with ExitStack() as reading:
        reading.enter_context(_reading)
        csv = reading.enter_context(open_csv(images, contract, label_optional=True))
        stored = ModelStore.of(artifacts_dir, dataset).refresh().version(version)
        stored.check_signature()  # before any of its files is parsed
        checks = PredictionChecks(stored, contract)
        challenger = None if shadow is None else _challenger(stored, shadow, dataset, artifacts_dir)
        load = _kept_model if keep_model else load_model
        model = load(stored)
        other = None if challenger is None else (challenger, load(challenger))
        schema = predictions_schema(contract, stored.manifest, csv.labelled)
        time = now or datetime.now(UTC)
        start = 0
        profile = profile_beside(target)
        sweep_temporaries(target)
        sweep_temporaries(profile)
        with (
            _name_in_errors(shown),
            atomic_write(profile) as beside,  # renamed after the output
            _shadowing(other, stored, target, csv.labelled, contract, artifacts_dir, time) as shadowing,
            atomic_write(target) as temporary,
            recording(artifacts_dir, stored, contract, time) as record,
        ):
            with open_table(temporary, schema) as writer:
                for rows in in_batches(csv, BATCH_ROWS):
                    pixels, labels = (rows[:, 1:], rows[:, 0]) if csv.labelled else (rows, None)
                    with _predicting:
                        probabilities = model.predict_on_batch(scale_pixels(pixels, contract.scale))
                    predicted = probabilities.argmax(axis=1)
                    writer.write_table(_predictions_table(probabilities, predicted, labels, start, contract, schema))
                    checks.add(pixels, predicted, labels)
                    record.add(pixels, probabilities)
                    if shadowing is not None:
                        shadowing.add(pixels, labels, predicted, start)
                    start += len(rows)
                # Raises if the images changed while they were read, before the output gets its name.
                reading.close()
                results, found = checks.results()
                warnings = [] if csv.reordered is None else [f"{images.name}: {csv.reordered}"]
                warnings += [f"{images.name}: {line}" for line in found]
                if strict and warnings:
                    raise DataContractError(f"{shown} was not written, because of --strict: {'; '.join(warnings)}.")
                _add_metadata(writer, schema, warnings)
            sha256 = sha256_file(temporary)
            compared = None if shadowing is None else shadowing.finish(record.counts, warnings)
            write_json(beside, record.finish(target.name, sha256, checks.profile, warnings, compared).as_json())
    for line in warnings:
        logger.warning("%s", line)
    return Predictions(
        version=stored.number,
        rows=start,
        accuracy=checks.accuracy,
        checks=tuple(results),
        warnings=tuple(warnings),
        output=output,
        sha256=sha256,
        profile=profile,
        shadow=compared,
    )


def _challenger(stored: StoredVersion, shadow: str, dataset: str, artifacts_dir: Path) -> StoredVersion:
    """Return the version ``shadow``. Raises `WrongUsage` if it is the one that predicts."""
    challenger = ModelStore.of(artifacts_dir, dataset).version(shadow)
    if challenger.number == stored.number:
        raise WrongUsage(
            f"Version {stored.number} cannot be its own shadow; expected another version. Run `fashion-ann versions` "
            "to list them."
        )
    challenger.check_signature()  # before any of its files is parsed
    return challenger


class _Shadow:
    """The answers of a challenger, batch by batch, and their comparison with the version beside it."""

    def __init__(
        self,
        version: StoredVersion,
        model: Any,
        beside: StoredVersion,
        writer: Any,
        schema: pa.Schema,
        temporary: Path,
        record: PredictionRecord,
        contract: DatasetContract,
        name: str,
    ) -> None:
        self._version, self._model, self._beside, self._name = version, model, beside, name
        self._writer, self._schema, self._temporary = writer, schema, temporary
        self._record, self._contract = record, contract
        self._agree = 0
        self._right: list[npt.NDArray[np.bool_]] = []  # (2, N): of the challenger, of the other version

    def add(
        self,
        pixels: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.uint8] | None,
        predicted: npt.NDArray[np.int64],
        start: int,
    ) -> None:
        """Predict the next images, uint8 (N, pixels). predicted: the classes that the other version predicted, (N,)."""
        with _predicting:
            probabilities = self._model.predict_on_batch(scale_pixels(pixels, self._contract.scale))
        own = probabilities.argmax(axis=1)
        self._writer.write_table(_predictions_table(probabilities, own, labels, start, self._contract, self._schema))
        self._record.add(pixels, probabilities)
        self._agree += int(np.count_nonzero(own == predicted))
        if labels is not None:
            self._right.append(np.stack([own == labels, predicted == labels]))

    def finish(self, counts: Counts, warnings: list[str]) -> ShadowComparison:
        """Close the output, and compare. counts: `confidence_counts` of the other version."""
        _add_metadata(self._writer, self._schema, warnings)
        self._writer.close()
        sha256, own = sha256_file(self._temporary), self._record.counts
        rows = int(own.sum())
        right = np.concatenate(self._right, axis=1) if self._right else None
        self._record.finish(self._name, sha256, read_class_profile(self._version, self._contract), warnings)
        return ShadowComparison(
            version=self._version.number,
            output=self._name,
            output_sha256=sha256,
            rows=rows,
            agree=self._agree,
            agreement=self._agree / rows,
            agreement_interval=list(wilson_interval(self._agree, rows)),
            classes_p_value=same_shares_test(own.sum(axis=1), counts.sum(axis=1)),
            estimated=_estimate(self._beside, counts, self._contract),
            shadow_estimated=_estimate(self._version, own, self._contract),
            paired=None if right is None else paired_labels(mcnemar(right[0], right[1])),
        )


def _estimate(version: StoredVersion, counts: Counts, contract: DatasetContract) -> EstimatedAccuracy | None:
    try:
        return estimate_accuracy(Baseline.of(version, contract).table, counts)
    except FashionAnnError as error:
        logger.warning("the accuracy of version %d was not estimated: %s", version.number, error)
        return None


@contextmanager
def _shadowing(
    challenger: tuple[StoredVersion, Any] | None,
    beside: StoredVersion,
    target: Path,
    labelled: bool,
    contract: DatasetContract,
    artifacts_dir: Path,
    now: datetime,
) -> Iterator[_Shadow | None]:
    """Yield the shadow of a challenger, a version and its model, and write its answers when the block ends.

    Without a challenger, yield None, and remove the answers of an earlier one: they are not beside this output.
    """
    output = shadow_beside(target)
    sweep_temporaries(output)
    if challenger is None:
        yield None
        output.unlink(missing_ok=True)
        return
    version, model = challenger
    schema = predictions_schema(contract, version.manifest, labelled)
    with (
        atomic_write(output) as temporary,
        recording(artifacts_dir, version, contract, now, shadow_of=beside.number) as record,
        _WRITERS[target.suffix.lower()](temporary, schema) as writer,
    ):
        yield _Shadow(version, model, beside, writer, schema, temporary, record, contract, output.name)


def _kept_model(version: StoredVersion) -> Any:
    """Return the `keras.Model` of a version, which the first call for it loads."""
    with _loading:
        digest = version.manifest.manifest_sha256
        if digest not in _kept:
            while len(_kept) > 1:  # a champion and its shadow
                _kept.pop(next(iter(_kept)))
            _kept[digest] = load_model(version)
        return _kept[digest]


def predictions_schema(contract: DatasetContract, manifest: Manifest, labelled: bool) -> pa.Schema:
    """Return the columns, none nullable, with the version as metadata.

    - ``row`` int64: data row of the CSV, from 0, as in the index of a pandas frame of the same file
    - ``label`` int32: label in the CSV, whatever its column is named there; only if the CSV is ``labelled``
    - ``predicted_label`` int32, ``name`` string: predicted label, and the name of its class
    - ``p0``, ``p1``, ... float32: probability per label
    """
    columns = {"row": pa.int64(), **({"label": pa.int32()} if labelled else {})}
    columns |= {"predicted_label": pa.int32(), "name": pa.string()}
    columns |= {f"p{label}": pa.float32() for label in contract.class_labels}
    return pa.schema(
        [pa.field(name, kind, nullable=False) for name, kind in columns.items()],
        metadata={
            "fashion_ann.version": str(manifest.version),
            "fashion_ann.dataset": contract.name,
            "fashion_ann.manifest_sha256": manifest.manifest_sha256,
            "fashion_ann.weights_sha256": manifest.files[WEIGHTS_NAME].sha256,
        },
    )


def _add_metadata(writer: Any, schema: pa.Schema, warnings: list[str]) -> None:
    """Add the metadata of ``schema`` and the warnings to a Parquet file. A CSV has none."""
    if isinstance(writer, pq.ParquetWriter):
        writer.add_key_value_metadata({**schema.metadata, b"fashion_ann.warnings": json.dumps(warnings)})


def _predictions_table(
    probabilities: npt.NDArray[np.float32],
    predicted: npt.NDArray[np.int64],
    true: npt.NDArray[np.uint8] | None,
    start: int,
    contract: DatasetContract,
    schema: pa.Schema,
) -> pa.Table:
    """Return a table of probabilities float32 (N, classes), ``predicted`` classes and, if known, ``true`` ones, (N,).

    ``start`` is the row number of the first.
    """
    label_of = np.array(contract.class_labels, np.int32)
    labels = [] if true is None else [label_of[true]]
    names = pa.array(contract.class_names).take(pa.array(predicted))
    rows = np.arange(start, start + len(predicted))
    return pa.table([rows, *labels, label_of[predicted], names, *probabilities.T], schema=schema)


def in_batches(blocks: Iterable[Rows], size: int) -> Iterator[Rows]:
    """Yield the same rows in the same order as uint8 (size, columns), with fewer rows in the last batch."""
    pending: list[Rows] = []
    count = 0
    for block in blocks:
        pending.append(block)
        count += len(block)
        if count >= size:
            rows = np.concatenate(pending)
            whole = count - count % size
            for start in range(0, whole, size):
                yield rows[start : start + size]
            pending, count = [rows[whole:]], count - whole
    if count:
        yield np.concatenate(pending)


_WRITERS: Mapping[str, Callable[[Path, pa.Schema], Any]] = {
    # Names repeat, probabilities rarely do. A stored Arrow schema would hide metadata that is added at the end.
    ".parquet": partial(pq.ParquetWriter, compression="zstd", use_dictionary=["name"], store_schema=False),
    # float32 values are written with enough digits to read the same value back.
    ".csv": partial(pa_csv.CSVWriter, write_options=pa_csv.WriteOptions(quoting_header="none")),
}


def _writer_for(output: Path, images: Path) -> tuple[Callable[[Path, pa.Schema], Any], Path]:
    """Return the function that opens ``output`` by its suffix, and the file that it is or links to.

    Raises `WrongUsage` if it cannot be written.
    """
    writer = _WRITERS.get(output.suffix.lower())
    if writer is None:
        raise WrongUsage(f"The output {output} must end in {' or '.join(_WRITERS)}. Choose another name.")
    target = require_replaceable(output, "file")
    # The path as well, because inode numbers are unstable on some file systems.
    if target == images.resolve() or (output.exists() and images.exists() and output.samefile(images)):
        raise WrongUsage(f"The output {output} is also the file of the images. Choose another name.")
    return writer, target


def require_replaceable(output: Path, kind: Literal["file", "folder"]) -> Path:
    """Return the path that ``output`` is or links to. Raises `WrongUsage` if it cannot be written or replaced."""
    try:
        output.stat()  # since Python 3.13 `resolve` does not raise for such a link
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise WrongUsage(
                f"The output {output} must be a {kind}; it is a link to itself. Choose another name."
            ) from error
    target = output.resolve()
    if not target.parent.is_dir():
        raise WrongUsage(f"The output {output} must be in an existing folder. Create {target.parent} first.")
    if output.exists() and not (output.is_file() if kind == "file" else output.is_dir()):
        received = "folder" if output.is_dir() else "file" if output.is_file() else "device or a pipe"
        raise WrongUsage(f"The output {output} must be a {kind}; it is a {received}. Choose another name.")
    if is_mount_point(target):
        raise WrongUsage(
            f"The output {output} is a mount point, which cannot be replaced. Choose a name inside a mounted folder."
        )
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise WrongUsage(f"The output {output} must be in a folder that can be written to. Choose another folder.")
    return target


@contextmanager
def _name_in_errors(output: str) -> Iterator[None]:
    """Name the output in errors of pyarrow, which leave it out, mostly on a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise StageNotWritten(f"predict could not write {output}: {error.strerror or error}.") from error
