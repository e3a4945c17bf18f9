"""The commands that run a flow or its core: `train`, `tune` and `predict`."""

import argparse
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from cli.arguments import (
    MLFLOW,
    Argument,
    Commands,
    Terminated,
    config_arguments,
    counted,
    data_dir,
    path_argument,
    print_result,
    read_bad_rows,
    read_config,
    read_space,
    read_value,
)
from schemas.config import (
    DEFAULT_HELD_OUT,
    DEFAULT_SPACE,
    DeviceChoice,
    HeldOut,
    Note,
    PromotionConfig,
    Runner,
    TrainingConfig,
    TrialCount,
    TuningSeconds,
    artifacts_folder,
    data_folder,
    expanded,
)
from schemas.contract import DEFAULT_DATASET
from schemas.layout import REPORT_NAME
from tasks.runtime.stages import SHOWN

if TYPE_CHECKING:
    from schemas.predictions import ShadowComparison
    from schemas.references import ModelVersion, Predictions

commands = Commands()

_NAMES = [stage.name for stage in SHOWN]
_STAGES = f"{', '.join(_NAMES[:-1])} and {_NAMES[-1]}"


_DATA_DIR = data_dir(
    f"folder of {DEFAULT_DATASET}_train.csv and {DEFAULT_DATASET}_test.csv (named for the dataset), "
    "plain or as .csv.gz, whole or in shards"
)
_FETCH = Argument(
    "--fetch",
    action="store_true",
    help="download the published data if the data folder has no CSVs; without this flag, only into data/ of the "
    "checkout",
)
_BAD_ROWS = Argument(
    "--bad-rows",
    default="0",
    metavar="N",
    help="bad rows allowed in each split, as a number or a share such as 0.5%%; they are quarantined in "
    "artifacts/quarantine/ (default: %(default)s)",
)
_DEVICE = Argument(
    "--device",
    choices=get_args(DeviceChoice),
    default="auto",
    help="device that trains; auto: a GPU if one is usable, else the CPU; gpu: fail without a usable GPU "
    "(default: %(default)s)",
)


def _runner(tasks: str) -> Argument:
    return Argument(
        "--runner",
        choices=get_args(Runner),
        default="threads",
        help=f"what runs {tasks}; threads: one per core; dask: the cluster of FASHION_ANN_DASK_ADDRESS, or a local one "
        "that ends with the run; needs the extra dask (default: %(default)s)",
    )


_QUIET = Argument(
    "--quiet", action="store_true", help="print no progress, only warnings, errors and the result on stdout"
)
_CONFIG = Argument(
    "--config",
    type=path_argument,
    metavar="FILE",
    help="TOML file with settings of the training, as printed by `show V --config`; flags override it",
)


@commands.add(
    "train",
    _DATA_DIR,
    _FETCH,
    _BAD_ROWS,
    _DEVICE,
    _runner("the tasks per shard"),
    Argument("--note", metavar="TEXT", help="a remark that is stored with the new version, up to 500 characters"),
    MLFLOW,
    _QUIET,
    _CONFIG,
    *config_arguments(TrainingConfig, PromotionConfig),
    help="run the whole pipeline in this process",
    description=f"{_STAGES.capitalize()}. Completed stages are reused.",
    when_stopped="Nothing had started.",
)
def _train(options: argparse.Namespace) -> None:
    parameters = {
        **_common_parameters(options),
        "promotion": read_config(PromotionConfig, options),
        "note": read_value(Note | None, options.note, "--note"),
    }
    # Only now, because these imports are slow.
    from cli.embedded_server import run_flow
    from cli.terminal import Progress
    from schemas.references import ModelVersion

    progress = Progress()
    try:
        version = run_flow("train_fashion_mnist", parameters, ModelVersion, progress, quiet=options.quiet)
    except (KeyboardInterrupt, Terminated):
        options.when_stopped = progress.summary_when_stopped()
        raise
    print_result(options, version.model_dump(), _version_lines(version))


