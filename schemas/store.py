"""What the model store writes down: the shape of a manifest and of a line of the alias log.

A digest proves that a text is the one that was written; these prove that it says what readers rely on.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt

# A plain name: nothing that leads out of the version's folder.
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
VersionNumber = Annotated[StrictInt, Field(ge=1)]


class Stated(BaseModel):
    # Strict: a manifest that says "1" where a number was written is not ours. What more it says is for people.
    model_config = ConfigDict(frozen=True, extra="allow", strict=True, allow_inf_nan=False)


class AliasEvent(BaseModel):
    """One line of the alias log: who moved what from where to where, when and why."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    when: str
    alias: str
    before: VersionNumber | None = Field(alias="from")
    to: VersionNumber
    by: str
    reason: str
    flow_run: str | None


class StoredFile(Stated):
    bytes: Annotated[int, Field(ge=0)]
    sha256: Digest


class StatedVerdict(Stated):
    outcome: Literal["promoted", "kept", "refused"]
    reason: str
    event: AliasEvent | None


class StatedStage(Stated):
    stage: str
    split: str | None
    key: Digest
    digest: Digest
    reused: bool
    seconds: Annotated[float, Field(ge=0)]


class Manifest(Stated):
    version: VersionNumber
    dataset: str
    created: str
    made_from: str
    test_accuracy: float
    test_loss: float
    topology_id: Digest
    files: dict[FileName, StoredFile]
    data: dict[str, Any]
    configuration: dict[str, Any]
    seed: int
    code: dict[str, Any]
    lock_sha256: Digest
    packages: dict[str, str]
    device: dict[str, Any]
    training_seconds: float
    epochs_run: int
    parent: VersionNumber | None
    flow_run_id: str | None
    verdict: StatedVerdict
    lineage: list[StatedStage]
    manifest_sha256: Digest
