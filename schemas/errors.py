"""The errors that users see, each with its exit status.

A message states what happened, what was expected, what was received and what to do next. Each class can be created
from its message alone: a worker process sends no more, and Prefect stores no more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self


class FashionAnnError(Exception):
    """Base class of errors with a message for users. The command line exits with ``exit_status``."""

    exit_status: ClassVar[int] = 1


class WrongUsage(FashionAnnError):
    """Invalid value of a flag, parameter or environment variable."""

    exit_status = 2


class DataUnavailable(FashionAnnError):
    """Missing data. The message lists the sources that were tried and how to supply the files by hand."""


class StageNotWritten(FashionAnnError):
    """Failure to write the output of a stage. No partial output is left."""


class RemoteUnavailable(FashionAnnError):
    """Object storage that cannot be reached, is full, or denies access. Outputs stay on this machine."""


class MlflowUnavailable(FashionAnnError):
    """MLflow server that cannot be reached, rejects a request or takes too long. The store is complete."""


class DaskUnavailable(FashionAnnError):
    """Dask cluster of FASHION_ANN_DASK_ADDRESS that cannot be reached."""


class LostRace(FashionAnnError):
    """Version number or line of the alias log that another machine wrote first. The caller reads it and tries again."""


class LocksUnavailable(FashionAnnError):
    """Lock file on a file system without locks. Two runs could overwrite each other's files."""


class DeviceUnavailable(FashionAnnError):
    """Requested device that the backend cannot use. Nothing was trained."""


class ProcessDied(FashionAnnError):
    """Worker process that ended without a result: killed, out of memory, or by a bug."""


class CodeChanged(FashionAnnError):
    """Worker process that imported other code than the run that started it. Its output would get a wrong cache key."""


class DatasetChanged(FashionAnnError):
    """Dataset file that changed between two stages of a run. The run stores no version."""


class TrainingDiverged(FashionAnnError):
    """Training with a loss, or model with a prediction, that is not finite. Nothing of it is kept."""


class TrainingStopped(FashionAnnError):
    """Training that `fashion-ann tune` ended early. The checkpoint of its last epoch is kept."""


class ExtraNotInstalled(FashionAnnError):
    """Package of an extra of pyproject.toml that is needed and not installed."""


class NoTrialCompleted(FashionAnnError):
    """Study that ended without a completed trial, so no recipe was written."""


class NoGpuWorker(FashionAnnError):
    """Training that no worker of the gpu pool started in time, or that no deployment exists for."""


class GpuTrainingFailed(FashionAnnError):
    """Failed training on the gpu worker. The message is that of the worker."""


class NotDeployed(FashionAnnError):
    """Deployments of prefect.yaml that could not be applied to the Prefect API."""


class NotReproduced(FashionAnnError):
    """Version that, trained again from its manifest, differs significantly from the original."""


class CandidateRejected(FashionAnnError):
    """New version below the quality floor, or with other predictions once loaded. It stays in the store."""

    exit_status = 4


class StoredArtifactError(FashionAnnError):
    """Stored file that is missing, differs from its manifest, or has content that this project never writes."""

    exit_status = 5


class OtherLayout(StoredArtifactError):
    """Version whose intact manifest another release of this project wrote, with other keys or files."""


class VersionNotFound(FashionAnnError):
    """Unknown version or alias."""


class LockHeld(FashionAnnError):
    """Lock that another process has held for longer than the time limit."""


class NothingToRollBackTo(FashionAnnError):
    """Rollback without a stored version that was champion before the current one."""


class DoctorFailed(FashionAnnError):
    """Failed check of `fashion-ann doctor`."""


class ServerUnavailable(FashionAnnError):
    """Prefect server that did not start, does not answer, or rejects our credentials."""


class ServiceFailed(FashionAnnError):
    """Service that did not start, or runs with other settings than requested."""


class NotRunning(FashionAnnError):
    """Service that `fashion-ann status` expects and that does not run."""


@dataclass(frozen=True)
class CellProblem:
    """One place where a file breaks its contract.

    ``line`` counts from 1, the header, and is 0 if only the column is known. ``file`` is the file's name.
    """

    line: int
    column: str
    value: str
    reason: str
    file: str | None = None

    def __str__(self) -> str:
        place = ("" if self.file is None else f"{self.file} ") + (f"line {self.line}, " if self.line else "")
        return f"{place}column {self.column}: {self.reason}, received {self.value}"


class DataContractError(FashionAnnError):
    """Data that breaks its contract.

    ``problems`` are the first ten in file order, ``count`` is their total number.
    """

    exit_status = 3

    def __init__(self, message: str, problems: Sequence[CellProblem] = (), count: int | None = None) -> None:
        super().__init__(message)
        self.problems = tuple(problems)
        self.count = len(self.problems) if count is None else count


class UnreadableData(DataContractError):
    """CSV that the operating system cannot read."""

    @classmethod
    def of(cls, path: Path, error: OSError) -> Self:
        """Return the error for ``path``."""
        return cls(
            f"{path} cannot be read ({error.strerror or error}): expected a CSV file. "
            "Put a readable CSV there, and run again."
        )
