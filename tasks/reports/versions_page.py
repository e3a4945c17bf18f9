"""Write index.html into a store: one page of all versions, with accuracy over time and the champions so far."""

import logging
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from schemas.errors import StoredArtifactError, VersionNotFound
from schemas.layout import INDEX_NAME, REPORT_NAME
from schemas.store import AliasEvent, StoredData, VersionResult
from tasks.data.statistics import wilson_interval
from tasks.registry.alias_log import CHAMPION, alias_values, head_of
from tasks.registry.manifest import read_content
from tasks.registry.store import ModelStore
from tasks.reports.charts import Chart, time_chart
from tasks.reports.comparison import comparisons_folder
from tasks.reports.rendering import render
from tasks.runtime.files import atomic_write, digest_of, sweep_temporaries

logger = logging.getLogger(__name__)

_SECONDS_TO_WAIT = 60
_COMPARISON = re.compile(r"([0-9]{4,9})-([0-9]{4,9})\.html")
# In the head of the page, before its styles.
_STATE = re.compile(r'<meta name="state" content="([0-9a-f]{64})">')


@dataclass(frozen=True)
class VersionRow:
    """A version on the page. ``fault`` is the reason why its manifest cannot be read; the others are None then.

    interval: Wilson's of 95 % of the test accuracy. report: whether the file is on this machine. compared: the other
    versions that a page of `compare` on this machine compares it with, by the link to the page. link: to its report.
    """

    number: int
    result: VersionResult | None
    interval: tuple[float, float] | None
    fault: str | None
    aliases: tuple[str, ...]
    report: bool
    link: str
    compared: Mapping[str, int]


@dataclass(frozen=True)
class Reign:
    """A time in which a version was champion, in seconds since 1970. ``end`` is None for the current champion."""

    move: AliasEvent
    start: float
    end: float | None


def write_versions_page(store: ModelStore) -> None:
    """Write the page of all versions again, unless it shows the present versions, aliases, reports and comparisons.

    Waits for the lock of the store. Does nothing in a store that this user cannot write to. An error is logged: the
    page shows what is stored, and the next call writes it.
    """
    page = store.root / INDEX_NAME
    if not os.access(store.root, os.W_OK):
        return
    try:
        with store.lock(_SECONDS_TO_WAIT):
            numbers, entries = store.numbers(), store.aliases.entries()
            reports = {number for number in numbers if (store.folder(number) / REPORT_NAME).is_file()}
            compared = _compared(store.root)
            shown = [numbers, head_of(entries).as_json(), sorted(reports), sorted(map(sorted, compared.values()))]
            state = digest_of(shown)
            if _state_of(page) == state:
                return
            events = [event for event, _ in entries]
            rows = [
                _row(store, number, events, number in reports, compared.get(number, {})) for number in reversed(numbers)
            ]
            html = _render(store.root.name, state, [row for row in rows if row is not None], events)
            sweep_temporaries(page)
            with atomic_write(page) as temporary:
                temporary.write_text(html, encoding="utf-8")
    except Exception as error:  # must not fail the run or the move that called it
        logger.warning("%s is not written yet (%s). The next version or move of an alias writes it", page, error)


def _state_of(page: Path) -> str | None:
    """Return the digest of what the page shows, None if there is no page."""
    if not page.is_file():
        return None
    with page.open(encoding="utf-8", errors="replace") as file:
        written = _STATE.search(file.read(1_000))
    return written and written[1]


def _compared(root: Path) -> dict[int, dict[str, int]]:
    """Return, by version, the versions that it was compared with, by the link from the store to the page."""
    folder = comparisons_folder(root.parents[1], root.name)
    compared: dict[int, dict[str, int]] = defaultdict(dict)
    for path in sorted(folder.glob("*.html")):
        if match := _COMPARISON.fullmatch(path.name):
            compared[int(match[2])][Path(os.path.relpath(path, root)).as_posix()] = int(match[1])
    return compared


def _row(
    store: ModelStore, number: int, events: Sequence[AliasEvent], report: bool, compared: Mapping[str, int]
) -> VersionRow | None:
    """Return the row of a version, None if it was removed meanwhile."""
    aliases = tuple(sorted(alias for alias, version in alias_values(events).items() if version == number))
    folder, result, interval, fault = store.folder(number), None, None, None
    try:
        _, content = read_content(folder, number)
        result = VersionResult.parse(content, str(folder))
        if (content.get("version"), result.dataset) != (number, store.root.name):
            raise StoredArtifactError(f"{folder} contains another version. Restore the version from a copy.")
        rows = result.data.split_rows["test"]
        interval = wilson_interval(round(result.test_accuracy * rows), rows)
    except VersionNotFound:
        return None
    except StoredArtifactError as error:
        result, fault = None, str(error)
    link = (folder / REPORT_NAME).relative_to(store.root).as_posix()
    return VersionRow(number, result, interval, fault, aliases, report, link, compared)


def _render(dataset: str, state: str, rows: Sequence[VersionRow], events: Sequence[AliasEvent]) -> str:
    moves = [event for event in events if event.alias == CHAMPION]
    starts = [_seconds(move.when) for move in moves]
    reigns = [Reign(*reign) for reign in zip(moves, starts, [*starts[1:], None], strict=False)]
    intact = [(row, row.result) for row in rows if row.result is not None]
    return render(
        "versions.html",
        dataset=dataset,
        state=state,
        rows=rows,
        intact=intact,
        stored={row.number for row in rows},
        champion=next((row for row in rows if CHAMPION in row.aliases), None),
        best=max(intact, key=lambda entry: entry[1].test_accuracy, default=None),
        reigns=reigns[::-1],
        chart=_chart(intact, starts) if intact else None,
        seconds=_seconds,
        data=_data(intact),
    )


def _chart(intact: Sequence[tuple[VersionRow, VersionResult]], moves: Sequence[float]) -> Chart:
    """Return the chart of accuracy by time. A rejected version may be far below the others and does not scale it."""
    accepted = [entry for entry in intact if entry[1].verdict.outcome != "refused"] or intact
    bounds = [bound for row, _ in accepted for bound in row.interval or ()]
    return time_chart([*(_seconds(result.created) for _, result in intact), *moves], bounds)


def _data(intact: Sequence[tuple[VersionRow, VersionResult]]) -> list[tuple[StoredData, list[int]]]:
    """Return each data that versions were trained and tested on, with their numbers, the newest first."""
    used: dict[tuple[str, str], tuple[StoredData, list[int]]] = {}
    for row, result in intact:
        data = result.data
        used.setdefault((data.train.csv_sha256, data.test.csv_sha256), (data, []))[1].append(row.number)
    return list(used.values())


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()
