"""Move `champion` by hand: to a version that verifies, under the lock, with a reason in the log."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from schemas.errors import FashionAnnError, StoredArtifactError, WrongUsage
from tasks.registry.alias_log import ROLLBACK, append_event, champion_event, champions, read_alias_log
from tasks.registry.store import read_manifest, recover, store_lock, version_numbers
from tasks.registry.verify import verify_version

logger = logging.getLogger(__name__)


class NothingToRollBackTo(FashionAnnError):
    """No version was champion before the present one."""


def promote(root: Path, version: int, reason: str, *, force: bool = False) -> dict[str, Any]:
    """Make ``version`` champion; returns the event that was logged, and what was cleaned before under ``cleaned``.

    Raises `WrongUsage` for an empty reason, for the champion itself, and for a version that was refused, unless
    ``force``, and `StoredArtifactError` for one that does not verify, which nothing overrides. ``force`` also begins
    anew where the alias log was lost (`tasks.registry.store.recover`).
    """
    _demand_reason(reason)
    with _settled(root, restore=force) as cleaned:
        stack = champions(read_alias_log(root))
        if stack and stack[-1] == version:
            raise WrongUsage(f"Version {version} is champion already.")
        verdict = read_manifest(root, version)["verdict"]
        if verdict["outcome"] == "refused" and not force:
            raise WrongUsage(
                f"Version {version} was refused by its own verdict. {verdict['reason']} "
                "Choose another version, or insist with --force."
            )
        event = _move(root, stack, version, "promote --force" if force else "promote", reason)
    return {**event, "cleaned": cleaned}


def rollback(root: Path, reason: str) -> dict[str, Any]:
    """Give the place back to the champion before the present one; twice goes back two. Returns as `promote` does."""
    _demand_reason(reason)
    with _settled(root) as cleaned:
        stack = champions(read_alias_log(root))
        # A version that is gone is nothing to roll back to; the one before it is.
        earlier = [number for number in stack if number != stack[-1] and number in version_numbers(root)]
        if not earlier:
            raise NothingToRollBackTo(
                "No version was champion before the present one; there is nothing to roll back to. "
                "`fashion-ann promote V --reason R` names one."
            )
        try:
            event = _move(root, stack, earlier[-1], ROLLBACK, reason)
        except StoredArtifactError as error:
            raise StoredArtifactError(
                f"{error} Version {stack[-1]} stays champion. `fashion-ann promote V --reason R` makes another one it."
            ) from error
    return {**event, "cleaned": cleaned}


@contextmanager
def _settled(root: Path, *, restore: bool = False) -> Iterator[list[str]]:
    """Under the lock, after `recover`; what that cleaned is said also when the block then fails."""
    with store_lock(root):
        cleaned = recover(root, restore=restore)
        try:
            yield cleaned
        except FashionAnnError:
            for line in cleaned:
                logger.warning("%s", line)
            raise


def _move(root: Path, stack: list[int], version: int, by: str, reason: str) -> dict[str, Any]:
    verify_version(root, version)
    event = champion_event(stack[-1] if stack else None, version, by, reason)
    append_event(root, event)
    return event


def _demand_reason(reason: str) -> None:
    if not reason.strip():
        raise WrongUsage("--reason: a text was expected, an empty one was received. Say why; it is kept in the log.")
