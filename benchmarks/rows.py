"""The rows of the benchmark table, one function per measurement."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.fit import Fit
from benchmarks.ingest_validate import validate_both
from benchmarks.measure import SECONDS_TO_END, Finished, Row, compared, goal, interleaved, ratios, run_child, spread
from benchmarks.peers import pandas_ingests, plain_suite_accepts
from cli.server_process import HOST, free_port, stop_tree, wait_until_healthy
from schemas.config import PROJECT_ROOT, TrainingConfig
from schemas.contract import FASHION_MNIST, SPLITS, Split
from schemas.references import CsvSplit, ParquetSplit, PreparedData
from tasks.data.csv_to_parquet import ingest_csv
from tasks.ingest import ingest
from tasks.prepare import prepare
from tasks.validate import validate

_TARGET_ACCURACY = 0.88
_PLAIN_EPOCHS, _PLAIN_BATCH, _PLAIN_DROPOUT = 10, 32, 0.2
_TIMED_EPOCHS = 8
_SECONDS_TO_START = 120
_COMMAND = Path(sys.executable).with_name("fashion-ann")


@dataclass(frozen=True)
class Bench:
    """Options and inputs of all rows: a temporary folder, the published CSVs, and stage outputs that are built once."""

    folder: Path
    data_dir: Path
    csvs: Mapping[Split, CsvSplit]
    rounds: int
    seeds: int

    @cached_property
    def parquet(self) -> dict[Split, ParquetSplit]:
        return {split: ingest.fn(self.csvs[split], FASHION_MNIST.name, self.folder / "shared") for split in SPLITS}

    @cached_property
    def prepared(self) -> PreparedData:
        config = TrainingConfig()
        train = validate.fn(self.parquet["train"], FASHION_MNIST.name, self.folder / "shared")
        test = validate.fn(self.parquet["test"], FASHION_MNIST.name, self.folder / "shared", train)
        return prepare.fn(train, test, FASHION_MNIST.name, config.validation_size, config.seed, self.folder / "shared")

    def module(self, name: str, *arguments: str | Path) -> Finished:
        return run_child([sys.executable, "-m", f"benchmarks.{name}", *arguments], self._environment(), PROJECT_ROOT)

    def train(self, artifacts: str, *flags: str, data: Path | None = None, api: str | None = None) -> Finished:
        """Run `fashion-ann train` in the benchmark's Prefect home, which the first call creates."""
        command: list[str | Path] = [_COMMAND, "train", "--json", "--data-dir", data or self.data_dir]
        environment = {**self._environment(), **({} if api is None else {"PREFECT_API_URL": api})}
        return run_child([*command, "--artifacts-dir", self.folder / artifacts, *flags], environment, self.folder)

    def warm_up(self) -> None:
        """Train on a few rows: creates the database in the Prefect home and reads all packages into the file cache."""
        tiny = self.folder / "tiny"
        if tiny.exists():
            return
        tiny.mkdir()
        for split, csv in self.csvs.items():
            with csv.files[0].path.open("rb") as whole, (tiny / FASHION_MNIST.csv_name(split)).open("wb") as part:
                part.writelines(next(whole) for _ in range(1 + 2 * FASHION_MNIST.minimum_rows[split]))
        self.train("tiny-artifacts", "--epochs", "1", "--minimum-accuracy", "0", "--minimum-recall", "0", data=tiny)

    @contextmanager
    def prefect_server(self) -> Iterator[str]:
        """Start a Prefect server with a separate home, and yield its URL."""
        port = free_port()
        url = f"http://{HOST}:{port}/api"
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port), "--no-ui"],
            env=self._environment("server-home"),
            cwd=PROJECT_ROOT,  # Prefect reads the project's settings here
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            fault = wait_until_healthy(url, _SECONDS_TO_START, process.poll)
            _require(fault is None, f"`prefect server start` {fault}")
            yield url
        finally:
            stop_tree(process.pid, SECONDS_TO_END)

    def _environment(self, home: str = "home") -> dict[str, str]:
        """Return this process's variables without the user's Prefect settings and without those that `tasks` sets."""
        removed = ("PREFECT_", "OPENBLAS_NUM_THREADS")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(removed)}
        return {**kept, "PREFECT_HOME": str(self.folder / home)}


