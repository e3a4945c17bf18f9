"""The rows of ingest and validate."""

import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cache, partial
from pathlib import Path

from benchmarks.bench import Bench, output, require
from benchmarks.ingest_validate import ingest, validate_both
from benchmarks.measure import Finished, Row, compared, interleaved
from benchmarks.peers import plain_ingests
from schemas.contract import FASHION_MNIST, SPLITS, Split
from tasks.data.parquet_split import part_files

# A variant that took longer than the fastest, times this, is not measured further.
_CONTENDER = 1.5


def ingest_row(bench: Bench) -> Iterator[Row]:
    """Convert the train CSV to Parquet in this process, with warm imports and file cache."""
    ours, peer, theirs = _ingest_times(bench)
    yield compared("ingest, 60,000 rows, s", [t["train"] for t in ours], peer, [t["train"] for t in theirs])


def both_row(bench: Bench) -> Iterator[Row]:
    """Convert both CSVs to Parquet and validate them. The peer only writes Parquet."""
    ours, peer, theirs = _ingest_times(bench)
    sums = [[sum(times.values()) for times in timed] for timed in (ours, theirs)]
    yield compared("ingest and validate, both splits, s", sums[0], f"{peer}, without validation", sums[1], limit=0.75)


Times = dict[str, float]  # seconds by split; ours also of "validate"


@cache
def _ingest_times(bench: Bench) -> tuple[list[Times], str, list[Times]]:
    """Return our times, the name of the fastest peer and its times, one per round."""
    parquet = {split: part_files(bench.folder / split, csv) for split, csv in bench.csvs.items()}

    def ours(number: int) -> Times:
        times: Times = {split: _seconds(partial(ingest, csv, bench.folder)) for split, csv in bench.csvs.items()}
        return {**times, "validate": _seconds(lambda: _validate(parquet))}

    plain = {
        split: plain_ingests(csv, bench.folder / "plain.parquet", FASHION_MNIST.columns)
        for split, csv in zip(SPLITS, bench.csv_paths, strict=True)
    }

    def peer(variant: str) -> Callable[[int], Times]:
        return lambda number: {split: _seconds(plain[split][variant]) for split in SPLITS}

    ours(0)  # imports
    trial = interleaved("ingest, trial", 1, **{variant: peer(variant) for variant in plain["train"]})
    seconds = {variant: sum(times[0].values()) for variant, times in trial.items()}
    contenders = [variant for variant in seconds if seconds[variant] <= _CONTENDER * min(seconds.values())]
    timed = interleaved("ingest", bench.rounds, ours=ours, **{variant: peer(variant) for variant in contenders})
    own = timed.pop("ours")
    fastest = min(timed, key=lambda variant: statistics.median(times["train"] for times in timed[variant]))
    return own, fastest, timed[fastest]


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def validate_row(bench: Bench) -> Iterator[Row]:
    """Validate both splits, from Parquet to verdict, in this process. The peer is the suite of the plain flow."""
    parquet = {split: data.files for split, data in bench.parquet.items()}
    _validate(parquet)  # imports Great Expectations
    ours = interleaved("validate", bench.rounds, ours=lambda number: _seconds(lambda: _validate(parquet)))["ours"]
    plain = bench.plain_prefect.result["validate_seconds"]
    name = "validate, both splits, 785 columns, s"
    yield compared(name, ours, "plain suite", [plain], Fraction(1, 60), ratio_digits=4)


def _validate(parquet: Mapping[Split, Sequence[Path]]) -> None:
    verdicts = [verdict for split in validate_both(parquet) for verdict in split.result.values()]
    require(all(verdict["success"] for verdict in verdicts), "Our suite rejected the real data or warned about it.")


def tenfold_rows(bench: Bench) -> Iterator[Row]:
    """Ingest and validate ten times the rows, in one round. The peer is the published data.

    Each image occurs ten times, with ten values of one corner pixel, so that there are no duplicates.
    """
    tenfold = bench.folder / "tenfold"
    tenfold.mkdir()
    for split, csv in zip(SPLITS, bench.csv_paths, strict=True):
        with csv.open("rb") as source, (tenfold / FASHION_MNIST.csv_name(split)).open("wb") as target:
            target.write(next(source))
            for line in source:
                label, first, rest = line.split(b",", 2)
                target.writelines(b"%s,%d,%s" % (label, (int(first) + copy) % 256, rest) for copy in range(10))

    def run(data_dir: Path) -> Callable[[int], Finished]:
        return lambda number: bench.module("ingest_validate", data_dir, bench.folder)

    runs = interleaved("tenfold", 1, tenfold=run(tenfold), once=run(bench.data_dir))
    shutil.rmtree(tenfold)
    times = {who: [output(run)["seconds"] for run in finished] for who, finished in runs.items()}
    peaks = {who: [run.peak_mb for run in finished] for who, finished in runs.items()}
    for name, values, limit, digits in (
        ("ingest and validate 700,000 rows, s", times, 10, 1),
        ("ingest and validate 700,000 rows, peak PSS, MB", peaks, 1.1, 0),
    ):
        yield compared(name, values["tenfold"], "70,000 rows", values["once"], limit, digits=digits)
