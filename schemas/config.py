"""Configuration: frozen models for training and promotion, and the paths of the data and artifacts folders."""

import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, FiniteFloat, Tag, model_validator

from schemas.errors import WrongUsage

# The checkout, so that default paths do not depend on the current directory.
PROJECT_ROOT = Path(__file__).resolve().parents[1]
# The command in a checkout after `make run`, for texts that are read later or elsewhere.
PROGRAM = ".venv/bin/fashion-ann"
_DATA_FOLDER = "data"
_DATA_VARIABLE = "FASHION_ANN_DATA_DIR"


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module with this interpreter. It imports nothing from the working directory."""
    return [sys.executable, "-P", "-m", module, *arguments]


def install_command(extra: str) -> str:
    """Return the command that installs an extra of pyproject.toml from its lock."""
    lock = shlex.quote(str(PROJECT_ROOT / "requirements" / f"{extra}.lock"))
    return f"{shlex.quote(sys.executable)} -m pip install --require-hashes -r {lock}"


def python_path() -> str:
    """Return PYTHONPATH for child processes: the checkout, then the absolute folders that the user set.

    The names of our packages are common words, so a folder that the user set may contain a ``tasks.py``. A relative or
    empty entry is in the working directory, from which nothing is imported.
    """
    folders = filter(os.path.isabs, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return os.pathsep.join(dict.fromkeys([str(PROJECT_ROOT), *folders]))


# Address of the object storage that machines without a shared disk use.
REMOTE_VARIABLE = "FASHION_ANN_REMOTE"
_FORMS = "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///FOLDER"
# pathlib turns "s3://bucket" into "s3:/bucket", and "file:///folder" into "file:/folder".
_ADDRESS = re.compile(r"(?:(s3|gs|az):/{1,2}|(file):(?:/|///))([^/].*)")
_SCHEME = re.compile(r"(?:s3|gs|az|file):/")


def as_address(place: str | Path) -> str | None:
    """Return ``place`` as an address of object storage, without a slash at its end; None if it is a path.

    An address may have been turned into a Path before.

    Raises `WrongUsage` for an address without a bucket, and for one with credentials, which logs and flow runs would
    show.
    """
    match = _ADDRESS.fullmatch(str(place))
    if match is None:
        if _SCHEME.match(str(place)):
            raise WrongUsage(f"Expected {_FORMS}, received {_shown(str(place))}.")
        return None
    scheme, rest = match[1] or match[2], match[3].rstrip("/")
    if "@" in rest.partition("/")[0] or "?" in rest:
        raise WrongUsage(
            f"{scheme}://...: expected {scheme}://BUCKET/PREFIX, received an address with a user or a query. Remove "
            "them, and give credentials in the variables of the provider, such as AWS_ACCESS_KEY_ID."
        )
    return f"{scheme}://{'/' if scheme == 'file' else ''}{rest}"


def remote_address() -> str | None:
    """Return the address in FASHION_ANN_REMOTE, None if it is unset or empty. Raises `WrongUsage` for anything else."""
    text = os.environ.get(REMOTE_VARIABLE, "")
    if not text.strip():
        return None
    if "://" not in text or not _ADDRESS.fullmatch(text.strip()):
        raise WrongUsage(f"{REMOTE_VARIABLE}: expected {_FORMS}, received {_shown(text)}.")
    return as_address(text.strip())


def _shown(text: str) -> str:
    """Return the beginning of a text for an error, without what may be credentials: a user or a query."""
    return repr(re.sub(r"//.*@", "//...@", text.partition("?")[0])[:80])


# Address of the MLflow server that versions are sent to. mlflow reads the same variable.
MLFLOW_VARIABLE = "MLFLOW_TRACKING_URI"


def mlflow_address(text: str | None = None) -> str | None:
    """Return the address ``text``, by default MLFLOW_TRACKING_URI, without user and password. None if it is empty.

    Raises `WrongUsage` for anything but the address of a server. MLflow would take it for a local folder or database.
    """
    text = (os.environ.get(MLFLOW_VARIABLE, "") if text is None else text).strip()
    if not text:
        return None
    try:
        parts = urlsplit(text)
        # A password with a slash or a question mark ends the host too early.
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        valid = valid and "@" not in parts.path and not parts.query and not parts.fragment
    except ValueError:
        valid = False
    if not valid:
        received = text.rpartition("@")[2].partition("?")[0][:80]
        raise WrongUsage(
            f"{MLFLOW_VARIABLE}: expected the address of an MLflow server, such as http://127.0.0.1:5000, received "
            f"{received!r}."
        )
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


# The device that trains. "auto": a GPU if the backend can use one, else the CPU. "gpu": fail before the first epoch
# without a usable GPU. "cpu": the CPU, even on a machine with a GPU.
DeviceChoice = Literal["auto", "gpu", "cpu"]
# Where training runs: in the process of the main flow, or on a worker of the gpu pool.
TrainOn = Literal["here", "gpu"]
# Where the tasks per shard run: on threads of this process, or on workers of Dask.
Runner = Literal["threads", "dask"]
# Address of the scheduler of a standing Dask cluster, such as tcp://10.0.0.1:8786.
DASK_ADDRESS_VARIABLE = "FASHION_ANN_DASK_ADDRESS"
# Where a worker of the gpu pool stores the result of its flow run.
RESULT_FOLDER_VARIABLE = "PREFECT_LOCAL_STORAGE_PATH"
# Digest of the CSVs of both splits, computed by `tasks.data.data_folder.digest_of_csvs`.
DataDigest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
# Bad rows of a split that are quarantined before the split is rejected: a number, or a share of its rows such as 0.5%.
BadRows = (
    # Strict, because pydantic also parses "1_0" and 5.0 as integers.
    Annotated[int, Field(strict=True, ge=0, lt=10**12)]
    | Annotated[str, Field(pattern=r"^([0-9]{1,12}|(100(\.0{1,9})?|[0-9]{1,2}(\.[0-9]{1,9})?)%)$")]
)
# Memory for the images of a training: a size such as 2GB or 512MiB, or a share of the machine's memory such as 6%.
_MEMORY_BUDGET = r"^([0-9]{1,15}(\.[0-9]{1,3})?([kMGT]i?)?B|[1-9][0-9]?%)$"


def _check_memory_budget(value: str) -> str:
    if not re.fullmatch(_MEMORY_BUDGET, value):
        raise ValueError("expected a size such as 500MB or 2GB, or a share of the memory from 1% to 99%")
    return value


MemoryBudget = Annotated[
    str, AfterValidator(_check_memory_budget), Field(json_schema_extra={"pattern": _MEMORY_BUDGET})
]
# A person's remark on a run, which its version keeps.
Note = Annotated[str, Field(pattern=r"\S", max_length=500)]
# Recorded in the alias log with a move by hand.
Reason = Annotated[str, Field(pattern=r"\S")]
# Seconds to wait for an idle gpu worker to start a training.
WorkerSeconds = Annotated[float, Field(ge=1, le=86_400)]

# Keras's names of the activations and optimizers that a recipe may have. Keras writes each activation as its name.
Activation = Literal["relu", "elu", "gelu", "leaky_relu", "selu", "sigmoid", "silu", "softplus", "tanh"]
Optimizer = Literal["adamw", "adam", "sgd", "rmsprop"]
ACTIVATIONS: tuple[str, ...] = get_args(Activation)
HIDDEN_LAYERS, LARGEST_LAYER = 8, 4_096
# The disturbed test images that an evaluation measures the accuracy on, see `tasks.model.disturbances`.
Disturbance = Literal["shift_1", "shift_2", "rotation", "mirror", "noise", "blur", "contrast", "erased"]
MinimumRobustness = Annotated[dict[Disturbance, Annotated[float, Field(ge=0, le=1)]], Field(min_length=1)]
_Units = Annotated[int, Field(ge=1, le=LARGEST_LAYER)]


def _one_form(units: int | list[int]) -> int | list[int]:
    # The same network has one cache key.
    return units[0] if isinstance(units, list) and len(units) == 1 else units


# The tags give an error of one form only.
HiddenUnits = Annotated[
    Annotated[_Units, Tag("one layer")]
    | Annotated[list[_Units], Field(min_length=1, max_length=HIDDEN_LAYERS), Tag("several layers")],
    Discriminator(lambda units: "several layers" if isinstance(units, list) else "one layer"),
    AfterValidator(_one_form),
]


class TrainingConfig(BaseModel):
    """Hyperparameters of training. Unknown keys are errors.

    The defaults were chosen by cross-validation inside the train split (docs/recipe.md).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(55, ge=1, le=10_000, description="passes over the train split")
    batch_size: int = Field(256, ge=1, le=65_536, description="batch size; reduced automatically for small datasets")
    learning_rate: float = Field(
        4e-3, gt=0, le=1, description="peak of the schedule: one epoch of linear warm-up, then cosine decay"
    )
    optimizer: Optimizer = Field("adamw", description="optimizer of Keras, with Keras's other defaults")
    weight_decay: float = Field(
        0.15, ge=0, le=1, description="decoupled weight decay, as in AdamW; 0 with another optimizer, unless given"
    )
    hidden_units: HiddenUnits = Field(128, description="units of the hidden layer, or of several, such as 512,256")
    activation: Activation = Field("relu", description="activation of the hidden layers")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of each label spread over all classes in the training loss"
    )
    dropout: float = Field(0.05, ge=0, lt=1, description="share of hidden activations set to 0 in training")
    validation_size: int = Field(
        600,
        ge=10,
        le=1_000_000,
        description="rows of the train split held out for learning curves, early stopping and golden predictions, at "
        "most a fifth; stratified by class",
    )
    early_stopping: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="epochs without a lower validation loss after which training stops; needs more held-out rows",
    )
    seed: int = Field(
        0,
        ge=0,
        le=2**32 - 1,
        description="random seed of the validation split, initial weights, batch order and dropout",
    )

    memory_budget: MemoryBudget = Field(
        "6%",
        description="memory for images, a size such as 2GB or a share of the machine's; a train split that needs more "
        "is shuffled and read in windows",
    )

    @model_validator(mode="before")
    @classmethod
    def _decay_only_with_adamw(cls, settings: Any) -> Any:
        # AdamW is Adam with weight decay, so Adam would otherwise be AdamW.
        if isinstance(settings, dict) and settings.get("optimizer", "adamw") != "adamw":
            return {"weight_decay": 0.0, **settings}
        return settings

    @property
    def layer_units(self) -> tuple[int, ...]:
        """Return the units of each hidden layer."""
        return tuple(self.hidden_units) if isinstance(self.hidden_units, list) else (self.hidden_units,)


