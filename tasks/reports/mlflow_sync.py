"""Bring an MLflow server to the state of a store: a run and a model version per version of the store, and the aliases.

The store decides. A model version is created last, with the digest of the manifest as a tag, so one that exists is
complete. A process that was killed before leaves a run without it, which the next call deletes and logs again.

Only a job in a worker process imports mlflow, which takes 1.4 CPU seconds. A job that waits for a server can be killed.
"""

import importlib.util
import json
import logging
import os
import posixpath
import re
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np

from schemas.config import MLFLOW_VARIABLE, install_command, mlflow_address
from schemas.contract import SPLITS, contract_of
from schemas.errors import (
    ExtraNotInstalled,
    FashionAnnError,
    MlflowUnavailable,
    ProcessDied,
    StoredArtifactError,
    VersionNotFound,
)
from schemas.layout import GOLDEN_NAME, MANIFEST_NAME, METRICS_NAME, TOPOLOGY_NAME, WEIGHTS_NAME
from schemas.store import EvaluatedMetrics
from tasks.model import fashion_ann_pyfunc
from tasks.model.inference import read_golden
from tasks.registry.alias_log import alias_values
from tasks.registry.mirror import StoreMirror
from tasks.registry.store import ModelStore, StoredVersion
from tasks.registry.verify import check_version
from tasks.reports.charts import draw_confusion_matrix, draw_learning_curves
from tasks.runtime.fingerprint import installed_version
from tasks.runtime.locks import lock
from tasks.runtime.worker_process import Emit, run_worker, serve_jobs

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

# Time limit of MLflow in a run or a move of an alias. One version takes 1 to 3 s on a quiet machine.
SECONDS_TO_UPDATE = 120
_PREFIX = "fashion-ann"
DIGEST_TAG, VERSION_TAG = f"{_PREFIX}.manifest_sha256", f"{_PREFIX}.version"
# MLflow's own default is 7 retries of 120 s. Variables of the user win.
_CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
_MODEL_FILES = (TOPOLOGY_NAME, WEIGHTS_NAME, GOLDEN_NAME)  # in the order that the loader reads
_EXAMPLE_ROWS = 2
# MLflow's limits per request.
_METRICS_PER_REQUEST, _PARAMS_PER_REQUEST, _DIGEST_LENGTH = 1_000, 100, 36
_NOT_IN_NAMES = re.compile(r"[^\w\-. /]")
_NAME_LENGTH = 100  # of a class in the name of a metric, which may have 250 characters
# MLflow reserves these names: they name versions.
_RESERVED_ALIAS = re.compile(r"(?i:latest|v[0-9]+)")


@dataclass(frozen=True)
class MlflowState:
    """The state of MLflow after a synchronization.

    versions: MLflow's number of each version of the store. added: those that were missing. aliases: MLflow's number by
    alias. faults: a sentence per version or alias that MLflow does not have.
    """

    address: str
    versions: dict[int, int]
    added: list[int]
    aliases: dict[str, int]
    faults: list[str]


def require_mlflow() -> None:
    """Check MLFLOW_TRACKING_URI, if it is set, before the work of a run. mlflow is not imported.

    Raises `WrongUsage` for an address that is not that of a server, and `ExtraNotInstalled` without the extra mlflow.
    """
    address = mlflow_address()
    if address is not None and importlib.util.find_spec("mlflow") is None:
        raise ExtraNotInstalled(
            f"{MLFLOW_VARIABLE} is set, and mlflow is not installed. Run `{install_command('mlflow')}`, or unset "
            f"{MLFLOW_VARIABLE}."
        )


def update_mlflow(store: ModelStore) -> None:
    """Run `synchronize` if MLFLOW_TRACKING_URI is set. Any failure is logged as a warning: the store is complete."""
    try:
        if mlflow_address() is not None:
            for fault in synchronize(store, SECONDS_TO_UPDATE).faults:
                logger.warning("%s", fault)
    except (FashionAnnError, OSError) as error:
        logger.warning("MLflow is not up to date: %s `fashion-ann mlflow sync` adds what is missing.", error)


