"""The configuration: one flat, frozen model for training, and where the two folders are."""

import os
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from schemas.errors import WrongUsage

# The checkout: what a command finds does not depend on the folder that it was called from.
PROJECT_ROOT = Path(__file__).resolve().parents[1]

# What training runs on. "auto": a GPU where the backend can use one, else the CPU; "gpu": a GPU or a failure before the
# first epoch; "cpu": the CPU, also where there is a GPU.
DeviceChoice = Literal["auto", "gpu", "cpu"]
# Where training runs: in the process of the main flow, or on a worker of the gpu pool.
TrainOn = Literal["here", "gpu"]
# The digest of both CSVs, see `tasks.data.data_folder.digest_of_csvs`.
DataDigest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
# How many rows of a split may be bad and are set aside: so many, or a share of the rows of its CSV such as 0.5%.
BadRows = (
    # Strict, because pydantic takes "1_0" and 5.0 for integers, too.
    Annotated[int, Field(strict=True, ge=0, lt=10**12)]
    | Annotated[str, Field(pattern=r"^([0-9]{1,12}|(100(\.0{1,9})?|[0-9]{1,2}(\.[0-9]{1,9})?)%)$")]
)
# How long a training may wait for a gpu worker that is up and idle to take it.
WorkerSeconds = Annotated[float, Field(ge=1, le=86_400)]


class TrainingConfig(BaseModel):
    """How the network is trained. Unknown keys are refused by name.

    The defaults are the recipe chosen on the validation split (README, "The recipe").
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(45, ge=1, le=10_000, description="passes over the train split")
    batch_size: int = Field(256, ge=1, le=65_536, description="images a gradient step; fewer for a small split")
    learning_rate: float = Field(
        4e-3, gt=0, le=1, description="peak of the schedule: one epoch of linear warm-up, then cosine decay"
    )
    weight_decay: float = Field(0.15, ge=0, le=1, description="decoupled, as in AdamW")
    dropout: float = Field(0.05, ge=0, lt=1, description="share of hidden activations set to 0 in training")
    validation_size: int = Field(
        5_000,
        ge=10,
        le=1_000_000,
        description="rows held out of train, at most a fifth of them, every class in proportion",
    )
    early_stopping: int | None = Field(
        None, ge=1, le=10_000, description="stop after this many epochs without a lower validation loss; null: never"
    )
    seed: int = Field(
        0, ge=0, le=2**32 - 1, description="of the split, the initial weights, the order of batches and dropout"
    )


class PromotionConfig(BaseModel):
    """When a new version takes the champion's place. Unknown keys are refused by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: Literal["better", "not_worse", "never"] = Field(
        "better", description="what a candidate has to be than the champion, beyond noise; never: no version moves it"
    )
    minimum_accuracy: float = Field(0.80, ge=0, le=1, description="test accuracy below which a version is refused")
    minimum_recall: float = Field(0.30, ge=0, le=1, description="recall of any class below which a version is refused")
    significance: float = Field(
        0.05, gt=0, lt=1, description="p-value of McNemar's exact test below which a difference is no noise"
    )


def allowed_bad_rows(budget: BadRows, rows: int) -> int:
    """How many of ``rows`` may be bad; of a share the whole rows."""
    text = str(budget)
    return int(Fraction(text[:-1]) / 100 * rows) if text.endswith("%") else int(text)


def artifacts_folder(given: str | Path | None = None) -> Path:
    """Absolute path of what runs write: ``given``, else FASHION_ANN_ARTIFACTS_DIR, else artifacts/ of the checkout."""
    return _folder(given, "FASHION_ANN_ARTIFACTS_DIR", "artifacts")


def data_folder(given: str | Path | None = None) -> Path:
    """Absolute path of the CSVs: ``given``, else FASHION_ANN_DATA_DIR, else data/ of the checkout."""
    return _folder(given, "FASHION_ANN_DATA_DIR", "data")


def _folder(given: str | Path | None, variable: str, default: str) -> Path:
    chosen = given if given is not None else os.environ.get(variable)
    if chosen is None:
        return PROJECT_ROOT / default
    if not str(chosen).strip():
        raise WrongUsage(f"A folder was expected, an empty text was received: give a path, or leave {variable} unset.")
    try:
        folder = Path(chosen).expanduser().absolute()
    except RuntimeError as error:
        raise WrongUsage(f"{chosen} cannot be used as a folder: {error} Give a path.") from error
    if folder.exists() and not folder.is_dir():
        raise WrongUsage(f"{folder} was expected to be a folder, it is a file. Give another path.")
    return folder