def ingest_row(bench: Bench) -> Iterator[Row]:
    """Convert the train CSV to Parquet in this process, with warm imports and file cache."""
    yield _against_pandas(bench, ("train",), "ingest, 60,000 rows, s", lambda: _ingest(bench, "train"))


def both_row(bench: Bench) -> Iterator[Row]:
    """Convert both CSVs to Parquet and validate them. The peers only write Parquet."""
    name = "ingest and validate, both splits, s"
    yield _against_pandas(bench, SPLITS, name, lambda: _validate({split: _ingest(bench, split) for split in SPLITS}))


def _ingest(bench: Bench, split: Split) -> Path:
    target = bench.folder / f"{split}.parquet"
    ingest_csv(bench.csvs[split], target, bench.folder / "bad.parquet", FASHION_MNIST)
    return target


def _against_pandas(bench: Bench, splits: Sequence[Split], name: str, ours: Callable[[], object]) -> Row:
    """Return a row of ``ours`` against the fastest pandas variant on the same CSVs."""
    by_split = [
        pandas_ingests(bench.csvs[split].files[0].path, bench.folder / f"pandas-{split}.parquet") for split in splits
    ]

    def peer(variant: str) -> Callable[[int], float]:
        return _seconds_of(lambda: [variants[variant]() for variants in by_split])

    ours()
    peers = {variant: peer(variant) for variant in by_split[0]}
    timed = interleaved(name.partition(",")[0], bench.rounds, ours=_seconds_of(ours), **peers)
    own = timed.pop("ours")
    fastest = min(timed, key=lambda variant: statistics.median(timed[variant]))
    return compared(name, own, fastest, timed[fastest], limit=1)


def _seconds_of(call: Callable[[], object]) -> Callable[[int], float]:
    def measure(number: int) -> float:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    return measure


def validate_row(bench: Bench) -> Iterator[Row]:
    """Validate both splits, from Parquet to verdict, in this process. The peer needs a minute, so it has one round."""

    def ours() -> None:
        _validate({split: parquet.path for split, parquet in bench.parquet.items()})

    def peer() -> None:
        for data in bench.parquet.values():
            _require(
                plain_suite_accepts(data.path, FASHION_MNIST, data.rows), "The plain suite rejected the real data."
            )

    ours()  # imports Great Expectations
    plain = interleaved("validate", 1, plain=_seconds_of(peer))["plain"]
    timed = interleaved("validate", bench.rounds, ours=_seconds_of(ours))["ours"]
    name = "validate, both splits, 785 columns, s"
    yield compared(name, timed, "plain suite", plain, Fraction(1, 60), ratio_digits=4)


def _validate(parquet: Mapping[Split, Path]) -> None:
    verdicts = [verdict for split in validate_both(parquet) for verdict in split.result.values()]
    _require(all(verdict["success"] for verdict in verdicts), "Our suite rejected the real data or warned about it.")


def tenfold_rows(bench: Bench) -> Iterator[Row]:
    """Ingest and validate ten times the rows. The peer is the published data.

    Each image occurs ten times, with ten values of one corner pixel, so that there are no duplicates.
    """
    tenfold = bench.folder / "tenfold"
    tenfold.mkdir()
    for split, csv in bench.csvs.items():
        with csv.files[0].path.open("rb") as source, (tenfold / FASHION_MNIST.csv_name(split)).open("wb") as target:
            target.write(next(source))
            for line in source:
                label, first, rest = line.split(b",", 2)
                target.writelines(b"%s,%d,%s" % (label, (int(first) + copy) % 256, rest) for copy in range(10))

    def run(data_dir: Path) -> Callable[[int], Finished]:
        return lambda number: bench.module("ingest_validate", data_dir, bench.folder)

    runs = interleaved("tenfold", bench.rounds, tenfold=run(tenfold), once=run(bench.data_dir))
    shutil.rmtree(tenfold)
    times = {who: [_output(run)["seconds"] for run in finished] for who, finished in runs.items()}
    peaks = {who: [run.peak_mb for run in finished] for who, finished in runs.items()}
    for name, values, limit, digits in (
        ("ingest and validate 700,000 rows, s", times, 10, 1),
        ("ingest and validate 700,000 rows, peak PSS, MB", peaks, 1.1, 0),
    ):
        yield compared(name, values["tenfold"], "70,000 rows", values["once"], limit, digits=digits)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RuntimeError(message)


