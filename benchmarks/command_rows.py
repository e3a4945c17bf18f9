"""The rows of `fashion-ann` commands, each as a separate process with warm CSVs, Prefect home and file cache."""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.bench import RECIPES, Bench, Run
from benchmarks.measure import Row, at_most, bounded, compared, interleaved, spread
from schemas.contract import FASHION_MNIST
from tasks.registry.store import ModelStore

_PEAK_MB = 950
_CPU_SECONDS = 0.35


def command_rows(bench: Bench) -> Iterator[Row]:
    """Compare `fashion-ann train`, including its server, with the plain script and with a plain Prefect flow.

    Each round has another seed and an empty artifacts folder. The plain flow takes long, so it has one round.
    """
    bench.warm_up()

    def train(recipe: str) -> Callable[[int], Run]:
        folder = bench.folder / recipe.replace(" ", "-")
        return lambda seed: bench.train(
            folder.with_name(f"{folder.name}-{seed}"), *RECIPES[recipe], "--seed", str(seed)
        )

    def script(number: int) -> Run:
        return Run(bench.module("plain_script", *bench.csv_paths, bench.folder / "plain.keras"))

    runs = interleaved("command", bench.rounds, ours=train("default"), script=script, short=train("45 epochs"))
    ours, plain, short = runs["ours"], runs["script"], runs["short"]
    for recipe, of_recipe in (("default", ours), ("45 epochs", short)):
        bench.accuracies[recipe] = dict(enumerate(_accuracies(of_recipe)))

    def usage(name: str, own: list[Run], field: str, limit: float | None = None, digits: int = 1) -> Row:
        values = [[float(getattr(run.usage, field)) for run in who] for who in (own, plain)]
        return compared(f"whole command, {name}", values[0], "plain script", values[1], limit, digits=digits)

    yield usage("wall s", ours, "wall_seconds", 0.62)
    yield usage("45 epochs, wall s", short, "wall_seconds", 0.5)
    yield usage("CPU s", ours, "cpu_seconds")
    peak = at_most(_PEAK_MB, max(run.usage.peak_mb for run in ours))
    yield replace(usage("peak PSS, MB", ours, "peak_mb", digits=0), goal=peak)
    wall = [run.usage.wall_seconds for run in ours]
    yield compared(
        "whole command, wall s", wall, "plain Prefect flow", [bench.plain_prefect.usage.wall_seconds], digits=1
    )
    script_accuracy = f"plain script: {spread(_accuracies(plain), digits=4)}"
    yield Row("test accuracy", spread(_accuracies(ours), digits=4), script_accuracy)
    yield Row("test accuracy, 45 epochs", spread(_accuracies(short), digits=4), script_accuracy)
    yield bounded("prepare, s", [run.between("prepare started", "prepare finished") for run in ours], 0.4)
    yield bounded("last epoch to the printed result, s", [run.between("epoch", "returned") for run in ours], 1.0)


def _accuracies(runs: list[Run]) -> list[float]:
    return [run.result["test_accuracy"] for run in runs]


def start_rows(bench: Bench) -> Iterator[Row]:
    """Run the command again without a change: with an embedded server, and on a running one."""
    with bench.prefect_server() as api:
        bench.again(api)  # the server's first run
        runs = interleaved(
            "start", bench.rounds, embedded=lambda number: bench.again(), running=lambda number: bench.again(api)
        )
    first = interleaved("start", 1, new=lambda number: bench.again(home="new-home"))["new"]
    for name, own, stage_limit, whole_limit in (
        ("embedded server", runs["embedded"], 3.5, 4.0),
        ("running server", runs["running"], 1.5, 2.0),
        ("embedded server, new PREFECT_HOME", first, None, None),
    ):
        yield bounded(f"command to first stage, {name}, s", [run.first_stage for run in own], stage_limit)
        walls = [run.usage.wall_seconds for run in own]
        yield bounded(f"unchanged second run, {name}, wall s", walls, whole_limit)


def commands_rows(bench: Bench) -> Iterator[Row]:
    """Measure the CPU time of commands that start no server. For `predict` the backend is subtracted."""
    few = _few_images(bench)
    commands = {
        "versions": ("versions",),
        "show": ("show", "champion"),
        "why": ("why", "champion"),
        "predict": ("predict", few, "--output", bench.folder / "few.parquet", "--version", "1"),
    }

    def cpu(*arguments: str | Path) -> Callable[[int], float]:
        return lambda number: bench.command(*arguments).cpu_seconds

    timed = interleaved(
        "commands",
        bench.rounds,
        **{name: cpu(*arguments) for name, arguments in commands.items()},
        backend=lambda number: bench.module("backend_start").cpu_seconds,
    )
    backend = timed.pop("backend")
    for name in ("versions", "show", "why"):
        yield bounded(f"`{name}`, CPU s", timed[name], _CPU_SECONDS)
    more = [own - other for own, other in zip(timed["predict"], backend, strict=True)]
    row = compared("`predict` of 10 images, CPU s", timed["predict"], "backend alone", backend)
    yield replace(row, ratio=f"{spread(more)} more", goal=at_most(_CPU_SECONDS, statistics.median(more)))


def _few_images(bench: Bench) -> Path:
    few = bench.folder / "few.csv"
    with bench.csv_paths[1].open("rb") as source, few.open("wb") as target:
        target.writelines(next(source) for _ in range(1 + 10))
    return few


def predict_rows(bench: Bench) -> Iterator[Row]:
    """Predict 70,000 rows, and ten times these rows in one round."""
    once, tenfold = bench.folder / "70000.csv", bench.folder / "700000.csv"
    header, *_ = bench.csv_paths[0].read_bytes().partition(b"\n")
    body = b"".join(path.read_bytes().partition(b"\n")[2] for path in bench.csv_paths)
    once.write_bytes(header + b"\n" + body)
    with tenfold.open("wb") as file:
        file.write(header + b"\n")
        file.writelines(body for _ in range(10))
    version = ModelStore.of(bench.artifacts, FASHION_MNIST.name).folder(1)

    def ours(csv: Path) -> Callable[[int], float]:
        arguments = ("predict", csv, "--output", bench.folder / "predicted.parquet", "--version", "1")
        return lambda number: bench.command(*arguments).wall_seconds

    def plain(number: int) -> float:
        return bench.module("plain_predict", once, version).wall_seconds

    timed = interleaved("predict", bench.rounds, ours=ours(once), plain=plain)
    timed |= interleaved("predict", 1, tenfold=ours(tenfold))
    once.unlink()
    tenfold.unlink()
    peer = "`pandas.read_csv` and `model.predict`"
    yield compared("`predict`, 70,000 images, wall s", timed["ours"], peer, timed["plain"], 1.2)
    name = "`predict`, 700,000 images, wall s"
    yield compared(name, timed["tenfold"], "70,000 images", [statistics.median(timed["ours"])], 7)