class Range(BaseModel):
    """The values from ``low`` to ``high`` of a setting; with ``log`` small ones are as likely as large ones."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: FiniteFloat
    high: FiniteFloat
    log: bool = False

    @model_validator(mode="after")
    def _check_bounds(self) -> "Range":
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError("low must be below high, and above 0 with log")
        return self


def is_whole(key: str) -> bool:
    """Return whether the numbers of a setting of `TrainingConfig` are integers."""
    annotation = TrainingConfig.model_fields[key].annotation
    return float not in (get_args(annotation) or (annotation,))


def _check_space(space: dict[str, Range | list[Any]]) -> dict[str, Range | list[Any]]:
    if not space:
        raise ValueError("expected at least one setting to search")
    for key, values in space.items():
        # All trials are compared on the same held-out rows.
        if key not in TrainingConfig.model_fields or key in ("seed", "validation_size", "memory_budget"):
            raise ValueError(f"{key} is no setting that can be searched")
        for value in (values.low, values.high) if isinstance(values, Range) else values:
            TrainingConfig.model_validate({key: int(value) if isinstance(values, Range) and is_whole(key) else value})
    return space


# The values of each setting that `fashion-ann tune` searches: a range, or a list of values.
_Searched = Annotated[
    Annotated[Range, Tag("range")] | Annotated[list[Any], Field(min_length=1), Tag("list")],
    Discriminator(lambda values: "list" if isinstance(values, list) else "range"),
]
SearchSpace = Annotated[dict[str, _Searched], AfterValidator(_check_space)]
DEFAULT_SPACE: dict[str, Range | list[Any]] = {
    "learning_rate": Range(low=1e-3, high=1e-2, log=True),
    "weight_decay": Range(low=0.02, high=0.4, log=True),
    "dropout": Range(low=0, high=0.3),
    "label_smoothing": Range(low=0, high=0.1),
    "batch_size": [128, 256, 512],
    "hidden_units": [128, 256, 512, [256, 128]],
}
TrialCount = Annotated[int, Field(ge=1, le=100_000)]
# Rows of the train split that trials are compared on. The default validation split is too small to choose by.
HeldOut = Annotated[int, Field(ge=10, le=1_000_000)]
DEFAULT_HELD_OUT = 5_000
ShadowRows = Annotated[int, Field(ge=0, le=10**12)]
# Days of predictions that watch-predictions compares.
WatchedDays = Annotated[int, Field(ge=1, le=3_650)]
DEFAULT_WATCHED_DAYS = 90
TuningSeconds = Annotated[float, Field(gt=0)]


def config_lines(config: TrainingConfig) -> Iterator[str]:
    """Yield the lines of a TOML file with all settings. A setting that is off is left out."""
    for key, value in config.model_dump(exclude_none=True).items():
        yield f"{key} = {json.dumps(value)}"


class PromotionConfig(BaseModel):
    """Rules for promoting a new version to champion. Unknown keys are errors.

    A minimum of None is that of the dataset file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: Literal["better", "not_worse", "never", "ask"] = Field(
        "better",
        description="promotion rule: significantly better than the champion, not significantly worse, never, or better "
        "and approved by a person",
    )
    minimum_accuracy: float | None = Field(
        None, ge=0, le=1, description="test accuracy below which a version is rejected"
    )
    minimum_recall: float | None = Field(
        None, ge=0, le=1, description="per-class recall below which a version is rejected"
    )
    minimum_robustness: MinimumRobustness | None = Field(
        None, description="test accuracy by disturbance, such as blur=0.7,noise=0.8, below which a version is rejected"
    )
    minimum_shadow_rows: int | None = Field(
        None,
        ge=1,
        le=10**12,
        description="rows that a version must have answered as a shadow of the champion before it is promoted",
    )
    significance: float = Field(0.05, gt=0, lt=1, description="significance level of McNemar's exact test")


