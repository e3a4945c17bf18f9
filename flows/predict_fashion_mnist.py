"""predict-fashion-mnist: predict the class and class probabilities of each row of one or more CSVs of images."""

from pathlib import Path
from typing import Annotated

from prefect import flow
from prefect.runtime import flow_run
from pydantic import Field

from flows.states import ON_KILLED, ON_RUNNING
from schemas.config import Runner, absolute, expanded, separate_folders
from schemas.contract import DatasetName
from schemas.references import Predictions
from tasks.predict import predict, predict_files
from tasks.registry.alias_log import CHAMPION
from tasks.registry.prediction_folder import csvs_by_part, is_several
from tasks.runtime.task_runs import tasks_on


def _run_name() -> str:
    parameters = flow_run.parameters
    images = parameters["images"]
    first, *more = images if isinstance(images, list) else [images]
    others = f" and {len(more)} more" if more else ""
    return f"{parameters['dataset']} predict {Path(first).name}{others} by {parameters['version']}"


@flow(
    name="predict-fashion-mnist",
    flow_run_name=_run_name,
    on_running=ON_RUNNING,
    on_crashed=ON_KILLED,
    on_cancellation=ON_KILLED,
)
def predict_fashion_mnist(
    images: Path | Annotated[list[Path], Field(min_length=1)],
    output: Path,
    version: str = CHAMPION,
    artifacts_dir: Path | None = None,
    dataset: DatasetName = "fashion-mnist",
    strict: bool = False,
    runner: Runner = "threads",
    shadow: str | None = None,
) -> Predictions:
    """Predict ``images``, a CSV with or without labels, with a stored model, and write ``output``.

    images: one CSV, or several: a list, or a folder with CSVs. Several have a task run each.
    version: a number or an alias.
    output: a file that ends in .parquet or .csv. For several CSVs a folder with a Parquet file per CSV. It is written
    completely or not at all.
    strict: fail, and write nothing, if the images or their labels cause a warning.
    artifacts_dir: defaults to FASHION_ANN_ARTIFACTS_DIR, then to artifacts/ of the checkout.
    shadow: another version, a number or an alias, whose answers are written beside ``output`` and compared.
    runner: as in train-fashion-mnist, for several CSVs. One CSV is predicted in this process.
    """
    artifacts, _ = separate_folders(artifacts_dir)
    paths = [absolute(expanded(path)) for path in (images if isinstance(images, list) else [images])]
    target = absolute(expanded(output))
    if not is_several(paths):
        return predict(paths[0], target, version, dataset, artifacts, strict, shadow)
    with tasks_on(runner):
        return predict_files(csvs_by_part(paths), target, version, dataset, artifacts, strict, shadow)
