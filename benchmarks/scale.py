"""Run the whole pipeline on many rows, and print the resources of each stage: `make bench-scale ROWS=700000`.

The test split is the published one. The other rows are train images in shards: each published train image, moved by up
to two pixels and darkened by up to 12 %, so that no image occurs twice and the checks of the contract hold.

Time and CPU time of a stage count from its first start to its last end, for all processes of the command. Bytes count
read and write calls. Reads of mapped files, such as the prepared images, are not included.
"""

import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import psutil
from distributed import Client

from benchmarks.bench import Bench
from benchmarks.measure import SECONDS_TO_END, Finished, sampling
from cli.server_process import HOST, free_port, stop_tree
from schemas.config import DASK_ADDRESS_VARIABLE, PROJECT_ROOT, data_folder
from schemas.contract import FASHION_MNIST
from tasks.data.csv_reader import open_csv
from tasks.data.published_data import fetch_data

TEST_ROWS = 10_000
_SHARDS = 8  # at least
_SHARD_ROWS = 250_000  # at most
_ROWS_AT_ONCE = 10_000
_MOVES = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
_SHADES = (100, 97, 94, 91, 88)  # percent of the brightness
_MOST_ROWS = 60_000 * len(_MOVES) * len(_SHADES)
_SECONDS_TO_START = 120
_SAMPLE_SECONDS = 1  # a sample reads every process of the machine, for 40 ms

Pixels = npt.NDArray[np.uint8]


class Usage(NamedTuple):
    """Resources that the processes of a command used until ``at``, a Unix time. pss: bytes of memory at that time."""

    at: float
    cpu_seconds: float
    pss: int
    read: int
    written: int


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", type=int, metavar="ROWS", help="rows of train and test together, 10,000 of them test")
    parser.add_argument("--epochs", type=int, default=2, metavar="N", help="epochs of the training (default: 2)")
    parser.add_argument("--folder", type=Path, metavar="D", help="keep the CSVs in this folder, and reuse them")
    parser.add_argument(
        "--dask-workers",
        type=int,
        default=0,
        metavar="N",
        help="run the tasks per shard on a Dask cluster of N workers, started for it (default: on threads of the run)",
    )
    parser.add_argument("flags", nargs="*", metavar="FLAG", help="further flags of `fashion-ann train`, after --")
    options = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory(prefix="fashion-ann-scale-") as scratch:
        folder = Path(scratch)
        data = options.folder or folder / "data"
        if not data.exists():
            write_csvs(data, options.rows)
        bench = Bench(folder, data, {}, 1, 1)
        with dask_cluster(options.dask_workers) as flags, sampled_usage() as samples:
            run = bench.train(folder / "artifacts", "--epochs", str(options.epochs), *flags, *options.flags)
        print_table(options.rows, run.usage, run.events, samples)
        print(f"\nTest accuracy: {run.result['test_accuracy']:.4f}")


