"""What people see of a run while it goes on: a live view on a terminal, else a plain line a stage, or nothing.

Whatever else a run says, Prefect's engine and TensorFlow's C++ among it, goes to a log file.
"""

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from tasks.runtime.events import Event, StageFinished, StageStarted, TrainingProgress, subscribe

LOGS_FOLDER = "logs"

_KEPT_LOGS = 20
_SECONDS_BETWEEN_EPOCHS = 10
# Begun in this order; a stage that is not among them joins at the end.
_STAGES = (
    *("start", "fetch", "ingest train", "validate train", "ingest test", "validate test", "prepare", "train"),
    *("evaluate", "version"),
)

Style = Literal["live", "plain", "quiet"]


def style_for(stream: IO[str], *, quiet: bool) -> Style:
    """How a run is shown on ``stream``: live on a terminal that can move its cursor."""
    if quiet:
        return "quiet"
    return "live" if stream.isatty() and os.environ.get("TERM") != "dumb" else "plain"


@dataclass
class _Row:
    """A stage as far as it is known. ``took`` is None until it ended."""

    since: float | None = None
    took: float | None = None
    says: str = ""


@dataclass
class Progress:
    """What a run has done so far, from the events that its stages tell."""

    rows: dict[str, _Row] = field(default_factory=lambda: {name: _Row() for name in _STAGES})
    trained: TrainingProgress | None = None
    _first: tuple[float, float] | None = None

    def take(self, event: Event) -> None:
        if isinstance(event, TrainingProgress):
            if self._first is None:
                self._first = (time.monotonic(), event.done)
            # The figures of the validation split are told once an epoch, and hold until the next.
            figures = {**(self.trained.figures if self.trained else {}), **event.figures}
            self.trained = TrainingProgress(event.done, event.epochs, figures)
            return
        name = _name(event)
        row = self.rows.setdefault(name, _Row())
        if isinstance(event, StageStarted):
            self._end_those_before(name)
            row.since = time.monotonic()
            row.says = "Prefect and what the stages import" if event.stage == "start" else ""
        else:
            row.since = row.since or time.monotonic()
            row.took = event.seconds
            row.says = _said(event)

    def heard(self, stage: str, message: str) -> None:
        """What a stage says of itself stands beside it while it goes on."""
        row = self.rows.get(stage)
        if row is not None and row.took is None:
            row.since = row.since or time.monotonic()
            row.says = message

    def _end_those_before(self, name: str | None) -> None:
        """A stage that tells no end of its own has ended when the next one begins; None: when the run has."""
        for other, row in self.rows.items():
            if other == name:
                return
            if row.since is not None and row.took is None:
                row.took = time.monotonic() - row.since

    def end(self) -> None:
        """The run is over, and well."""
        self._end_those_before(None)

    def seconds_left(self) -> float | None:
        """Of training, at the pace since its first steps; None while there is no pace yet."""
        if self.trained is None or self._first is None or self.trained.done <= self._first[1]:
            return None
        pace = (time.monotonic() - self._first[0]) / (self.trained.done - self._first[1])
        return pace * (self.trained.epochs - self.trained.done)

    def kept(self) -> str:
        """What a run that is stopped now leaves behind, and how it goes on."""
        done = [name for name, row in self.rows.items() if row.took is not None and name not in ("start", "fetch")]
        kept = [", ".join(done)] if done else []
        if self.trained is not None and "train" not in done and self.trained.done >= 1:
            kept.append(f"training up to epoch {int(self.trained.done)} of {self.trained.epochs}")
        what = f"Kept: {'; '.join(kept)}." if kept else "No stage was finished yet."
        return f"{what} Nothing is half-written; the same command goes on from there."


def _name(event: StageStarted | StageFinished) -> str:
    return f"{event.stage} {event.split}" if event.split else event.stage


def _said(event: StageFinished) -> str:
    """What a stage did, in a few words, from its facts."""
    if event.reused:
        return "reused"
    facts = event.facts
    words = []
    if event.stage == "ingest":
        words = [f"{facts['rows']:,} rows", _pace(facts["rows"], event.seconds)]
        if facts["quarantined"]:
            words.append(f"{facts['quarantined']:,} bad ones set aside")
    elif event.stage == "validate":
        words = [f"{len(facts['rows'])} expectations", f"{len(facts['broken'])} broken"]
    elif event.stage == "prepare":
        rows = [facts[f"{split}_rows"] for split in ("train", "validation", "test")]
        words = [" + ".join(f"{count:,}" for count in rows) + " rows", _pace(sum(rows), event.seconds)]
    elif event.stage == "train":
        words = [f"{facts['epochs_run']} epochs on {facts['device']['name']}"]
    elif event.stage == "evaluate":
        words = [f"test accuracy {facts['test_accuracy']:.4f}", f"loss {facts['test_loss']:.4f}"]
    return ", ".join(words) or "done"


def _pace(rows: int, seconds: float) -> str:
    return f"{rows / max(seconds, 1e-3):,.0f} rows/s"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


