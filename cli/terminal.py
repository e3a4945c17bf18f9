"""Show a run while it works: a live view on a terminal, one plain line per stage elsewhere, or only warnings.

Everything else that a run prints, by Prefect's engine or TensorFlow's C++ for example, goes to a log file.
"""

import logging
import os
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Literal, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from cli.printed_commands import runnable
from schemas.layout import Artifacts
from tasks.runtime.control_characters import escaped, escaping
from tasks.runtime.events import (
    Event,
    ShardsFinished,
    StageFinished,
    StageMissed,
    StageStarted,
    TrainingProgress,
    subscribe,
)
from tasks.runtime.files import PRIVATE_FILE
from tasks.runtime.stages import BY_NAME, RUN_NAMES, TRAIN, run_name, runs

_LOGS_KEPT = 20
_SECONDS_BETWEEN_EPOCH_LINES = 10
_TRAINING_LOGGER = "tasks.train"
_START = "start"  # Prefect and the imports, before the first stage
# Those that leave an output, whenever the run is stopped.
_STORED = {run_name(stage.name, split) for stage, split in runs() if stage.folder is not None}

Style = Literal["live", "plain", "quiet"]


def style_for(stream: IO[str], *, quiet: bool) -> Style:
    """Return how to show a run on ``stream``: live only on a terminal that can move its cursor."""
    if quiet:
        return "quiet"
    return "live" if stream.isatty() and os.environ.get("TERM") != "dumb" else "plain"


@dataclass
class _Row:
    """The progress of one stage. ``seconds`` is None until the stage has finished."""

    started: float | None = None
    seconds: float | None = None
    detail: str = ""


@dataclass
class Progress:
    """The progress of a run, from the events that its stages emit and the lines that they log."""

    rows: dict[str, _Row] = field(default_factory=lambda: {name: _Row() for name in (_START, *RUN_NAMES)})
    running: str | None = None
    trained: TrainingProgress | None = None
    _first: tuple[float, float] | None = None

    @classmethod
    def empty(cls) -> Self:
        """Return the progress of a flow with other stages, whose rows appear when they start."""
        return cls(rows={_START: _Row()})

    def on_event(self, event: Event) -> None:
        if isinstance(event, TrainingProgress):
            if self._first is None:
                self._first = (time.monotonic(), event.done)
            # Validation metrics arrive once per epoch and stay until the next.
            figures = {**(self.trained.figures if self.trained else {}), **event.figures}
            self.trained = TrainingProgress(event.done, event.epochs, figures)
            return
        if isinstance(event, StageMissed):
            return
        name = run_name(event.stage, event.split)
        row = self.rows.setdefault(name, _Row())
        row.started = row.started or time.monotonic()
        if isinstance(event, StageStarted):
            self.finish(before=name)
            self.running = name
            row.detail = "Prefect and the imports of the stages" if name == _START else ""
        elif isinstance(event, ShardsFinished):
            row.detail = f"{event.done} of {event.total} shards" if event.total > 1 else row.detail
        else:
            self.running = None
            row.seconds = event.seconds
            row.detail = escaped(_summary(event))

    def on_log(self, message: str) -> None:
        """Show ``message`` in the row of the running stage."""
        if self.running is not None:
            self.rows[self.running].detail = escaped(message)

    def finish(self, before: str | None = None) -> None:
        """Finish started rows, or only those above ``before``: not every stage emits an event when it ends."""
        for name, row in self.rows.items():
            if name == before:
                return
            if row.started is not None and row.seconds is None:
                row.seconds = time.monotonic() - row.started

    def seconds_left(self) -> float | None:
        """Return the estimated seconds of training left, None until there are two reports to measure the pace."""
        if self.trained is None or self._first is None or self.trained.done <= self._first[1]:
            return None
        pace = (time.monotonic() - self._first[0]) / (self.trained.done - self._first[1])
        return pace * (self.trained.epochs - self.trained.done)

    def summary_when_stopped(self) -> str:
        """Return what a run that is stopped now leaves on disk, and how to continue it."""
        kept = [name for name, row in self.rows.items() if row.seconds is not None and name in _STORED]
        parts = [", ".join(kept)] if kept else []
        if self.trained is not None and TRAIN.name not in kept and self.trained.done >= 1:
            parts.append(f"training up to epoch {int(self.trained.done)} of {self.trained.epochs}")
        finished = f"Kept: {'; '.join(parts)}." if parts else "No stage had finished."
        return f"{finished} No file is half-written. Run the same command again to continue."


