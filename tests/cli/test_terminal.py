import io
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from cli import terminal
from cli.terminal import LiveView, Progress, StageLogHandler, Style, new_log, style_for
from schemas.config import PROJECT_ROOT
from tasks.runtime.events import Event, StageFinished, StageStarted, TrainingProgress
from tests.field_faults import field_fault

INGESTED = {"rows": 60_000, "quarantined": 0, "shards": ["0" * 64]}
FIGURES = {"loss": 0.5, "accuracy": 0.8}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def progress_after(*events: Event) -> Progress:
    progress = Progress()
    for event in events:
        progress.on_event(event)
    return progress


def render(progress: Progress, log: str = "artifacts/logs/train.log", width: int = 110) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=True)
    console.print(LiveView(progress, Path(log)))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row_of(progress: Progress, stage: str) -> str:
    return next(line for line in render(progress).splitlines() if line[3:].startswith(f"{stage} "))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Set ``clock["now"]`` to move the view's clock."""
    clock = {"now": 100.0}
    monkeypatch.setattr(terminal.time, "monotonic", lambda: clock["now"])
    return clock


@pytest.mark.parametrize(
    ("stream", "term", "quiet", "style"),
    [
        (Terminal(), "xterm", False, "live"),
        (Terminal(), "dumb", False, "plain"),
        (io.StringIO(), "xterm", False, "plain"),
        (Terminal(), "xterm", True, "quiet"),
    ],
)
def test_style_depends_on_stream_and_flag(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, term: str, quiet: bool, style: Style
) -> None:
    monkeypatch.setenv("TERM", term)
    assert style_for(stream, quiet=quiet) == style


def test_finished_rows_show_result_pace_and_reuse() -> None:
    progress = progress_after(
        StageStarted("ingest", "train"),
        StageFinished("ingest", "train", False, 2.5, INGESTED),
        StageFinished("ingest", "test", True, 0.5, INGESTED),
    )
    row = row_of(progress, "ingest train")
    assert row.startswith("✓")
    assert "60,000 rows, 24,000 rows/s" in row
    assert "2.5 s" in row
    assert row_of(progress, "ingest test").startswith("=")
    assert "reused" in row_of(progress, "ingest test")
    assert row_of(progress, "evaluate").strip() == "evaluate"
    progress.on_event(StageFinished("ingest", "test", False, 0.5, {**INGESTED, "quarantined": 3}))
    assert "3 bad rows quarantined" in row_of(progress, "ingest test")
    assert "artifacts/logs/train.log" in render(progress)


def test_bar_shows_epoch_metrics_and_time_left(clock: dict[str, float]) -> None:
    validation = {"val_loss": 0.4, "val_accuracy": 0.9}
    progress = progress_after(StageStarted("train", None), TrainingProgress(1.0, 10, {**FIGURES, **validation}))
    assert progress.seconds_left() is None  # one report gives no pace
    clock["now"] = 130.0
    progress.on_event(TrainingProgress(4.0, 10, FIGURES))
    assert progress.seconds_left() == pytest.approx(60)  # three epochs took 30 s, six are left
    text = render(progress)
    for part in ("epoch 5/10", "40%", "ETA 1:00", "loss 0.5000", "accuracy 0.8000", "val accuracy 0.9000"):
        assert part in text


@pytest.mark.parametrize("epochs", [45, 10_000])
def test_bar_and_metrics_fit_eighty_columns(clock: dict[str, float], epochs: int) -> None:
    figures = {**FIGURES, "val_loss": 0.4, "val_accuracy": 0.9}
    progress = progress_after(StageStarted("train", None), TrainingProgress(1.0, epochs, figures))
    clock["now"] = 130.0
    progress.on_event(TrainingProgress(epochs - 1, epochs, {}))
    lines = render(progress, width=80).splitlines()
    (at,) = (number for number, line in enumerate(lines) if " train   " in line and "epoch" in line)
    assert f"epoch {epochs}/{epochs} " in lines[at]
    assert lines[at].count("━") >= 10
    assert re.search(r"\d+%\s+ETA \d+:\d\d .*30 s", lines[at])
    assert lines[at + 1].split() == ["loss", "0.5000", "accuracy", "0.8000"]
    assert lines[at + 2].split() == ["val", "loss", "0.4000", "val", "accuracy", "0.9000"]
    assert all(len(line) <= 80 for line in lines)
    assert "…" not in "".join(lines)


def test_narrow_terminal_shortens_only_the_detail() -> None:
    progress = progress_after(StageStarted("ingest", "train"), StageFinished("ingest", "train", False, 2.5, INGESTED))
    text = render(progress, log="/folder" * 40, width=60)
    row = next(line for line in text.splitlines() if "ingest train" in line)
    assert row.startswith("✓")
    assert row.rstrip().endswith("2.5 s")
    assert text.replace("\n", "").count("/folder") == 40


@pytest.mark.parametrize("message", ["/d/[/x]/fashion-mnist_train.csv: found", "[bold]:smile:"])
def test_log_message_shows_in_the_row_of_the_running_stage(message: str) -> None:
    progress = progress_after(StageStarted("start", None), StageStarted("fetch", None))
    progress.on_log(message)
    assert message in row_of(progress, "fetch")  # no markup is read in it
    assert not row_of(progress, "fetch").startswith("✓")
    assert message not in row_of(progress, "start")


