"""Move `champion` by hand: to a version that verifies, under the lock, with a reason in the log."""

from pathlib import Path
from typing import Any

from schemas.errors import FashionAnnError, WrongUsage
from tasks.store import (
    CHAMPION,
    ROLLBACK,
    append_event,
    champions,
    read_alias_log,
    read_manifest,
    settle,
    store_lock,
    utc_now,
    version_numbers,
)
from tasks.verify import verify_version


class NothingToRollBackTo(FashionAnnError):
    """No version was champion before the present one."""


def promote(root: Path, version: int, reason: str, *, force: bool = False) -> dict[str, Any]:
    """Make ``version`` champion; returns the event that was logged, and what was cleaned before under ``cleaned``.

    Raises `WrongUsage` for an empty reason, for the champion itself, and for a version that was refused, unless
    ``force``; `StoredArtifactError` for one that does not verify, which nothing overrides.
    """
    _demand_reason(reason)
    with store_lock(root):
        cleaned = settle(root)
        stack = champions(read_alias_log(root))
        if stack and stack[-1] == version:
            raise WrongUsage(f"Version {version} is champion already.")
        verdict = read_manifest(root, version)["verdict"]
        if verdict["outcome"] == "refused" and not force:
            raise WrongUsage(
                f"Version {version} was refused by its own verdict. {verdict['reason']} "
                "Choose another version, or insist with --force."
            )
        event = _move(root, stack, version, "promote", reason)
    return {**event, "cleaned": cleaned}


def rollback(root: Path, reason: str) -> dict[str, Any]:
    """Give the place back to the champion before the present one; twice goes back two. Returns as `promote` does."""
    _demand_reason(reason)
    with store_lock(root):
        cleaned = settle(root)
        stack = champions(read_alias_log(root))
        # A version that is gone is nothing to roll back to; the one before it is.
        earlier = [number for number in stack if number != stack[-1] and number in version_numbers(root)]
        if not earlier:
            raise NothingToRollBackTo(
                "No version was champion before the present one; there is nothing to roll back to. "
                "`fashion-ann promote V --reason R` names one."
            )
        event = _move(root, stack, earlier[-1], ROLLBACK, reason)
    return {**event, "cleaned": cleaned}


def _move(root: Path, stack: list[int], version: int, by: str, reason: str) -> dict[str, Any]:
    verify_version(root, version)
    event = {
        "when": utc_now(),
        "alias": CHAMPION,
        "from": stack[-1] if stack else None,
        "to": version,
        "by": by,
        "reason": reason,
        "flow_run": None,
    }
    append_event(root, event)
    return event


def _demand_reason(reason: str) -> None:
    if not reason.strip():
        raise WrongUsage("--reason: a text was expected, an empty one was received. Say why; it is kept in the log.")