def epoch_row(bench: Bench) -> Iterator[Row]:
    """Measure an epoch as the median time between epoch ends, which leaves out the first.

    Both train on the same rows with the same batch size and validation split.
    """
    config = TrainingConfig()

    def epoch_seconds(who: str) -> Callable[[int], float]:
        def measure(number: int) -> float:
            how = Fit(_TIMED_EPOCHS, config.batch_size, config.dropout, validate=True, target=None, seed=number)
            ends: list[float] = [epoch["seconds"] for epoch in _fit(bench, who, how)]
            return statistics.median(after - before for before, after in pairwise(ends))

        return measure

    timed = interleaved("epoch", bench.rounds, ours=epoch_seconds("ours"), plain=epoch_seconds("plain"))
    yield compared(f"epoch, batch {config.batch_size}, s", timed["ours"], "model.fit", timed["plain"], 0.7)


def time_row(bench: Bench) -> Iterator[Row]:
    """Measure the time to the end of the first epoch that has the target accuracy on the test split."""
    config = TrainingConfig()
    recipes = {
        "ours": lambda seed: Fit(config.epochs, config.batch_size, config.dropout, True, _TARGET_ACCURACY, seed),
        "plain": lambda seed: Fit(_PLAIN_EPOCHS, _PLAIN_BATCH, _PLAIN_DROPOUT, False, _TARGET_ACCURACY, seed),
    }

    def last_epoch(who: str) -> Callable[[int], dict[str, Any]]:
        return lambda number: _fit(bench, who, recipes[who](number))[-1]

    ends = interleaved("time", bench.rounds, ours=last_epoch("ours"), plain=last_epoch("plain"))
    times = {who: [end["seconds"] for end in epochs] for who, epochs in ends.items()}
    missed = {who: sum(end["test_accuracy"] < _TARGET_ACCURACY for end in epochs) for who, epochs in ends.items()}
    against = ratios(times["ours"], times["plain"])

    def cell(who: str) -> str:
        # A fit that missed the target counts with all its epochs, which is a lower bound.
        note = f", not reached in {missed[who]} of {bench.rounds}" if missed[who] else ""
        return f"{'> ' if missed[who] else ''}{spread(times[who])}{note}"

    met = not missed["ours"] and statistics.median(against) <= 0.25
    # If only the peer missed the target, its time is a lower bound and the ratio an upper bound.
    open_ended = missed["plain"] > 0 and not missed["ours"]
    yield Row(
        f"to test accuracy {_TARGET_ACCURACY}, s",
        cell("ours"),
        f"Adam, batch 32: {cell('plain')}",
        "-" if missed["ours"] else ("< " if open_ended else "") + spread(against),
        "<= 0.25: not shown" if open_ended and not met else goal("<= 0.25", met=met),
    )


def _fit(bench: Bench, who: str, how: Fit) -> list[dict[str, Any]]:
    return list(_output(bench.module("fit", who, bench.prepared.record.path, json.dumps(asdict(how)))))


def _output(finished: Finished) -> Any:
    """Return the JSON in the last line that a child process printed."""
    return json.loads(finished.stdout.splitlines()[-1])