class _View:
    """Renders a `Progress` each time that rich asks for it."""

    def __init__(self, progress: Progress, log: Path) -> None:
        self.progress = progress
        self.log = log
        self.spinner = Spinner("dots")

    def __rich__(self) -> RenderableType:
        # What a stage says gives way on a narrow terminal, and nothing else does.
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(width=1)
        table.add_column(width=14, no_wrap=True)
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        table.add_column(justify="right", width=8, no_wrap=True)
        for name, row in self.progress.rows.items():
            table.add_row(*self._cells(name, row))
        return Group(table, Text(f"   log: {self.log}", style="dim", overflow="fold"))

    def _cells(self, name: str, row: _Row) -> tuple[RenderableType, ...]:
        if row.took is not None:
            reused = row.says == "reused"
            mark = Text("=" if reused else "✓", style="cyan" if reused else "green")
            return mark, Text(name), Text(row.says or "done"), "" if reused else f"{row.took:.1f} s"
        if row.since is None:
            return "", Text(name, style="dim"), "", ""
        seconds = f"{time.monotonic() - row.since:.0f} s"
        trained = self.progress.trained
        if name != "train" or trained is None:
            return self.spinner, Text(name, style="bold"), Text(row.says), seconds
        return self.spinner, Text(name, style="bold"), self._bar(trained), seconds

    def _bar(self, trained: TrainingProgress) -> RenderableType:
        left = self.progress.seconds_left()
        # On 80 columns 51 are left here: the bar takes what the words leave, and validation has a line of its own.
        figures = [
            "  ".join(
                f"{name.replace('val_', 'val ')} {trained.figures[name]:.4f}"
                for name in names
                if name in trained.figures
            )
            for names in (("loss", "accuracy"), ("val_loss", "val_accuracy"))
        ]
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True)
        grid.add_row(
            Text(f"epoch {min(int(trained.done) + 1, trained.epochs)}/{trained.epochs}"),
            ProgressBar(total=trained.epochs, completed=trained.done),
            Text(f"{trained.done / trained.epochs:.0%}"),
            Text("" if left is None else f"ETA {_clock(left)}"),
        )
        return Group(grid, *(Text(line, style="dim") for line in figures if line))


class _StageLog(logging.Handler):
    """Passes on what our own stages say: the live view shows it at their rows, and warnings above itself."""

    def __init__(self, style: Style, progress: Progress, console: Console) -> None:
        super().__init__(logging.INFO)
        self.style = style
        self.progress = progress
        self.console = console
        self._epoch_told = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        return record.name.startswith("tasks.")

    def emit(self, record: logging.LogRecord) -> None:
        stage, message = record.name.removeprefix("tasks."), record.getMessage()
        if record.levelno >= logging.WARNING:
            _print(self.console, f"warning: {message}", style="yellow")
            return
        self.progress.heard(stage, message)
        # A plain line a stage comes from its end, which says more than these two.
        if self.style == "plain" and stage not in ("stage", "ingest") and not self._one_epoch_too_many(message):
            _print(self.console, f"{stage}: {message}")

    def _one_epoch_too_many(self, message: str) -> bool:
        """Epochs of a second are told every ten seconds: whoever reads a log wants to know that it goes on."""
        if not message.startswith("epoch "):
            return False
        if time.monotonic() - self._epoch_told < _SECONDS_BETWEEN_EPOCHS:
            return True
        self._epoch_told = time.monotonic()
        return False


class Screen:
    """Shows a run on what stderr was, and keeps everything else that is said in a log file.

    From here to the end of the process file descriptor 2 is the log file: what C++ and child processes write would tear
    the view apart. `sys.stderr` is the terminal, still.
    """

    def __init__(self, artifacts_dir: Path, progress: Progress, *, quiet: bool) -> None:
        self.log_path = _new_log(artifacts_dir / LOGS_FOLDER)
        self.log = self.log_path.open("a+b", buffering=0)
        # As Python opens stderr: what the terminal's encoding lacks is written as an escape, and ends no run.
        terminal = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
        os.dup2(self.log.fileno(), 2)
        sys.stderr = terminal
        self._style = style_for(terminal, quiet=quiet)
        self._progress = progress
        self._console = Console(file=terminal, force_terminal=self._style == "live")

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Show what the block does. It starts a thread that draws."""
        if self._style == "plain":
            self._say_log()
        view = Live(_View(self._progress, self.log_path), console=self._console, refresh_per_second=8)
        with (
            subscribe(self._progress.take),
            subscribe(self._tell_end),
            view if self._style == "live" else nullcontext(),
        ):
            try:
                yield
                self._progress.end()
            except BaseException:
                if self._style == "quiet":
                    self._say_log()
                raise

    def _tell_end(self, event: Event) -> None:
        if self._style == "plain" and isinstance(event, StageFinished):
            took = "" if event.reused else f" ({event.seconds:.1f} s)"
            _print(self._console, f"{_name(event)}: {_said(event)}{took}")

    def _say_log(self) -> None:
        _print(self._console, f"log: {self.log_path}")

    def take_over_logging(self) -> None:
        """Everything into the file, what our stages say onto the terminal. Prefect has set up its own before."""
        logging.getLogger("tasks").setLevel(logging.INFO)
        logging.captureWarnings(capture=True)
        file = logging.FileHandler(self.log_path, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s | %(levelname)-7s | %(name)s - %(message)s"))
        logging.getLogger().handlers = [file, _StageLog(self._style, self._progress, self._console)]


def _print(console: Console, line: str, style: str | None = None) -> None:
    """A line as it stands: neither wrapped, nor taken for markup."""
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def _new_log(folder: Path) -> Path:
    """A name for this run's log; of the earlier ones the newest stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.glob("train-*.log"))[: 1 - _KEPT_LOGS or None]:
        old.unlink(missing_ok=True)
    return folder / f"train-{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}.log"