def test_stage_without_end_event_finishes_with_the_next() -> None:
    progress = progress_after(StageStarted("fetch", None))
    progress.on_log("found (your file)")
    progress.on_event(StageStarted("ingest", "train"))
    assert row_of(progress, "fetch").startswith("✓")
    assert "found (your file)" in row_of(progress, "fetch")
    progress.on_event(StageFinished("ingest", "train", False, 2.5, INGESTED))
    progress.on_log("no stage runs now")
    assert "no stage runs now" not in render(progress)
    progress.on_event(StageStarted("version", None))
    assert not row_of(progress, "version").startswith("✓")
    progress.finish()
    assert row_of(progress, "version").startswith("✓")


@pytest.mark.parametrize(
    ("events", "summary"),
    [
        ([StageStarted("start", None)], "No stage had finished."),
        ([StageFinished("ingest", "train", False, 2.5, INGESTED)], "Kept: ingest train."),
        ([StageStarted("train", None), TrainingProgress(12.4, 45, FIGURES)], "Kept: training up to epoch 12 of 45."),
        ([StageStarted("train", None), TrainingProgress(0.4, 45, FIGURES)], "No stage had finished."),
        (
            [
                StageFinished("ingest", "train", False, 2.5, INGESTED),
                StageStarted("train", None),
                TrainingProgress(1.0, 45, FIGURES),
            ],
            "Kept: ingest train; training up to epoch 1 of 45.",
        ),
    ],
)
def test_stopped_run_lists_what_is_kept(events: list[Event], summary: str) -> None:
    end = "No file is half-written. Run the same command again to continue."
    assert progress_after(*events).summary_when_stopped() == f"{summary} {end}"


def log(style: Style, progress: Progress, out: io.StringIO) -> Callable[[str, int, str], None]:
    """Return a function that logs a message at a level under a logger name, shown on ``out``."""
    handler = StageLogHandler(style, progress, Console(file=out))

    def send(name: str, level: int, message: str) -> None:
        if level >= handler.level:  # as a logger does before it calls a handler
            handler.handle(logging.LogRecord(name, level, "", 0, message, (), None))

    return send


def test_plain_lines_name_the_running_stage_and_limit_epochs(clock: dict[str, float]) -> None:
    progress, out = progress_after(StageStarted("start", None), StageStarted("fetch", None)), io.StringIO()
    send = log("plain", progress, out)
    send("tasks.any_module", logging.INFO, "trying a source")
    assert "trying a source" in row_of(progress, "fetch")
    send("tasks.any_module", logging.DEBUG, "the finish line repeats this")
    send("prefect.engine", logging.ERROR, "noise")
    progress.on_event(StageStarted("train", None))
    send("tasks.train", logging.INFO, "training on a CPU")
    for epoch in range(1, 13):
        clock["now"] += 1
        progress.on_event(TrainingProgress(epoch, 12, FIGURES))
        send("tasks.train", logging.INFO, f"epoch {epoch}/12")
    progress.on_event(StageFinished("train", None, True, 12.0, {}))
    send("tasks.any_module", logging.INFO, "no stage runs")
    assert out.getvalue().splitlines() == [
        *("fetch: trying a source", "train: training on a CPU", "train: epoch 1/12", "train: epoch 11/12"),
        "no stage runs",
    ]


@pytest.mark.parametrize("style", ["live", "plain", "quiet"])
def test_every_style_shows_warnings(style: Style) -> None:
    out = io.StringIO()
    log(style, Progress(), out)("tasks.ingest", logging.WARNING, "columns reordered")
    assert out.getvalue() == "warning: columns reordered\n"


def test_terminal_escapes_a_character_it_lacks(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from cli.terminal import Progress, Screen\n"
        "with Screen(Path(sys.argv[1]), Progress(), quiet=False).showing(): print('Zo\\u00eb', file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=PROJECT_ROOT,
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, rb"Zo\xeb")


@field_fault(
    "cause named but not observed",
    "Prefect cannot send log records, or a thread of its client fails, while a run succeeds",
    "The terminal has no line about it",
)
def test_prefect_errors_are_not_shown(tmp_path: Path) -> None:
    script = """
import logging, sys
from pathlib import Path
from cli.terminal import Progress, Screen
screen = Screen(Path(sys.argv[1]), Progress(), quiet=True)
with screen.showing():
    import flows.train_fashion_mnist
    from prefect.logging.handlers import APILogWorker
    screen.take_over_logging()
    logging.getLogger("prefect._internal.concurrency").error("a thread failed")
    record = {"message": "a line", "level": 20, "name": "a", "timestamp": "2026-01-01T00:00:00Z"}
    worker = APILogWorker.instance()
    worker.send(record)
    worker.drain()
print("the result", file=sys.stderr)
"""
    unreachable = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_CLIENT_MAX_RETRIES": "0"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=PROJECT_ROOT,
        env={**os.environ, **unreachable},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "the result\n")
    (log,) = (tmp_path / "logs").iterdir()
    assert "a thread failed" in log.read_text()


def test_keeps_the_twenty_newest_logs(tmp_path: Path) -> None:
    for number in range(25):
        (tmp_path / f"train-202601{number:02d}T000000-1.log").touch()
    assert not new_log(tmp_path).exists()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert len(left) == 19
    assert left[-1].startswith("train-20260124")
