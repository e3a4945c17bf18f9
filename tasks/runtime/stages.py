"""Define the stages in the order of the pipeline. The terminal, gc, lineage, report and docs/stages.md read them here.

This module is part of no cache key, so a new stage or another wording rebuilds no output.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from schemas.contract import SPLITS, Split
from schemas.layout import VALIDATION_FOLDER


@dataclass(frozen=True)
class Stage:
    """A step of the pipeline.

    name: identifies the stage in records, events, manifests and task runs.
    core: modules whose code decides the output. They and the project modules that they import are part of the key.
    folder: where `run_stage` stores the outputs, one folder per key, relative to the artifacts folder. A pattern for
        outputs that are stored in those of another stage, None without cached outputs.
    per_split: the stage runs once for train and once for test.
    per_shard: the stage runs once per CSV, as part of another stage. Only the other one is shown and recorded.
    purpose, failure: what the stage does, and what a failed run reports; for people.
    summarize: returns the result in a few words, from the facts and seconds of `run_stage`.
    """

    name: str
    core: tuple[str, ...] = ()
    folder: str | None = None
    per_split: bool = False
    per_shard: bool = False
    purpose: str = ""
    failure: str = ""
    summarize: Callable[[Mapping[str, Any], float], str] = lambda facts, seconds: "done"

    def outputs(self, artifacts_dir: Path) -> Path:
        """Return the folder that holds the outputs, one folder per key."""
        if self.folder is None or "*" in self.folder:
            raise ValueError(f"The stage {self.name} has no single folder of outputs.")
        return artifacts_dir / self.folder


def _pace(rows: int, seconds: float) -> str:
    return f"{rows / max(seconds, 1e-3):,.0f} rows/s"


def _ingested(facts: Mapping[str, Any], seconds: float) -> str:
    bad = f", {facts['quarantined']:,} bad rows quarantined" if facts["quarantined"] else ""
    shards = f" in {len(facts['shards'])} shards" if len(facts["shards"]) > 1 else ""
    return f"{facts['rows']:,} rows{shards}, {_pace(facts['rows'], seconds)}{bad}"


def _prepared(facts: Mapping[str, Any], seconds: float) -> str:
    rows = [facts[f"{split}_rows"] for split in ("train", "validation", "test")]
    return f"{' + '.join(f'{count:,}' for count in rows)} rows, {_pace(sum(rows), seconds)}"


FETCH = Stage(
    "fetch",
    purpose="uses your CSVs, or downloads the published data and checks every image of it",
    failure="no source delivered: what was tried, and how to supply the files",
)
INGEST = Stage(
    "ingest",
    core=("tasks.data.parquet_split",),
    folder="data",
    per_split=True,
    purpose="one folder of Parquet per split, from its shards",
    failure="bad cells and lines, each with file, line, column, value",
    summarize=_ingested,
)
INGEST_SHARD = Stage(
    "ingest shard",
    core=("tasks.data.csv_to_parquet",),
    folder="data",
    per_shard=True,
    purpose="CSV to Parquet, streamed; memory hardly grows with the file",
    failure="a file that is rejected as a whole",
)
SCAN_SHARD = Stage(
    "scan shard",
    core=("tasks.checks.scan",),
    folder="scans",
    per_shard=True,
    purpose="reads every value of one Parquet file: extremes, classes, a sample of images, sketches",
    failure="a file that is no Parquet",
)
VALIDATE = Stage(
    "validate",
    core=("tasks.checks.suite",),
    folder=f"data/*/{VALIDATION_FOLDER}",
    per_split=True,
    purpose="Great Expectations checks columns, types, nulls, ranges, classes, rows; further checks look at images and "
    "labels",
    failure="each failed expectation; the result is kept",
    summarize=lambda facts, seconds: f"{len(facts['rows'])} expectations, {len(facts['broken'])} failed",
)
PREPARE_SHARD = Stage(
    "prepare shard",
    core=("tasks.data.splits",),
    folder="prepared",
    per_shard=True,
    purpose="arrays of bytes of one Parquet file, mapped into memory by training",
    failure="a file without the contract's columns",
)
PREPARE = Stage(
    "prepare",
    core=("tasks.data.splits",),
    folder="prepared",
    purpose="arrays of bytes that are read as float32 in [0, 1], and a stratified validation split",
    failure="a class with too few rows to split",
    summarize=_prepared,
)
TRAIN = Stage(
    "train",
    core=("tasks.model.fit",),
    folder="trained",
    purpose="the network, in a process of its own; a checkpoint after every epoch",
    failure="a loss that is not finite: the epoch; no checkpoint remains",
    summarize=lambda facts, seconds: f"{facts['epochs_run']} epochs on {facts['device']['name']}",
)
EVALUATE = Stage(
    "evaluate",
    core=("tasks.model.evaluation", "tasks.model.metrics", "tasks.model.test_predictions"),
    folder="evaluated",
    purpose="accuracy, loss, per-class metrics, confusion matrix, calibration, robustness, cost",
    failure="a loss or prediction that is not finite",
    summarize=lambda facts, seconds: f"test accuracy {facts['test_accuracy']:.4f}, loss {facts['test_loss']:.4f}",
)
VERSION = Stage(
    "version",
    # Also the metrics, because a version stores them: a new metric makes a new version.
    core=("tasks.registry.promotion", "tasks.model.metrics"),
    purpose="one immutable version, and the decision on the champion",
    failure="a rejected version",
)

STAGES = (FETCH, INGEST_SHARD, INGEST, SCAN_SHARD, VALIDATE, PREPARE_SHARD, PREPARE, TRAIN, EVALUATE, VERSION)
# Stages whose runs are shown. The stages per shard are part of them.
SHOWN = tuple(stage for stage in STAGES if not stage.per_shard)
BY_NAME = {stage.name: stage for stage in STAGES}
BEFORE_TRAINING = frozenset(stage.name for stage in STAGES[: STAGES.index(TRAIN)])


def runs() -> Iterator[tuple[Stage, Split | None]]:
    """Yield the runs of the stages in their order. Consecutive stages that run per split finish one split first.

    The runs per shard are part of those per split.
    """
    for per_split, group in groupby(SHOWN, key=lambda stage: stage.per_split):
        stages = list(group)
        for split in SPLITS if per_split else (None,):
            yield from ((stage, split) for stage in stages)


def run_name(stage: str, split: str | None) -> str:
    """Return the name of a run for people, such as "ingest train"."""
    return f"{stage} {split}" if split else stage


# In the order in which they run.
RUN_NAMES = tuple(run_name(stage.name, split) for stage, split in runs())


def position(stage: str, split: str | None) -> int:
    """Return the place of a run in the pipeline. A stage that is not in `STAGES` comes last."""
    name = run_name(stage, split)
    return RUN_NAMES.index(name) if name in RUN_NAMES else len(RUN_NAMES)


def output_folders(artifacts_dir: Path) -> Iterator[Path]:
    """Yield the folders that hold outputs of stages, one folder per key. Those of validate follow the data."""
    for folder in dict.fromkeys(stage.folder for stage in STAGES):
        if folder is not None:
            yield from sorted(artifacts_dir.glob(folder))
