"""Send events about versions to Prefect: one per verdict and one per move of an alias.

After each send, the record beside the alias log is updated. A process that was killed in between sends the same event
again, with the same id. The server stores it once.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

from schemas.errors import StoredArtifactError, VersionNotFound
from schemas.layout import REPORT_NAME, VERDICT_NAME, WEIGHTS_NAME
from schemas.references import CsvFile, sha256sum_digest
from schemas.store import AliasEvent, PairedVerdict, shown_outcome
from tasks.registry.alias_log import CHAMPION, ROLLBACK, head_of
from tasks.registry.store import ModelStore

if TYPE_CHECKING:
    from tasks.registry.champion import Move

logger = logging.getLogger(__name__)

# Sends events, as JSON of `prefect.events.Event`, or raises.
Send = Callable[[Sequence[dict[str, Any]]], None]

_SECONDS_TO_WAIT = 60

PREFIX = "fashion-ann.version"
WAITING = f"{PREFIX}.waiting"
DIGEST_LABEL = f"{PREFIX}.digest"


def send_unsent(store: ModelStore, send: Send | None) -> bool:
    """Send the events that were not sent yet, oldest first, and return whether none is left.

    send: None if no Prefect API is in use. An error is logged: the move is done, and the next call sends its event.
    """
    if send is None or not store.root.is_dir():
        return False
    try:
        with store.lock(_SECONDS_TO_WAIT):
            entries, newest = store.aliases.entries(), max(store.numbers(), default=0)
            if events := unsent(store):
                send(events)
                store.aliases.record(sent=head_of(entries), sent_version=newest)
    except Exception as error:  # any error of the client, or a store that is in use
        logger.warning("%s: events are not sent yet (%s). The next run sends them", store.root, error)
        return False
    return True


def finish_move(store: ModelStore, move: "Move", send: Send | None) -> AliasEvent:
    """Log what was cleaned before a move, send the events that were not sent yet, and return the logged move."""
    for line in move.cleaned:
        logger.warning("%s", line)
    send_unsent(store, send)
    return move.event


def unsent(store: ModelStore) -> list[dict[str, Any]]:
    """Return the events that were not sent yet, oldest first. The caller holds the lock of the store."""
    state, entries = store.aliases.state(), store.aliases.entries()
    # A log that was restored from an older copy has other lines: all of them count as unsent.
    start = state.sent.lines if head_of(entries[: state.sent.lines]) == state.sent else 0
    events = [_event_of_move(store, move, digest) for move, digest in entries[start:]]
    for manifest in store.intact_manifests(after=state.sent_version):
        if manifest.verdict.outcome != "promoted":  # a promotion is a line of the log
            name = f"{PREFIX}.{shown_outcome(manifest.verdict.outcome)}"
            facts = {"from": manifest.parent, "reason": manifest.verdict.reason, "by": None}
            facts["flow_run"] = manifest.flow_run_id
            events.append(
                _event(store, name, manifest.manifest_sha256, manifest.created, manifest.version, alias=None, **facts)
            )
    return sorted(events, key=lambda event: str(event["occurred"]))


def _event_of_move(store: ModelStore, move: AliasEvent, digest: str) -> dict[str, Any]:
    verb = "aliased" if move.alias != CHAMPION else "rolled-back" if move.by == ROLLBACK else "promoted"
    facts = move.as_json()
    return _event(store, f"{PREFIX}.{verb}", digest, facts.pop("when"), facts.pop("to"), **facts)


def _event(store: ModelStore, name: str, digest: str, occurred: str, number: int, **facts: Any) -> dict[str, Any]:
    """Return an event. Its id depends on ``digest``, that of the manifest or of the line of the log."""
    return {
        "id": str(uuid5(NAMESPACE_URL, f"{name}:{store.root.name}:{digest}")),
        "event": name,
        "occurred": occurred,
        "resource": {"prefect.resource.id": f"{PREFIX}.{store.root.name}.{number}", DIGEST_LABEL: digest},
        "payload": {"dataset": store.root.name, "version": number, **facts, **_figures(store, number)},
    }


def _figures(store: ModelStore, number: int) -> dict[str, Any]:
    """Return digests, accuracy, p-value and report of a version; None if it was removed or is damaged.

    ``p`` is that of its own verdict. ``data`` is the digest that `fashion-ann.data.updated` has for the same CSVs.
    """
    figures: dict[str, Any] = {"digests": None, "accuracy": None, "p": None, "report": None}
    try:
        version = store.version(number)
        paired = version.read_json(VERDICT_NAME, PairedVerdict).paired
    except (StoredArtifactError, VersionNotFound) as error:
        logger.warning("version %d: its event has no figures: %s", number, error)
        return figures
    manifest = version.manifest
    csvs = [*manifest.data.train.csv_files, *manifest.data.test.csv_files]
    return {
        "digests": {
            "manifest": manifest.manifest_sha256,
            "weights": manifest.files[WEIGHTS_NAME].sha256,
            "data": sha256sum_digest(CsvFile(path=Path(csv.file), sha256=csv.sha256) for csv in csvs),
        },
        "accuracy": manifest.test_accuracy,
        "p": paired and paired.p_value,
        "report": str(version.folder / REPORT_NAME),
    }