def synchronize(store: ModelStore, seconds: float | None = None) -> MlflowState:
    """Add each version that MLflow lacks, oldest first, and set each alias of the log that differs.

    seconds: time limit of the whole call. What was added by then stays.

    Raises `MlflowUnavailable` if the server does not answer, rejects a request or exceeds ``seconds``. Raises
    `WrongUsage` without an address, and as `require_mlflow`.
    """
    require_mlflow()
    address = mlflow_address()
    expired = threading.Event()
    with run_worker(__name__, {"root": str(store.root)}) as worker:

        def kill() -> None:
            expired.set()
            os.killpg(worker.process.pid, signal.SIGKILL)

        timer = threading.Timer(threading.TIMEOUT_MAX if seconds is None else seconds, kill)
        timer.daemon = True
        timer.start()
        try:
            result = worker.result()
        except ProcessDied as error:
            reason = f"it did not finish in {seconds:g} s" if seconds and expired.is_set() else str(error)
            raise MlflowUnavailable(f"{address}: {reason}.") from error
        finally:
            timer.cancel()
    # JSON has no integers as keys.
    return MlflowState(**{**result, "versions": {int(number): at for number, at in result["versions"].items()}})


def main(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Return the `MlflowState` after bringing MLflow to the state of the store ``job["root"]``, as a worker process."""
    os.environ.update({name: value for name, value in _CLIENT_SETTINGS.items() if name not in os.environ})
    root = Path(job["root"])
    store = ModelStore(root, root.name, StoreMirror.configured(root.name))
    address = mlflow_address() or ""
    if not store.numbers():
        return asdict(MlflowState(address, {}, [], {}, []))
    import mlflow
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    _move_credentials(os.environ)
    mlflow.set_tracking_uri(address)
    try:
        # One process at a time: two would add the same version twice.
        with lock(root / ".mlflow.lock", waiting=f"{root}: waiting for another process that updates MLflow"):
            return asdict(_MlflowCopy(store, mlflow.MlflowClient()).update(address))
    except (MlflowException, RequestException) as error:
        message = " ".join(str(error).split())[:400].rstrip(".")
        raise MlflowUnavailable(f"{address}: {message}.") from error


class _MlflowCopy:
    """The experiment and the registered model of a dataset, both with its name, on an MLflow server."""

    def __init__(self, store: ModelStore, client: "MlflowClient") -> None:
        self._store, self._client = store, client
        self._name = store.root.name

    def update(self, address: str) -> MlflowState:
        versions: dict[int, int] = {}
        added, faults = [], []
        registered = self._registered()
        for number in self._store.numbers():
            try:
                version = self._store.version(number)
                digest = version.manifest.manifest_sha256
                if digest not in registered:
                    check_version(version)
                    registered[digest] = self._add(version)
                    added.append(number)
                    logger.info("%s: version %d is version %d in MLflow", address, number, registered[digest])
                versions[number] = registered[digest]
            except VersionNotFound:
                continue  # removed by `gc` in the meantime
            except StoredArtifactError as error:
                faults.append(f"Version {number} is not in MLflow: {error}")
        aliases, alias_faults = self._move_aliases(versions)
        return MlflowState(address, versions, added, aliases, faults + alias_faults)

    def _registered(self) -> dict[str, int]:
        """Return the number of each model version that this project created, by the digest of its manifest."""
        found: dict[str, int] = {}
        token = None
        while True:
            page = self._client.search_model_versions(f"name='{self._name}'", page_token=token)
            for version in page:
                if (digest := version.tags.get(DIGEST_TAG)) is not None:
                    found[digest] = min(int(version.version), found.get(digest, int(version.version)))
            if not (token := page.token):
                return found

    def _move_aliases(self, versions: Mapping[int, int]) -> tuple[dict[str, int], list[str]]:
        """Set each alias of the log whose version in MLflow is another one. Aliases that the log lacks are left."""
        values = alias_values(self._store.aliases.read())
        if not values:
            return {}, []
        current = self._client.get_registered_model(self._name).aliases if versions else {}
        moved: dict[str, int] = {}
        faults = []
        for alias, number in values.items():
            if _RESERVED_ALIAS.fullmatch(alias):
                faults.append(f"The alias {alias} is not in MLflow, which reserves this name.")
            elif number in versions:
                if int(current.get(alias, 0)) != versions[number]:
                    self._client.set_registered_model_alias(self._name, alias, str(versions[number]))
                moved[alias] = versions[number]
            else:
                if alias in current:  # it would name another version
                    self._client.delete_registered_model_alias(self._name, alias)
                faults.append(f"The alias {alias} is not in MLflow, because its version {number} is not.")
        return moved, faults

    def _add(self, version: StoredVersion) -> int:
        """Log a version as a run, register its model, and return MLflow's number of the version."""
        import mlflow

        manifest = version.manifest
        experiment = self._client.get_experiment_by_name(self._name)
        identifier = self._client.create_experiment(self._name) if experiment is None else experiment.experiment_id
        self._delete_unfinished(identifier, manifest.manifest_sha256)
        created = round(datetime.fromisoformat(manifest.created).timestamp() * 1000)
        tags = {
            DIGEST_TAG: manifest.manifest_sha256,
            VERSION_TAG: str(version.number),
            f"{_PREFIX}.outcome": manifest.verdict.outcome,
        }
        links = {
            "mlflow.note.content": manifest.note or "",
            "mlflow.source.git.commit": manifest.code.revision or "",
            f"{_PREFIX}.flow_run": manifest.flow_run_id or "",
            f"{_PREFIX}.reason": manifest.verdict.reason,
        }
        run = self._client.create_run(
            identifier,
            created - round(manifest.training_seconds * 1000),
            {**tags, **{key: value for key, value in links.items() if value}},
            f"{self._name} v{version.number:04d}",
        )
        self._log_facts(run, version, created)
        with mlflow.start_run(run.info.run_id):
            model = self._log_model(version)
        self._client.set_terminated(run.info.run_id, end_time=created)
        # Last: its tag makes the version complete.
        registered = mlflow.register_model(model, self._name, tags=tags)
        return int(registered.version)

    def _delete_unfinished(self, experiment: str, digest: str) -> None:
        """Delete what a killed process logged of a version: its run and the model of that run."""
        for run in self._client.search_runs([experiment], f"tags.`{DIGEST_TAG}` = '{digest}'"):
            for model in self._client.search_logged_models([experiment], f"source_run_id = '{run.info.run_id}'"):
                self._client.delete_logged_model(model.model_id)
            self._client.delete_run(run.info.run_id)

    def _log_facts(self, run: "Run", version: StoredVersion, created: int) -> None:
        """Log parameters, metrics, data digests, plots and the files of a version. created: in milliseconds."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

        manifest, run_id = version.manifest, run.info.run_id
        metrics = json.loads(version.read(METRICS_NAME))
        evaluated = version.read_json(METRICS_NAME, EvaluatedMetrics)
        history = metrics.pop("history")
        figures = {**dict(_numbers(metrics)), "training_seconds": manifest.training_seconds}
        logged = [Metric(name, value, created, len(history)) for name, value in figures.items()]
        logged += [
            Metric(name, value, created, epoch)
            for epoch, row in enumerate(history, start=1)
            for name, value in _numbers(row)
        ]
        settings = {
            **manifest.used_settings,
            **{f"promotion.{key}": value for key, value in manifest.promotion.items()},
            "device": manifest.device.name,
            "backend": manifest.device.backend,
        }
        params = [Param(key, "off" if value is None else str(value)) for key, value in settings.items()]
        for start in range(0, len(logged), _METRICS_PER_REQUEST):
            self._client.log_batch(run_id, metrics=logged[start : start + _METRICS_PER_REQUEST])
        for start in range(0, len(params), _PARAMS_PER_REQUEST):
            self._client.log_batch(run_id, params=params[start : start + _PARAMS_PER_REQUEST])
        inputs = []
        for split in SPLITS:
            data = manifest.data.split(split)
            digests = {"csv_sha256": data.csv_sha256, "content_sha256": data.content_sha256}
            dataset = Dataset(
                f"{self._name} {split}",
                (data.content_sha256 or data.parquet_sha256)[:_DIGEST_LENGTH],
                "local",
                json.dumps({"uri": data.file, **digests, "parquet_sha256": data.parquet_sha256}),
                profile=json.dumps({"num_rows": data.rows, "quarantined": data.quarantined}),
            )
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", split)]))
        self._client.log_inputs(run_id, inputs)
        plots = {
            "learning_curves.svg": draw_learning_curves(history),
            "confusion_matrix.svg": draw_confusion_matrix(
                evaluated.confusion_matrix, [row.name for row in evaluated.per_class]
            ),
        }
        for name, picture in plots.items():
            self._client.log_text(run_id, picture, f"plots/{name}")
        for name in (MANIFEST_NAME, *manifest.files):
            if name not in _MODEL_FILES:
                self._client.log_artifact(run_id, str(version.folder / name))

    def _log_model(self, version: StoredVersion) -> str:
        """Log the model of a version to the active run, with signature and input example. Return its address."""
        from mlflow import pyfunc
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, Schema, TensorSpec

        manifest, contract = version.manifest, contract_of(version.manifest.dataset)
        content = {
            "dataset": manifest.dataset,
            "version": version.number,
            "manifest_sha256": manifest.manifest_sha256,
            "backend": manifest.device.backend,
            "scale": list(contract.scale),
            "classes": [{"label": label, "name": contract.labels[label]} for label in contract.class_labels],
            "sha256": {name: manifest.files[name].sha256 for name in _MODEL_FILES},
        }
        images, _ = read_golden(version.folder, contract.pixels, version.digests)
        low, high = contract.scale
        example = np.rint(images[:_EXAMPLE_ROWS] * (high - low) + low).astype(np.uint8)
        signature = ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, contract.pixels))]),
            outputs=Schema(
                [ColSpec("integer", "predicted_label"), ColSpec("string", "name")]
                + [ColSpec("float", f"p{label}") for label in contract.class_labels]
            ),
        )
        backend = ("jax",) if manifest.device.backend == "jax" else ("tensorflow-cpu", "tensorflow")
        packages = [name for name in ("keras", *backend, "numpy", "pandas") if name in manifest.packages]
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / self._name  # MLflow keeps the name
            folder.mkdir()
            for name in _MODEL_FILES:
                (folder / name).write_bytes(version.read(name))
            (folder / fashion_ann_pyfunc.CONTENT_NAME).write_text(json.dumps(content), encoding="utf-8")
            logged = pyfunc.log_model(
                name=self._name,
                loader_module=fashion_ann_pyfunc.__name__.rpartition(".")[2],
                data_path=str(folder),
                code_paths=[fashion_ann_pyfunc.__file__],
                signature=signature,
                input_example=example,
                pip_requirements=[
                    f"mlflow-skinny=={installed_version('mlflow-skinny')}",
                    *(f"{name}=={manifest.packages[name]}" for name in packages),
                ],
                metadata={key: content[key] for key in ("dataset", "version", "manifest_sha256")},
            )
        return str(logged.model_uri)


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Yield each number in a JSON object by its path, such as "per_class/Coat/recall". Other lists are left out."""
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _numbers(entry, f"{name}/{key}" if name else str(key))
    elif isinstance(value, list):
        rows = [row for row in value if isinstance(row, Mapping) and "name" in row]
        names = [metric_name(str(row["name"])) for row in rows]
        for place, (row, own) in enumerate(zip(rows, names, strict=True)):
            entries = {key: entry for key, entry in row.items() if key != "label"}
            yield from _numbers(entries, f"{name}/{own}" if names.count(own) == 1 else f"{name}/{own} {place}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)


def metric_name(text: str) -> str:
    """Return a class name as MLflow accepts it in the name of a metric, which has the form of a path."""
    name = _NOT_IN_NAMES.sub("_", text)[:_NAME_LENGTH]
    if posixpath.normpath(name) != name or name.startswith(("/", ".")):
        name = name.replace("/", "_").strip(".") or "_"
    return name


def _move_credentials(environ: MutableMapping[str, str]) -> None:
    """Move user and password from the address to MLflow's variables for them: its errors quote the address."""
    parts = urlsplit(environ[MLFLOW_VARIABLE].strip())
    for name, text in (("USERNAME", parts.username), ("PASSWORD", parts.password)):
        if text:
            environ[f"MLFLOW_TRACKING_{name}"] = unquote(text)


if __name__ == "__main__":
    from tasks.reports import mlflow_sync

    serve_jobs({mlflow_sync.__name__: mlflow_sync.main})