class TuningProgress(Progress):
    """The progress of a study. Its trials share a row with the last line that one of them logged."""

    def on_event(self, event: Event) -> None:
        if isinstance(event, TrainingProgress):
            self.trained = event
        elif event.stage != TRAIN.name:
            super().on_event(event)


def _summary(event: StageFinished) -> str:
    if event.reused:
        return "reused"
    return BY_NAME[event.stage].summarize(event.facts, event.seconds) if event.stage in BY_NAME else "done"


class LiveView:
    """A table with one row per stage, which rich renders several times per second."""

    def __init__(self, progress: Progress, log: Path) -> None:
        self.progress = progress
        self.log = log
        self.spinner = Spinner("dots")

    def __rich__(self) -> RenderableType:
        # On a narrow terminal the third column, the detail, is the only one that shrinks.
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(width=1)
        table.add_column(width=max(map(len, self.progress.rows)), no_wrap=True)
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        table.add_column(justify="right", width=8, no_wrap=True)
        for name, row in self.progress.rows.items():
            table.add_row(*self._cells(name, row))
        return Group(table, Text(f"   log: {escaped(str(self.log))}", style="dim", overflow="fold"))

    def _cells(self, name: str, row: _Row) -> tuple[RenderableType, ...]:
        if row.seconds is not None:
            reused = row.detail == "reused"
            mark = Text("=" if reused else "✓", style="cyan" if reused else "green")
            return mark, Text(name), Text(row.detail or "done"), "" if reused else f"{row.seconds:.1f} s"
        if row.started is None:
            return "", Text(name, style="dim"), "", ""
        seconds = f"{time.monotonic() - row.started:.0f} s"
        trained = self.progress.trained
        detail = Text(row.detail) if name != TRAIN.name or trained is None else self._bar(trained)
        return self.spinner, Text(name, style="bold"), detail, seconds

    def _bar(self, trained: TrainingProgress) -> RenderableType:
        """Return the progress bar of training, above the metrics of the train and of the validation split."""
        left, metrics = self.progress.seconds_left(), trained.figures
        grid = Table.grid(padding=(0, 1), expand=True)
        # The bar takes what the words leave of 51 columns, on a terminal of 80.
        for ratio in (None, 1, None, None):
            grid.add_column(no_wrap=True, ratio=ratio)
        grid.add_row(
            f"epoch {min(int(trained.done) + 1, trained.epochs)}/{trained.epochs}",
            ProgressBar(total=trained.epochs, completed=trained.done),
            f"{trained.done / trained.epochs:.0%}",
            "" if left is None else f"ETA {int(left) // 60}:{int(left) % 60:02d}",
        )
        lines = [
            "  ".join(f"{name.replace('val_', 'val ')} {metrics[name]:.4f}" for name in names if name in metrics)
            for names in (("loss", "accuracy"), ("val_loss", "val_accuracy"))
        ]
        return Group(grid, *(Text(line, style="dim") for line in lines if line))