def command_rows(bench: Bench) -> Iterator[Row]:
    """Compare `fashion-ann train`, including its server, with the plain script and with its stages without Prefect.

    Each runs as a separate process with an empty artifacts folder. CSVs, Prefect home and file cache are warm.
    """
    bench.warm_up()

    def script(number: int) -> Finished:
        paths = [bench.csvs[split].files[0].path for split in ("train", "test")]
        return bench.module("plain_script", *paths, bench.folder / "plain.keras")

    def stages(number: int) -> Finished:
        return bench.module("stages", bench.data_dir, bench.folder / f"stages-{number}", "0")

    runs = interleaved(
        "command", bench.rounds, ours=lambda number: bench.train(f"command-{number}"), script=script, stages=stages
    )

    def usage(name: str, field: str, digits: int = 1, limit: float | None = None) -> Row:
        ours, plain = ([getattr(run, field) for run in runs[who]] for who in ("ours", "script"))
        return compared(name, ours, "plain script", plain, limit, digits=digits)

    yield usage("whole command, wall s", "wall_seconds", limit=0.7)
    yield usage("whole command, CPU s", "cpu_seconds")
    peak = max(run.peak_mb for run in runs["ours"])
    memory = usage("whole command, peak PSS, MB", "peak_mb", digits=0)
    yield replace(memory, goal=goal("ours <= 1200 MB", met=peak <= 1200))
    yield Row(
        "whole command, test accuracy",
        spread([json.loads(run.stdout)["test_accuracy"] for run in runs["ours"]], digits=4),
        f"plain script: {spread([_output(run)['test_accuracy'] for run in runs['script']], digits=4)}",
    )
    prefect = [
        whole.wall_seconds - stages.wall_seconds + _output(stages)["import_seconds"]
        for whole, stages in zip(runs["ours"], runs["stages"], strict=True)
    ]
    shares = [100 * cost / whole.wall_seconds for cost, whole in zip(prefect, runs["ours"], strict=True)]
    imports = statistics.median(_output(run)["import_seconds"] for run in runs["stages"])
    yield Row(
        "Prefect (server, engine, import), wall s",
        f"{spread(prefect, digits=1)}, import {imports:.1f}",
        f"stages without Prefect: {spread([run.wall_seconds for run in runs['stages']], digits=1)}",
        f"{spread(shares, ' %', digits=0)} of ours",
    )


def unchanged_rows(bench: Bench) -> Iterator[Row]:
    """Run the command again without a change, with an embedded server and on a running one."""
    epochs = ("--epochs", "1")  # all results are reused, so the number of epochs does not matter
    bench.warm_up()
    bench.train("unchanged", *epochs)

    def again(api: str | None) -> Callable[[int], float]:
        def run(number: int) -> float:
            finished = bench.train("unchanged", *epochs, api=api)
            _require(not json.loads(finished.stdout)["created"], "The second run created a version.")
            return finished.wall_seconds

        return run

    with bench.prefect_server() as api:
        again(api)(0)  # the server's first run
        timed = interleaved("unchanged", bench.rounds, embedded=again(None), running=again(api))
    own = timed["running"]
    yield Row("unchanged second run, wall s", spread(timed["embedded"], digits=1))
    yield Row(
        "unchanged second run, on a running server, s",
        spread(own, digits=1),
        goal=goal("<= 5", met=statistics.median(own) <= 5),
    )


def seeds_row(bench: Bench) -> Iterator[Row]:
    """Train the default recipe with the seeds 0, 1, .., which decide split, weights, order and dropout."""

    def accuracy(seed: int) -> float:
        finished = bench.module("stages", bench.data_dir, bench.folder / "seeds", str(seed))
        return float(_output(finished)["test_accuracy"])

    accuracies = interleaved("seeds", bench.seeds, ours=accuracy)["ours"]
    mean = statistics.fmean(accuracies)
    yield Row(
        f"test accuracy, mean of {len(accuracies)} seeds",
        f"{mean:.4f} ({min(accuracies):.4f}..{max(accuracies):.4f})",
        goal=goal(">= 0.9", met=mean >= 0.9),
    )


ROWS: Mapping[str, Callable[[Bench], Iterator[Row]]] = {
    "ingest": ingest_row,
    "validate": validate_row,
    "both": both_row,
    "tenfold": tenfold_rows,
    "epoch": epoch_row,
    "time": time_row,
    "command": command_rows,
    "unchanged": unchanged_rows,
    "seeds": seeds_row,
}