def _common_parameters(options: argparse.Namespace) -> dict[str, Any]:
    """Return the flow parameters that `train` and `tune` share."""
    return {
        "dataset": options.dataset,
        "data_dir": data_folder(options.data_dir),
        "artifacts_dir": artifacts_folder(options.artifacts_dir),
        "training": read_config(TrainingConfig, options, options.config and Path(options.config)),
        "device": options.device,
        "bad_rows": read_bad_rows(options.bad_rows),
        "fetch": options.fetch,
        "runner": options.runner,
    }


def _version_lines(version: "ModelVersion") -> Iterator[str]:
    if version.created:
        champion = " (now champion)" if version.champion else " (waiting for approval)" if version.waiting else ""
        yield f"created version {version.version}{champion}"
    else:
        champion = " (current champion)" if version.champion else ""
        yield f"nothing to do: version {version.version} already covers this data, code and configuration{champion}"
    yield f"  test accuracy {version.test_accuracy:.4f}, test loss {version.test_loss:.4f}"
    if version.created:
        yield f"  {version.verdict}"
    if version.waiting:
        yield f"  promote it with `fashion-ann promote {version.version} --reason R`"
    yield f"  model   {version.path}"
    yield f"  report  {version.path / REPORT_NAME}"


@commands.add(
    "tune",
    Argument("--trials", type=int, metavar="N", default=20, help="trials of the study in all (default: %(default)s)"),
    Argument(
        "--timeout",
        type=float,
        metavar="S",
        help="seconds after which unfinished trials stop; the same command continues them (default: off)",
    ),
    Argument(
        "--space",
        type=path_argument,
        metavar="FILE",
        help="TOML file with the settings to search, each with a range {low, high, log} or a list of values "
        f"(default: ranges of {', '.join(DEFAULT_SPACE)})",
    ),
    Argument(
        "--held-out",
        type=int,
        metavar="N",
        default=DEFAULT_HELD_OUT,
        help="rows of the train split that trials are compared on, at most a fifth (default: %(default)s)",
    ),
    Argument(
        "--parallel",
        type=int,
        metavar="N",
        help="trials at a time (default: one per two cores of this machine or of the Dask cluster, one on a GPU)",
    ),
    _DATA_DIR,
    _FETCH,
    _BAD_ROWS,
    _DEVICE,
    _runner("the tasks per shard, and with dask the trainings"),
    _QUIET,
    _CONFIG,
    *config_arguments(TrainingConfig),
    help="search for a recipe with Optuna, on the train split only",
    description="Train with settings that Optuna chooses, and write the recipe with the highest accuracy on rows held "
    "out from the train split, as a file for `train --config`. A setting that a flag gives is not searched. Nothing is "
    "promoted, and the test split is not opened. Needs the extra tune.",
    when_stopped="Finished trials are kept, and the others up to their last epoch. Run the same command again to "
    "continue.",
)
def _tune(options: argparse.Namespace) -> None:
    parameters = {
        **_common_parameters(options),
        "trials": read_value(TrialCount, options.trials, "--trials"),
        "timeout": read_value(TuningSeconds | None, options.timeout, "--timeout"),
        "space": read_space(options, options.space and Path(options.space)),
        "held_out": read_value(HeldOut, options.held_out, "--held-out"),
        "parallel": read_value(TrialCount | None, options.parallel, "--parallel"),
    }
    from cli.embedded_server import run_flow
    from cli.terminal import TuningProgress
    from schemas.references import Tuning

    tuned = run_flow("tune_fashion_mnist", parameters, Tuning, TuningProgress.empty(), quiet=options.quiet)
    lines = [
        f"trial {tuned.best} is the best of {tuned.finished}, of which {tuned.pruned} were pruned",
        f"  validation accuracy {tuned.val_accuracy:.4f}",
        f"  train it with `fashion-ann train --config {shlex.quote(str(tuned.recipe))}`",
        f"  recipe  {tuned.recipe}",
        f"  page    {tuned.page}",
    ]
    print_result(options, tuned.model_dump(), lines)