def write_csvs(folder: Path, rows: int) -> None:
    """Write the published test CSV, and train shards with the other rows, with a process per core."""
    train_rows = rows - TEST_ROWS
    if not 0 < train_rows <= _MOST_ROWS:
        raise SystemExit(f"ROWS was expected to be from {TEST_ROWS + 1} to {_MOST_ROWS + TEST_ROWS}, received {rows}.")
    csvs = fetch_data(FASHION_MNIST, data_folder())
    temporary = folder.with_name(f"{folder.name}.tmp")
    temporary.mkdir(parents=True)
    shutil.copy(csvs["test"].files[0].path, temporary / FASHION_MNIST.csv_name("test"))
    with open_csv(csvs["train"].files[0].path, FASHION_MNIST) as csv:
        images = np.concatenate(list(csv))
    np.save(temporary / "train.npy", images)
    bounds = [*range(0, train_rows, min(_SHARD_ROWS, -(-train_rows // _SHARDS))), train_rows]
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for end in pool.map(partial(_write_shard, temporary), count(), bounds[:-1], bounds[1:]):
            print(f"wrote {end:,} of {train_rows:,} rows", file=sys.stderr, flush=True)
    (temporary / "train.npy").unlink()
    temporary.rename(folder)


def _write_shard(folder: Path, shard: int, start: int, end: int) -> int:
    """Write a shard with the rows from number ``start`` to before ``end``, and return ``end``."""
    published = np.load(folder / "train.npy", mmap_mode="r")
    name = FASHION_MNIST.csv_name("train").replace(".csv", f"-{shard:04}.csv")
    with (folder / name).open("wb") as file:
        file.write(",".join(FASHION_MNIST.columns).encode() + b"\n")
        for first in range(start, end, _ROWS_AT_ONCE):
            file.write(csv_bytes(varied(published, np.arange(first, min(first + _ROWS_AT_ONCE, end)))))
    return end


def varied(published: Pixels, numbers: npt.NDArray[np.int64]) -> Pixels:
    """Return the generated rows with these numbers, uint8 (n, columns). All numbers below `_MOST_ROWS` differ.

    published: the rows of the published train CSV, uint8 (N, columns).
    """
    turn, place = np.divmod(numbers, len(published))
    # Another order in each turn, so that neighbours differ. A row gets each variation in one turn.
    places = (place * 7_919 + turn * 104_729) % len(published)
    variation = (turn + places) % (len(_MOVES) * len(_SHADES))
    rows: Pixels = published[places]
    images = rows[:, 1:].reshape(-1, FASHION_MNIST.height, FASHION_MNIST.width)
    for number, (down, right) in enumerate(_MOVES):
        chosen = np.flatnonzero(variation % len(_MOVES) == number)
        moved = np.pad(images[chosen], ((0, 0), (2, 2), (2, 2)))
        images[chosen] = moved[:, 2 - down :, 2 - right :][:, : FASHION_MNIST.height, : FASHION_MNIST.width]
    shades = np.array(_SHADES)[variation // len(_MOVES)].astype(np.uint16)
    rows[:, 1:] = images.reshape(len(rows), -1).astype(np.uint16) * shades[:, None] // 100
    return rows


def csv_bytes(rows: Pixels) -> bytes:
    """Return rows of bytes as lines of a CSV. Several times as fast as pandas, and twice as fast as pyarrow."""
    texts = (np.array([f"{value}{end}" for value in range(256)], "S4") for end in ",\n")
    inner, last = (text.view(np.uint8).reshape(256, 4) for text in texts)
    cells = inner[rows]  # (n, columns, 4), padded with zeros
    cells[:, -1] = last[rows[:, -1]]
    return bytes(cells[cells != 0].tobytes())


@contextmanager
def dask_cluster(workers: int) -> Iterator[Sequence[str]]:
    """Start a scheduler and ``workers``, as docs/scale.md describes, and yield the flags of `fashion-ann train` for it.

    No cluster is started for 0 workers.
    """
    if not workers:
        yield ()
        return
    address = f"tcp://{HOST}:{free_port()}"
    dask, preloaded = Path(sys.executable).with_name("dask"), ("--preload", "flows.train_fashion_mnist")
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": str(128 << 20)}
    cluster = [
        subprocess.Popen([dask, *arguments, *preloaded, "--no-dashboard"], cwd=PROJECT_ROOT, env=environment)
        for arguments in (
            ("scheduler", "--host", HOST, "--port", address.rpartition(":")[2]),
            ("worker", address, "--nworkers", str(workers), "--nthreads", "1"),
        )
    ]
    try:
        with Client(address, timeout=_SECONDS_TO_START) as client:  # type: ignore[no-untyped-call]  # Dask ships few types
            client.wait_for_workers(workers, _SECONDS_TO_START)
        os.environ[DASK_ADDRESS_VARIABLE] = address
        yield ("--runner", "dask")
    finally:
        os.environ.pop(DASK_ADDRESS_VARIABLE, None)
        for process in reversed(cluster):
            stop_tree(process.pid, SECONDS_TO_END)


@contextmanager
def sampled_usage() -> Iterator[list[Usage]]:
    """Sample the usage of this process's descendants in a thread. Yield the list that samples are appended to."""
    samples: list[Usage] = []
    seen: dict[tuple[int, float], tuple[float, int, int]] = {}
    root = psutil.Process()

    def sample() -> None:
        pss = 0
        for process in root.children(recursive=True):
            with suppress(psutil.Error):  # it has just exited
                times, io = process.cpu_times(), process.io_counters()
                seen[process.pid, process.create_time()] = times.user + times.system, io.read_chars, io.write_chars
                pss += process.memory_full_info().pss
        cpu, read, written = (sum(values) for values in zip(*seen.values(), strict=True)) if seen else (0.0, 0, 0)
        samples.append(Usage(time.time(), cpu, pss, int(read), int(written)))

    sample()  # the cluster has used CPU time already
    with sampling(sample, _SAMPLE_SECONDS):
        yield samples


def print_table(rows: int, finished: Finished, events: list[tuple[str, float]], samples: list[Usage]) -> None:
    """Print a line per stage in Markdown, and one for the whole command. ``events`` are seconds after its start."""
    print(
        f"| {rows:,} rows | seconds | CPU seconds | peak PSS, MB | read, GB | written, GB |\n|---|---|---|---|---|---|"
    )
    spans: dict[str, tuple[float, float]] = {}
    for name, at in events:
        stage, _, kind = name.rpartition(" ")
        if kind in ("started", "finished"):
            start, _ = spans.get(stage, (at, at))
            spans[stage] = (start, at)
    spans["whole command"] = 0.0, finished.wall_seconds
    for stage, (start, end) in spans.items():
        if end == start:
            continue  # an event of no stage, or of one that has only started
        before, after = (_until(samples, finished.started + at) for at in (start, end))
        within = [sample.pss for sample in samples if start <= sample.at - finished.started <= end]
        print(
            f"| {stage} | {end - start:.1f} | {after.cpu_seconds - before.cpu_seconds:.1f} "
            f"| {max(within, default=0) / 1e6:,.0f} | {(after.read - before.read) / 1e9:.2f} "
            f"| {(after.written - before.written) / 1e9:.2f} |"
        )


def _until(samples: list[Usage], at: float) -> Usage:
    """Return the last sample before a Unix time."""
    return max((sample for sample in samples if sample.at <= at), default=Usage(0, 0, 0, 0, 0))


if __name__ == "__main__":
    main()
