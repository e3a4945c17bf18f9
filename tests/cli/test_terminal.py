import io
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from cli import terminal
from cli.terminal import Progress, style_for
from schemas.config import PROJECT_ROOT
from tasks.runtime.events import Event, StageFinished, StageStarted, TrainingProgress

INGESTED = {"rows": 60_000, "quarantined": 0, "sha256": "0" * 64}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _after(*events: Event) -> Progress:
    progress = Progress()
    for event in events:
        progress.take(event)
    return progress


def _drawn(progress: Progress, log: str = "artifacts/logs/train.log", width: int = 110) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=True)
    console.print(terminal._View(progress, Path(log)))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _line(progress: Progress, stage: str) -> str:
    return next(line for line in _drawn(progress).splitlines() if line[3:].startswith(f"{stage} "))


def test_live_on_a_terminal_plain_in_a_pipe_and_quiet_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert style_for(Terminal(), quiet=False) == "live"
    assert style_for(io.StringIO(), quiet=False) == "plain"
    assert style_for(Terminal(), quiet=True) == "quiet"
    monkeypatch.setenv("TERM", "dumb")
    assert style_for(Terminal(), quiet=False) == "plain"


def test_a_stage_that_was_done_tells_its_rows_and_pace_and_a_reused_one_that_it_was() -> None:
    progress = _after(
        StageStarted("ingest", "train"),
        StageFinished("ingest", "train", False, 2.5, INGESTED),
        StageFinished("ingest", "test", True, 0.5, INGESTED),
    )
    assert "60,000 rows, 24,000 rows/s" in _line(progress, "ingest train")
    assert "2.5 s" in _line(progress, "ingest train")
    assert _line(progress, "ingest train").startswith("✓")
    assert _line(progress, "ingest test").startswith("=")
    assert "reused" in _line(progress, "ingest test")
    assert _line(progress, "evaluate").strip() == "evaluate"
    progress.take(StageFinished("ingest", "test", False, 0.5, {**INGESTED, "quarantined": 3}))
    assert "3 bad ones set aside" in _line(progress, "ingest test")
    assert "artifacts/logs/train.log" in _drawn(progress)


def test_the_bar_tells_epoch_figures_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now)
    figures = {"loss": 0.5, "accuracy": 0.8}
    progress = _after(
        StageStarted("train", None), TrainingProgress(1.0, 10, {**figures, "val_loss": 0.4, "val_accuracy": 0.9})
    )
    assert progress.seconds_left() is None  # one moment is no pace
    now = 130.0
    progress.take(TrainingProgress(4.0, 10, figures))
    assert progress.seconds_left() == pytest.approx(60)  # three epochs took 30 s, six are left
    drawn = _drawn(progress)
    for text in ("epoch 5/10", "40%", "ETA 1:00", "loss 0.5000", "accuracy 0.8000", "val accuracy 0.9000"):
        assert text in drawn


@pytest.mark.parametrize("epochs", [45, 10_000])
def test_eighty_columns_are_enough_for_the_bar_and_all_figures(monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    now = 100.0
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now)
    figures = {"loss": 0.5, "accuracy": 0.8, "val_loss": 0.4, "val_accuracy": 0.9}
    progress = _after(StageStarted("train", None), TrainingProgress(1.0, epochs, figures))
    now = 130.0
    progress.take(TrainingProgress(epochs - 1, epochs, {}))
    lines = _drawn(progress, width=80).splitlines()
    (at,) = (number for number, line in enumerate(lines) if " train   " in line and "epoch" in line)
    assert f"epoch {epochs}/{epochs} " in lines[at]
    assert lines[at].count("━") >= 10
    assert re.search(r"\d+%\s+ETA \d+:\d\d .*30 s", lines[at])
    assert lines[at + 1].split() == ["loss", "0.5000", "accuracy", "0.8000"]
    assert lines[at + 2].split() == ["val", "loss", "0.4000", "val", "accuracy", "0.9000"]
    assert all(len(line) <= 80 for line in lines)
    assert "…" not in "".join(lines)


