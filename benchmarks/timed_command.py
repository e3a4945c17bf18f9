"""Run `fashion-ann` and record when its events happen: `python -m benchmarks.timed_command FILE ARGUMENT..`.

Writes pairs of name and Unix time to FILE as JSON: "prepare started", "ingest train finished", "epoch" at the end of
each epoch, and "returned" when the result has been printed.
"""

import json
import sys
import time
from pathlib import Path

import fashion_ann
from tasks.runtime.events import Event, StageMissed, StageStarted, TrainingProgress, subscribe
from tasks.runtime.stages import run_name


def main(file: str, *arguments: str) -> None:
    events: list[tuple[str, float]] = []

    def record(event: Event) -> None:
        if isinstance(event, TrainingProgress):
            if "val_loss" in event.figures:
                events.append(("epoch", time.time()))
            return
        if isinstance(event, StageMissed):
            return
        name = run_name(event.stage, event.split)
        events.append((f"{name} {'started' if isinstance(event, StageStarted) else 'finished'}", time.time()))

    sys.argv = ["fashion-ann", *arguments]
    with subscribe(record):
        try:
            fashion_ann.main()
        finally:
            events.append(("returned", time.time()))
            Path(file).write_text(json.dumps(events))


if __name__ == "__main__":
    main(*sys.argv[1:])