class StageLogHandler(logging.Handler):
    """Show the log records of our own stages: warnings always, INFO in the live view or as plain lines.

    A message that the line of the finished stage repeats is logged at DEBUG, which only the log file receives.
    """

    def __init__(self, style: Style, progress: Progress, console: Console) -> None:
        super().__init__(logging.INFO)
        self.addFilter(logging.Filter("tasks"))
        self._style = style
        self._progress = progress
        self._console = console
        self._last_epoch_line = float("-inf")

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.levelno >= logging.WARNING:
            _print(self._console, f"warning: {message}", style="yellow")
            return
        self._progress.on_log(message)
        if self._style != "plain":
            return
        running = self._progress.running
        if record.name == _TRAINING_LOGGER and self._progress.trained is not None:
            # Training logs every epoch, which may take half a second.
            if time.monotonic() - self._last_epoch_line < _SECONDS_BETWEEN_EPOCH_LINES:
                return
            self._last_epoch_line = time.monotonic()
        _print(self._console, f"{running}: {message}" if running else message)


class Screen:
    """Show a run on stderr and write all other output to a log file.

    From here to the end of the process, file descriptor 2 is the log file, because output of C++ code and of child
    processes would break the view. `sys.stderr` stays the terminal.
    """

    def __init__(self, artifacts_dir: Path, progress: Progress, *, quiet: bool) -> None:
        self.log_path = new_log(Artifacts(artifacts_dir).logs)
        self.log_path.touch(PRIVATE_FILE)
        self.log = self.log_path.open("a+b", buffering=0)
        # Like Python's own stderr: a character that the terminal cannot encode is escaped and ends no run.
        terminal = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
        os.dup2(self.log.fileno(), 2)
        sys.stderr = escaping(terminal)  # not of the console, which moves the cursor
        self._style = style_for(terminal, quiet=quiet)
        self._progress = progress
        self._console = Console(file=terminal, force_terminal=self._style == "live")

    @contextmanager
    def showing(self) -> Iterator[None]:
        """Show the progress of the block. The live view starts a thread that draws."""
        if self._style == "plain":
            _print(self._console, f"log: {self.log_path}")
        view = Live(LiveView(self._progress, self.log_path), console=self._console, refresh_per_second=8)
        with (
            subscribe(self._progress.on_event),
            subscribe(self._print_finished_stage),
            view if self._style == "live" else nullcontext(),
        ):
            try:
                yield
                self._progress.finish()
            except BaseException:
                if self._style == "quiet":
                    _print(self._console, f"log: {self.log_path}")
                raise

    def _print_finished_stage(self, event: Event) -> None:
        if self._style == "plain" and isinstance(event, StageFinished):
            seconds = "" if event.reused else f" ({event.seconds:.1f} s)"
            _print(self._console, f"{run_name(event.stage, event.split)}: {_summary(event)}{seconds}")

    def take_over_logging(self) -> None:
        """Send all log records to the file and those of our stages to the terminal too. Prefect has set up its own."""
        logging.getLogger("tasks").setLevel(logging.DEBUG)
        logging.captureWarnings(capture=True)
        file = logging.StreamHandler(escaping(self.log_path.open("a", encoding="utf-8")))
        file.setFormatter(logging.Formatter("%(asctime)s | %(levelname)-7s | %(name)s - %(message)s"))
        logging.getLogger().handlers = [file, StageLogHandler(self._style, self._progress, self._console)]
        # Errors of Prefect's background threads do not concern the result. This logger has a handler of its own, and
        # `logging` prints records that cannot be sent.
        for handler in logging.getLogger("prefect._internal").handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setStream(file.stream)
        logging.raiseExceptions = False


def _print(console: Console, line: str, style: str | None = None) -> None:
    """Print a line without wrapping it or reading markup in it."""
    console.print(escaped(runnable(line)), style=style, markup=False, highlight=False, soft_wrap=True)


def new_log(folder: Path) -> Path:
    """Return the path for the log of a new run, and delete all but the newest logs."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.glob("train-*.log"))[: 1 - _LOGS_KEPT or None]:
        old.unlink(missing_ok=True)
    return folder / f"train-{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}.log"
