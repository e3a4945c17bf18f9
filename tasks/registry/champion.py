"""Promote a version to champion, roll back to the previous one, or move another alias. The reason is logged."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass

from schemas.contract import contract_of
from schemas.errors import FashionAnnError, LostRace, NothingToRollBackTo, StoredArtifactError, WrongUsage
from schemas.store import AliasEvent
from tasks.registry.alias_log import CHAMPION, ROLLBACK, alias_event, alias_values, champions
from tasks.registry.prediction_records import read_records
from tasks.registry.store import ModelStore, StoredVersion
from tasks.registry.verify import verify

logger = logging.getLogger(__name__)

_Check = Callable[[StoredVersion], StoredVersion]

# `ModelStore.resolve` reads v7 as a number.
_ALIAS = re.compile(r"(?!v[0-9]+$)[A-Za-z][A-Za-z0-9-]{0,63}")


@dataclass(frozen=True)
class Move:
    """A logged move of an alias. ``cleaned``: what `ModelStore.recover` did before it."""

    event: AliasEvent
    cleaned: list[str]


def promote(
    store: ModelStore,
    number: int,
    reason: str,
    *,
    force: bool = False,
    flow_run: str | None = None,
    minimum_shadow_rows: int | None = None,
) -> Move:
    """Make a version champion after verifying it.

    force: promote a version that its verdict refused or without its shadow, and restore a lost alias log
        (`ModelStore.recover`).
    minimum_shadow_rows: rows that the version must have answered as a shadow of the champion; by default those of its
        own promotion rules.

    Raises `WrongUsage` for an empty reason, for the champion itself, for a refused version and for one without its
    shadow, and `StoredArtifactError` for a version that does not verify, even with ``force``.
    """

    def choose(check: _Check) -> StoredVersion:
        stack = champions(store.aliases.read())
        if stack and stack[-1] == number:
            raise WrongUsage(f"Version {number} is champion already.")
        version = store.version(number)
        verdict = version.manifest.verdict
        if verdict.outcome == "refused" and not force:
            raise WrongUsage(
                f"Version {number} was rejected by its own verdict. {verdict.reason} "
                "Choose another version, or promote it with --force."
            )
        if stack and not force:
            _require_shadow(store, version, stack[-1], minimum_shadow_rows)
        return check(version)

    by = "promote --force" if force else "promote"
    return _move(store, choose, by, reason, flow_run, restore=force)


def _require_shadow(store: ModelStore, version: StoredVersion, champion: int, demanded: int | None) -> None:
    """Raise `WrongUsage` if a version has answered fewer rows as a shadow of the champion than are demanded.

    The rows are those of the records on this machine, see `tasks.registry.prediction_records`.
    """
    rules = version.manifest.promotion.get("minimum_shadow_rows")
    least = demanded if demanded is not None else rules if isinstance(rules, int) else 0
    if not least:
        return
    records = read_records(store.root.parents[1], contract_of(store.root.name))
    # By the digest of the rows: the same images on another day add no information.
    answered = {
        record.rows_sha256: record.profile.rows
        for record in records
        if record.profile.shadow_of == champion and record.profile.manifest_sha256 == version.manifest.manifest_sha256
    }
    rows = sum(answered.values())
    if rows < least:
        raise WrongUsage(
            f"Version {version.number}: expected {least:,} rows as a shadow of version {champion}, the champion, "
            f"received {rows:,}. Run `fashion-ann predict IMAGES --output OUT --shadow {version.number}`, or use "
            "--force."
        )


def set_alias(store: ModelStore, number: int, alias: str, reason: str) -> Move:
    """Point an alias other than champion at a version, after verifying it.

    Raises `WrongUsage` for a name that cannot be an alias, an empty reason or an unchanged alias. Raises
    `StoredArtifactError` for a version that does not verify.
    """
    if not _ALIAS.fullmatch(alias) or alias.lower() == CHAMPION:
        raise WrongUsage(
            f"Expected an alias of at most 64 letters, digits and dashes that starts with a letter, is no version such "
            f"as v7 and is not champion, received {alias!r}. `fashion-ann promote V --reason R` moves "
            "the champion."
        )

    def choose(check: _Check) -> StoredVersion:
        if alias_values(store.aliases.read()).get(alias) == number:
            raise WrongUsage(f"{alias} names version {number} already.")
        return check(store.version(number))

    return _move(store, choose, "alias", reason, None, alias)


def rollback(store: ModelStore, reason: str, *, flow_run: str | None = None) -> Move:
    """Make the previous champion champion again. A second rollback goes back one further."""

    def choose(check: _Check) -> StoredVersion:
        stack, numbers = champions(store.aliases.read()), store.numbers()
        # Versions that were removed are passed over.
        earlier = [number for number in stack if number != stack[-1] and number in numbers]
        if not earlier:
            raise NothingToRollBackTo(
                "No stored version was champion before the current one. "
                "Choose a version with `fashion-ann promote V --reason R`."
            )
        try:
            return check(store.version(earlier[-1]))
        except StoredArtifactError as error:
            raise StoredArtifactError(
                f"{error} Version {stack[-1]} stays champion. Choose another one with "
                "`fashion-ann promote V --reason R`."
            ) from error

    return _move(store, choose, ROLLBACK, reason, flow_run)


def _move(
    store: ModelStore,
    choose: Callable[[_Check], StoredVersion],
    by: str,
    reason: str,
    flow_run: str | None,
    alias: str = CHAMPION,
    *,
    restore: bool = False,
) -> Move:
    """Require a reason, recover the store, and log the move of ``alias`` to the version that ``choose`` returns.

    choose: receives a function that verifies a version and returns it. If another machine moves an alias meanwhile,
        ``choose`` is called again, and sees that move.

    If ``choose`` fails, warnings list what was cleaned.
    """
    if not reason.strip():
        raise WrongUsage("--reason: expected a text, received an empty one. It is recorded in the alias log.")
    verified: set[int] = set()

    def check(version: StoredVersion) -> StoredVersion:
        if version.number not in verified:
            verify(version)
            verified.add(version.number)
        return version

    with store.lock():
        cleaned = store.recover(restore=restore)
        while True:
            try:
                number = choose(check).number
                before = alias_values(store.aliases.read()).get(alias)
                event = alias_event(before, number, by, reason, flow_run, alias)
                store.aliases.append(event)
                return Move(event, cleaned)
            except LostRace:
                cleaned += store.recover(restore=restore)
            except FashionAnnError:
                for line in cleaned:
                    logger.warning("%s", line)
                raise