def test_what_a_stage_says_is_not_taken_for_markup() -> None:
    progress = _after(StageStarted("fetch", None))
    for says in ("/d/[/x]/fashion-mnist_train.csv: found", "[bold]:smile:"):
        progress.heard("fetch", says)
        assert says in _line(progress, "fetch")
    progress.take(StageStarted("ingest", "train"))  # which ends it
    assert "[bold]:smile:" in _line(progress, "fetch")


def test_a_terminal_that_lacks_a_character_gets_an_escape_and_the_run_goes_on(tmp_path: Path) -> None:
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


def test_a_narrow_terminal_and_a_long_path_cost_no_mark_and_no_time() -> None:
    progress = _after(StageStarted("ingest", "train"), StageFinished("ingest", "train", False, 2.5, INGESTED))
    drawn = _drawn(progress, log="/folder" * 40, width=60)
    line = next(line for line in drawn.splitlines() if "ingest train" in line)
    assert line.startswith("✓")
    assert line.rstrip().endswith("2.5 s")
    assert drawn.replace("\n", "").count("/folder") == 40


def test_a_stage_without_an_end_of_its_own_has_ended_when_the_next_begins_or_the_run_is_over() -> None:
    progress = _after(StageStarted("start", None))
    progress.heard("fetch", "found, supplied")
    progress.take(StageStarted("ingest", "train"))
    assert _line(progress, "fetch").startswith("✓")
    assert "found, supplied" in _line(progress, "fetch")
    progress.take(StageStarted("version", None))
    assert not _line(progress, "version").startswith("✓")
    progress.end()
    assert _line(progress, "version").startswith("✓")


def test_a_stopped_run_says_what_is_kept() -> None:
    again = "Nothing is half-written; the same command goes on from there."
    assert _after(StageStarted("start", None)).kept() == f"No stage was finished yet. {again}"
    ingested = (StageStarted("ingest", "train"), StageFinished("ingest", "train", False, 2.5, INGESTED))
    assert _after(*ingested).kept() == f"Kept: ingest train. {again}"
    within_an_epoch = _after(*ingested, StageStarted("train", None), TrainingProgress(12.4, 45, {"loss": 0.5}))
    assert within_an_epoch.kept() == f"Kept: ingest train; training up to epoch 12 of 45. {again}"
    assert (
        "epoch" not in _after(*ingested, StageStarted("train", None), TrainingProgress(0.4, 45, {"loss": 0.5})).kept()
    )


def test_plain_lines_are_of_stages_alone_and_few_of_epochs() -> None:
    out = io.StringIO()
    handler = terminal._StageLog("plain", Progress(), Console(file=out))
    for number in range(5):
        handler.handle(logging.LogRecord("tasks.train", logging.INFO, "", 0, "epoch %d/5", (number + 1,), None))
    handler.handle(logging.LogRecord("prefect.engine", logging.ERROR, "", 0, "noise", (), None))
    handler.handle(logging.LogRecord("tasks.prepare", logging.WARNING, "", 0, "few rows", (), None))
    assert out.getvalue().splitlines() == ["train: epoch 1/5", "warning: few rows"]


@pytest.mark.parametrize("style", ["live", "plain", "quiet"])
def test_a_warning_of_a_stage_is_told_in_every_style(style: terminal.Style) -> None:
    out = io.StringIO()
    handler = terminal._StageLog(style, Progress(), Console(file=out))
    handler.handle(logging.LogRecord("tasks.ingest", logging.WARNING, "", 0, "columns in another order", (), None))
    assert out.getvalue() == "warning: columns in another order\n"


def test_old_logs_go_and_the_newest_stay(tmp_path: Path) -> None:
    for number in range(25):
        (tmp_path / f"train-202601{number:02d}T000000-1.log").touch()
    new = terminal._new_log(tmp_path)
    assert not new.exists()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert len(left) == 19
    assert left[-1].startswith("train-20260124")
