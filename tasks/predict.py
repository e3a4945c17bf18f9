"""Predict: a class and its probabilities for each image of one CSV, or of several, with a stored version."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from schemas.errors import UnreadableData, WrongUsage
from schemas.layout import files_beside, profile_beside
from schemas.references import CsvFile, FilePredictions, PredictedFiles, Predictions
from tasks.registry.batch_prediction import predict_csv
from tasks.registry.prediction_folder import new_prediction_folder, predicted_files
from tasks.registry.store import ModelStore
from tasks.reports.versions_page import write_versions_page
from tasks.runtime.events import StageStarted, emit
from tasks.runtime.files import sha256_file, without_temporary_names
from tasks.runtime.materialize import file_here, receive_file, send_csv, send_file
from tasks.runtime.prefect_artifacts import publish_table
from tasks.runtime.task_runs import artifacts_here, elsewhere, run_per_shard, shard_artifacts

_PREDICT = "predict"


@task(name="predict", task_run_name="predict", cache_policy=NO_CACHE)
def predict(
    images: Path,
    output: Path,
    version: str,
    dataset: str,
    artifacts_dir: Path,
    strict: bool = False,
    shadow: str | None = None,
) -> Predictions:
    """Run `tasks.registry.batch_prediction.predict_csv`, and return a reference to its output."""
    predictions = predict_csv(images, output, version, dataset, artifacts_dir, strict, shadow=shadow)
    if (store := ModelStore.of(artifacts_dir, dataset)).mirror is not None:
        write_versions_page(store)  # it may have been copied
    _publish_checks(predictions, images.name, dataset)
    return predictions


@task(name="predict file", task_run_name="predict {images.name}", cache_policy=NO_CACHE)
def predict_file(
    images: Path,
    sha256: str | None,
    output: Path,
    version: str,
    dataset: str,
    artifacts_dir: Path | None,
    strict: bool = False,
    shadow: str | None = None,
) -> FilePredictions:
    """Predict one of several CSVs, and write the Parquet file ``output``.

    artifacts_dir: see `shard_artifacts`. For None the CSV with this ``sha256`` is fetched from the remote, and the
        content of ``output`` is stored there.
    """

    def run(csv: Path, target: Path, artifacts: Path) -> FilePredictions:
        predictions = predict_csv(csv, target, version, dataset, artifacts, strict, keep_model=True, shadow=shadow)
        return FilePredictions(**dict(predictions), images=images)

    with artifacts_here(artifacts_dir) as artifacts:
        if sha256 is None:
            _require_shared_folder(output.parent)
            predictions = run(images, output, artifacts)
        else:
            with (
                TemporaryDirectory(prefix="fashion-ann-predict-") as folder,
                file_here(CsvFile(path=images, sha256=sha256), Path(folder), None) as here,
            ):
                predictions = run(here.path, Path(folder) / output.name, artifacts)
                send_file(predictions.output, predictions.sha256)
                if predictions.profile is not None:
                    profile_sha256 = sha256_file(predictions.profile)
                    send_file(predictions.profile, profile_sha256)
                    predictions = predictions.model_copy(update={"profile_sha256": profile_sha256})
    _publish_checks(predictions, images.name, dataset)
    return predictions


def predict_files(
    csvs: Mapping[str, Path],
    output: Path,
    version: str,
    dataset: str,
    artifacts_dir: Path,
    strict: bool = False,
    shadow: str | None = None,
) -> PredictedFiles:
    """Predict several CSVs by `predict_file`, and write the folder ``output`` whole, or leave it as it was.

    csvs: by the names of their Parquet files, see `csvs_by_part`.

    Raises the error of a CSV after all were read: one `DataContractError` for all that have one.
    """
    emit(StageStarted(_PREDICT, None))
    # A number, so that all files are predicted by the same version if an alias moves meanwhile.
    store = ModelStore.of(artifacts_dir, dataset).refresh()
    if store.copied:
        write_versions_page(store)
    number = str(store.version(version).number)
    challenger = None if shadow is None else str(store.version(shadow).number)
    if challenger is not None and elsewhere():
        raise WrongUsage(
            "Expected no shadow: workers that share only FASHION_ANN_REMOTE keep their records, which a promotion "
            "could not count. Use --runner threads."
        )
    with new_prediction_folder(output) as folder:

        def calls() -> Iterator[dict[str, Any]]:
            common = {"version": number, "dataset": dataset, "strict": strict, "shadow": challenger}
            common |= {"artifacts_dir": shard_artifacts(artifacts_dir)}
            for part, csv in csvs.items():
                yield {"images": csv, "sha256": _sent(csv) if elsewhere() else None, "output": folder / part, **common}

        files = dict(zip(csvs, run_per_shard(_PREDICT, None, predict_file, calls()), strict=True))
        predicted = predicted_files(output, files)
        if elsewhere():
            for part, file in files.items():
                receive_file(file.sha256, folder / part)
                if file.profile_sha256 is not None:
                    receive_file(file.profile_sha256, profile_beside(folder / part))
        kept = {folder / part for part in files}
        kept |= files_beside(kept)
        for path in folder.iterdir():
            if path not in kept:  # of a worker that was killed
                path.unlink()
    return predicted


def _sent(csv: Path) -> str:
    """Store a CSV in the remote, and return its sha256."""
    try:
        reference = CsvFile(path=csv, sha256=sha256_file(csv))
    except OSError as error:
        raise UnreadableData.of(csv, error) from error
    send_csv(reference)
    return reference.sha256


def _require_shared_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise WrongUsage(
            f"{without_temporary_names(str(folder))}: this worker has no such folder. Expected one that all machines "
            "share. Choose another output, or set FASHION_ANN_REMOTE for the run and for each worker."
        )


def _publish_checks(predictions: Predictions, name: str, dataset: str) -> None:
    publish_table(
        f"{dataset}-prediction-checks",
        [{"result": check.result, **check.model_dump(exclude={"result"})} for check in predictions.checks],
        "\n\n".join(
            (
                f"{predictions.rows} rows of {name} predicted by version {predictions.version}: "
                f"{len(predictions.warnings)} warnings",
                *predictions.warnings,
            )
        ),
    )