@commands.add(
    "predict",
    Argument(
        "images",
        nargs="+",
        type=path_argument,
        metavar="IMAGES",
        help="a CSV or .csv.gz as for train, with any number of rows, or several, or a folder of them; the column "
        "label is optional; it is kept and adds the accuracy",
    ),
    Argument(
        "--output",
        type=path_argument,
        metavar="OUT",
        required=True,
        help="file ending in .parquet or .csv; for several CSVs a folder with a Parquet file per CSV, named by it; "
        "replaces an earlier output, which is left unchanged by a failure",
    ),
    Argument(
        "--strict",
        action="store_true",
        help="end with status 3 and write nothing if the images, or the accuracy on their labels, cause a warning",
    ),
    Argument("--version", metavar="V", default="champion", help="a number or an alias (default: %(default)s)"),
    Argument(
        "--shadow",
        metavar="W",
        help="another version, whose answers are written beside OUT and compared with those of V; OUT stays the same",
    ),
    _runner("the tasks of several CSVs"),
    help="predict the images of CSVs with a version",
    description="Write one row per image: the label if the CSV has one, the predicted label with its class name, and "
    "the probability of each label. One CSV is predicted in this process without a Prefect server. Several CSVs are "
    "predicted by the flow predict-fashion-mnist, with a task per CSV. All are written or none, and the error names "
    "every faulty CSV. Their JSON has the keys of one CSV, for all rows. Its list `files` has these keys for each CSV, "
    "and the path as `images`.",
    when_stopped="Nothing was written.",
)
def _predict(options: argparse.Namespace) -> None:
    from tasks.registry.prediction_folder import csvs_by_part, is_several

    images = [expanded(path) for path in options.images]
    output, artifacts = expanded(options.output), artifacts_folder(options.artifacts_dir)
    if is_several(images):
        csvs_by_part(images)  # raises for wrong names before the server starts
        _predict_several(options, images, output, artifacts)
        return
    from tasks.registry.batch_prediction import predict_csv

    # The core, not the flow: starting a server takes longer than 10,000 predictions.
    predictions = predict_csv(
        images[0], output, options.version, options.dataset, artifacts, options.strict, shadow=options.shadow
    )
    print_result(options, predictions.model_dump(), _prediction_lines(predictions))


def _predict_several(options: argparse.Namespace, images: list[Path], output: Path, artifacts: Path) -> None:
    parameters = {
        "images": images,
        "output": output,
        "version": options.version,
        "artifacts_dir": artifacts,
        "dataset": options.dataset,
        "strict": options.strict,
        "runner": options.runner,
        "shadow": options.shadow,
    }
    from cli.embedded_server import run_flow
    from cli.terminal import Progress
    from schemas.references import PredictedFiles

    predicted = run_flow("predict_fashion_mnist", parameters, PredictedFiles, Progress.empty(), quiet=False)
    if options.runner == "dask":  # the workers log them to Prefect only
        for warning in predicted.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    lines = [*_prediction_lines(predicted)]
    for file in predicted.files:
        accuracy = "" if file.accuracy is None else f", accuracy {file.accuracy:.4f}"
        lines.append(f"    {file.output.name}  {counted(file.rows, 'row')}{accuracy}")
    print_result(options, predicted.model_dump(), lines)


def _prediction_lines(predictions: "Predictions") -> Iterator[str]:
    yield f"{predictions.rows} rows predicted by version {predictions.version}"
    if predictions.accuracy is not None:
        yield f"  accuracy {predictions.accuracy:.4f}"
    if (shadow := predictions.shadow) is not None:
        yield from _shadow_lines(predictions.version, shadow)
    yield f"  output  {predictions.output}"


def _shadow_lines(version: int, shadow: "ShadowComparison") -> Iterator[str]:
    low, high = shadow.agreement_interval
    yield f"  shadow  version {shadow.version}: {shadow.agreement:.4f} of the answers equal ({low:.4f} to {high:.4f})"
    for number, estimated in ((version, shadow.estimated), (shadow.version, shadow.shadow_estimated)):
        if estimated is not None:
            low, high = estimated.interval
            yield f"  shadow  version {number}: estimated accuracy {estimated.accuracy:.4f} ({low:.4f} to {high:.4f})"
    if (paired := shadow.paired) is not None:
        counts = f"{paired.fixed} fixed, {paired.broken} broken of {counted(paired.rows, 'label')}"
        yield f"  shadow  version {shadow.version}: {counts}, p = {paired.p_value:.3g}"
