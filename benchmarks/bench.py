"""Options, inputs that are built once, and child processes, for all rows of the benchmark."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.measure import SECONDS_TO_END, Finished, run_child
from cli.server_process import HOST, free_port, stop_tree, wait_until_healthy
from schemas.config import PROJECT_ROOT
from schemas.contract import FASHION_MNIST, SPLITS, Split
from schemas.references import CsvSplit, ParquetSplit, PreparedData
from tasks.ingest import ingest
from tasks.prepare import prepare
from tasks.validate import validate

VALIDATION_ROWS = 5_000  # of the rows that train one epoch, so that 55,000 rows are left
_SECONDS_TO_START = 120
# "45 epochs" is an earlier default. AdamW's beta_2 was 0.999 then, and is 0.95 in both now.
RECIPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "45 epochs": (
        *("--epochs", "45", "--validation-size", "5000", "--batch-size", "256", "--learning-rate", "0.004"),
        *("--weight-decay", "0.15", "--dropout", "0.05"),
    ),
}
_ONE_EPOCH = ("--epochs", "1", "--minimum-accuracy", "0", "--minimum-recall", "0")


@dataclass(frozen=True)
class Run:
    """A whole run. ``events``: names and seconds since the command, see `benchmarks.timed_command`; a peer has none."""

    usage: Finished
    events: list[tuple[str, float]] = field(default_factory=list)

    @property
    def result(self) -> dict[str, Any]:
        """Return the printed JSON object. A peer prints lines without braces before it."""
        return dict(json.loads(self.usage.stdout[self.usage.stdout.index("{") :]))

    @property
    def first_stage(self) -> float:
        """Return the seconds from the command to its first stage."""
        return next(at for name, at in self.events if name.endswith(" started") and name != "start started")

    def between(self, first: str, last: str) -> float:
        """Return the seconds from the last event of one name to the last event of another."""
        times = dict(self.events)
        return times[last] - times[first]


@dataclass(frozen=True, eq=False)
class Bench:
    """Options and inputs of all rows.

    accuracies: test accuracies by recipe, "default" or "45 epochs", and seed, of the trainings so far.
    """

    folder: Path
    data_dir: Path
    csvs: Mapping[Split, CsvSplit]
    rounds: int
    seeds: int
    accuracies: dict[str, dict[int, float]] = field(default_factory=dict)

    @cached_property
    def parquet(self) -> dict[Split, ParquetSplit]:
        return {split: ingest.fn(self.csvs[split], FASHION_MNIST.name, self.folder / "shared") for split in SPLITS}

    @cached_property
    def prepared(self) -> PreparedData:
        train = validate.fn(self.parquet["train"], FASHION_MNIST.name, self.folder / "shared")
        test = validate.fn(self.parquet["test"], FASHION_MNIST.name, self.folder / "shared", train)
        return prepare.fn(train, test, FASHION_MNIST.name, VALIDATION_ROWS, 0, self.folder / "shared")

    @cached_property
    def csv_paths(self) -> tuple[Path, Path]:
        """Return the paths of the train and of the test CSV."""
        return self.csvs["train"].files[0].path, self.csvs["test"].files[0].path

    @cached_property
    def artifacts(self) -> Path:
        """Return an artifacts folder with one version, trained for one epoch. `again` repeats its command."""
        self.warm_up()
        folder = self.folder / "one-epoch"
        self.train(folder, *_ONE_EPOCH)
        return folder

    @cached_property
    def plain_prefect(self) -> Run:
        """Run the plain Prefect flow, once: it takes more than a minute."""
        self.warm_up()
        environment = {
            **self.environment(),
            "PYTHONPATH": str(PROJECT_ROOT),  # its folder is another one, because this project's has Prefect settings
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(_SECONDS_TO_START),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "GX_ANALYTICS_ENABLED": "false",
        }
        arguments = (*self.csv_paths, self.folder / "plain-prefect")
        print("plain Prefect flow: round 1 of 1", file=sys.stderr, flush=True)
        return Run(run_child([sys.executable, "-m", "benchmarks.plain_prefect", *arguments], environment, self.folder))

    def module(self, name: str, *arguments: str | Path, **variables: str) -> Finished:
        """Run a module of the benchmark."""
        command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
        return run_child(command, {**self.environment(), **variables}, PROJECT_ROOT)

    def command(self, *arguments: str | Path) -> Finished:
        """Run `fashion-ann` on `artifacts`."""
        command = [Path(sys.executable).with_name("fashion-ann"), *arguments, "--artifacts-dir", self.artifacts]
        return run_child(command, self.environment(), self.folder)

    def train(
        self, artifacts: Path, *flags: str, data: Path | None = None, home: str = "home", api: str | None = None
    ) -> Run:
        """Run `fashion-ann train` in a Prefect home of the benchmark, which the first call creates."""
        stamps = self.folder / "stamps.json"
        folders: tuple[str | Path, ...] = ("--data-dir", data or self.data_dir, "--artifacts-dir", artifacts)
        usage = run_child(
            [sys.executable, "-m", "benchmarks.timed_command", stamps, "train", "--json", *folders, *flags],
            {**self.environment(home), **({} if api is None else {"PREFECT_API_URL": api})},
            PROJECT_ROOT,
        )
        return Run(usage, [(name, stamp - usage.started) for name, stamp in json.loads(stamps.read_bytes())])

    def again(self, api: str | None = None, home: str = "home") -> Run:
        """Run the command of `artifacts` again, without a change."""
        run = self.train(self.artifacts, *_ONE_EPOCH, api=api, home=home)
        require(not run.result["created"], "The second run created a version.")
        return run

    def warm_up(self) -> None:
        """Train on a few rows: creates the database in the Prefect home and reads all packages into the file cache."""
        tiny = self.folder / "tiny"
        if tiny.exists():
            return
        tiny.mkdir()
        for split, csv in self.csvs.items():
            with csv.files[0].path.open("rb") as whole, (tiny / FASHION_MNIST.csv_name(split)).open("wb") as part:
                part.writelines(next(whole) for _ in range(1 + 2 * FASHION_MNIST.minimum_rows[split]))
        self.train(self.folder / "tiny-artifacts", *_ONE_EPOCH, data=tiny)

    @contextmanager
    def prefect_server(self) -> Iterator[str]:
        """Start a Prefect server with a separate home, and yield its URL."""
        port = free_port()
        url = f"http://{HOST}:{port}/api"
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port), "--no-ui"],
            env=self.environment("server-home"),
            cwd=PROJECT_ROOT,  # Prefect reads the project's settings here
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            fault = wait_until_healthy(url, _SECONDS_TO_START, process.poll)
            require(fault is None, f"`prefect server start` {fault}")
            yield url
        finally:
            stop_tree(process.pid, SECONDS_TO_END)

    def environment(self, home: str = "home") -> dict[str, str]:
        """Return this process's variables without the user's Prefect settings and without those that `tasks` sets."""
        removed = ("PREFECT_", "OPENBLAS_NUM_THREADS")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(removed)}
        return {**kept, "PREFECT_HOME": str(self.folder / home)}


def output(finished: Finished) -> Any:
    """Return the JSON in the last line that a child process printed."""
    return json.loads(finished.stdout.splitlines()[-1])


def require(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)