def allowed_bad_rows(budget: BadRows, rows: int) -> int:
    """Return how many of ``rows`` may be bad. A share is rounded down to whole rows."""
    text = str(budget)
    return int(Fraction(text[:-1]) / 100 * rows) if text.endswith("%") else int(text)


def artifacts_folder(given: str | Path | None = None) -> Path:
    """Return the artifacts folder: ``given``, else FASHION_ANN_ARTIFACTS_DIR, else artifacts/ of the checkout."""
    return _folder(given, "FASHION_ANN_ARTIFACTS_DIR", "artifacts")


def data_folder(given: str | Path | None = None) -> Path:
    """Return the folder of the CSVs: ``given``, else FASHION_ANN_DATA_DIR, else data/ of the checkout.

    For an address of object storage this is a path that `as_address` reads, and `local_data_folder` copies to disk.
    """
    return _folder(given, _DATA_VARIABLE, _DATA_FOLDER)


def datasets_folder() -> Path:
    """Return the folder of your dataset files: FASHION_ANN_DATASETS_DIR, else datasets/ of the checkout."""
    return _folder(None, "FASHION_ANN_DATASETS_DIR", "datasets")


def separate_folders(artifacts_dir: str | Path | None = None, data_dir: str | Path | None = None) -> tuple[Path, Path]:
    """Return `artifacts_folder` and `data_folder`. Raises `WrongUsage` if one contains the other, or they are equal.

    Runs write to folders below the artifacts folder, such as data/, and garbage collection deletes there.
    """
    artifacts, data = artifacts_folder(artifacts_dir), data_folder(data_dir)
    if as_address(data) is not None:
        return artifacts, data
    places = {"artifacts": Path(os.path.realpath(artifacts)), "data": Path(os.path.realpath(data))}
    for outer, inner in (("artifacts", "data"), ("data", "artifacts")):
        if places[inner].is_relative_to(places[outer]):
            raise WrongUsage(
                f"The {inner} folder {places[inner]} is inside the {outer} folder {places[outer]}. Expected separate "
                "folders, because `fashion-ann gc` deletes in the artifacts folder. Name others with --data-dir and "
                "--artifacts-dir, or with FASHION_ANN_DATA_DIR and FASHION_ANN_ARTIFACTS_DIR."
            )
    return artifacts, data


