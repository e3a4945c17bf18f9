"""Promote a version to champion, or roll back to the previous one. Both need a reason, which is logged."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from schemas.errors import FashionAnnError, NothingToRollBackTo, StoredArtifactError, WrongUsage
from schemas.store import AliasEvent
from tasks.registry.alias_log import ROLLBACK, champion_event, champions
from tasks.registry.store import ModelStore
from tasks.registry.verify import verify

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Move:
    """A logged move of the champion. ``cleaned``: what `ModelStore.recover` did before it."""

    event: AliasEvent
    cleaned: list[str]


def promote(store: ModelStore, number: int, reason: str, *, force: bool = False) -> Move:
    """Make a version champion after verifying it.

    force: promote a version that its verdict refused, and restore a lost alias log (`ModelStore.recover`).

    Raises `WrongUsage` for an empty reason, for the champion itself and for a refused version, and
    `StoredArtifactError` for a version that does not verify, even with ``force``.
    """
    with _recovered(store, reason, restore=force) as cleaned:
        stack = champions(store.aliases.read())
        if stack and stack[-1] == number:
            raise WrongUsage(f"Version {number} is champion already.")
        verdict = store.version(number).manifest.verdict
        if verdict.outcome == "refused" and not force:
            raise WrongUsage(
                f"Version {number} was rejected by its own verdict. {verdict.reason} "
                "Choose another version, or promote it with --force."
            )
        return Move(_move(store, stack, number, "promote --force" if force else "promote", reason), cleaned)


def rollback(store: ModelStore, reason: str) -> Move:
    """Make the previous champion champion again. A second rollback goes back one further."""
    with _recovered(store, reason) as cleaned:
        stack, numbers = champions(store.aliases.read()), store.numbers()
        # Versions that were removed are passed over.
        earlier = [number for number in stack if number != stack[-1] and number in numbers]
        if not earlier:
            raise NothingToRollBackTo(
                "No stored version was champion before the current one. "
                "Choose a version with `fashion-ann promote V --reason R`."
            )
        try:
            return Move(_move(store, stack, earlier[-1], ROLLBACK, reason), cleaned)
        except StoredArtifactError as error:
            raise StoredArtifactError(
                f"{error} Version {stack[-1]} stays champion. Choose another one with "
                "`fashion-ann promote V --reason R`."
            ) from error


@contextmanager
def _recovered(store: ModelStore, reason: str, *, restore: bool = False) -> Iterator[list[str]]:
    """Require a reason, then hold the lock of the recovered store. If the block fails, log what was cleaned."""
    if not reason.strip():
        raise WrongUsage("--reason: expected a text, received an empty one. It is recorded in the alias log.")
    with store.lock():
        cleaned = store.recover(restore=restore)
        try:
            yield cleaned
        except FashionAnnError:
            for line in cleaned:
                logger.warning("%s", line)
            raise


def _move(store: ModelStore, stack: list[int], number: int, by: str, reason: str) -> AliasEvent:
    verify(store.version(number))
    event = champion_event(stack[-1] if stack else None, number, by, reason)
    store.aliases.append(event)
    return event
