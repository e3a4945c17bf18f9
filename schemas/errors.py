"""The errors that people meet, and the exit status that stands for each.

A message is one clear paragraph: what happened, what was expected, what was received, what to do next.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


class FashionAnnError(Exception):
    """An error with a message for people. ``exit_status`` is what the command line ends with."""

    exit_status: ClassVar[int] = 1


class WrongUsage(FashionAnnError):
    """A flag, parameter or environment variable that cannot be used as it is."""

    exit_status = 2


class DataUnavailable(FashionAnnError):
    """No source had the data. The message says what was tried and how to supply the files by hand."""


class StageNotWritten(FashionAnnError):
    """The system refused what a stage wrote; nothing of it is left."""


class DeviceUnavailable(FashionAnnError):
    """The device that was demanded is not one that the backend can use here; nothing was trained."""


class ProcessDied(FashionAnnError):
    """A process that worked for this one ended without a result: killed, out of memory, or by a fault of ours."""


class NoGpuWorker(FashionAnnError):
    """No worker of the gpu pool took up a training in time, or there is nothing that it could be given to."""


class GpuTrainingFailed(FashionAnnError):
    """A training on the gpu worker ended without a model. The message is the worker's."""


class NotDeployed(FashionAnnError):
    """The deployments of prefect.yaml did not reach the Prefect API, or not all of them."""


class NotReproduced(FashionAnnError):
    """A version trained again from its manifest is better or worse by more than noise."""


class CandidateRejected(FashionAnnError):
    """A new version is below the quality floor, or is not what was measured once it is loaded. It is in the store."""

    exit_status = 4


class StoredArtifactError(FashionAnnError):
    """A stored file is missing, is not what its manifest says, or holds what this project never writes."""

    exit_status = 5


class VersionNotFound(FashionAnnError):
    """The store holds no such version or alias."""


@dataclass(frozen=True)
class CellProblem:
    """One place where a file breaks its contract. ``line`` counts from 1, the header's line, and is 0 where the column
    alone is known; ``file`` is its name."""

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

    ``problems`` holds the first places in file order (ten at most), ``count`` how many there are in all.
    """

    exit_status = 3

    def __init__(self, message: str, problems: Sequence[CellProblem] = (), count: int | None = None) -> None:
        super().__init__(message)
        self.problems = tuple(problems)
        self.count = len(self.problems) if count is None else count


class UnreadableData(DataContractError):
    """A CSV that the system does not let us read."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(
            f"{path} cannot be read ({error.strerror or error}): expected a CSV file. "
            "Put one there that this user may read, and run again."
        )