def is_default_data_folder(folder: Path) -> bool:
    """Return whether ``folder`` is data/ of the checkout. If that is a link, it names another folder, and none is."""
    return os.path.realpath(folder) == str(PROJECT_ROOT / _DATA_FOLDER)


def expanded(path: str | Path) -> Path:
    """Return ``path`` with a leading ``~`` or ``~USER`` replaced. Raises `WrongUsage` if that home is unknown."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        problem = str(error).rstrip(".")
        raise WrongUsage(f"{path}: the home folder is unknown ({problem}). Give a path without ~.") from error


def absolute(path: str | Path) -> Path:
    """Return the absolute path without "..". Links are followed only if ".." behind one leads elsewhere."""
    given = Path(path).absolute()
    plain, real = Path(os.path.normpath(given)), os.path.realpath(given)
    return plain if os.path.realpath(plain) == real else Path(real)


def _folder(given: str | Path | None, variable: str, default: str) -> Path:
    chosen = os.environ.get(variable, PROJECT_ROOT / default) if given is None else given
    if not str(chosen).strip():
        raise WrongUsage(f"Expected a folder, received an empty string: give a path, or leave {variable} unset.")
    if variable == _DATA_VARIABLE and (address := as_address(chosen)) is not None:
        return Path(address.removeprefix("file://"))
    folder = absolute(expanded(chosen))
    if folder.exists() and not folder.is_dir():
        raise WrongUsage(f"Expected a folder, received the file {folder}. Give another path.")
    return folder
