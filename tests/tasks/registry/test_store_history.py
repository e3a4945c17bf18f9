"""Any order of additions, promotions, rollbacks and removals leaves an intact champion."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import NothingToRollBackTo, VersionNotFound, WrongUsage
from tasks.registry.alias_log import alias_values, champions
from tasks.registry.champion import promote, rollback
from tasks.registry.gc import collect
from tasks.registry.store import ModelStore, StoredVersion
from tests.stored import add_promoted, add_stored

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.just(0)),
        st.tuples(st.just("add promoted"), st.just(0)),
        st.tuples(st.just("promote"), st.integers(1, 6)),
        st.tuples(st.just("rollback"), st.just(0)),
        st.tuples(st.just("gc"), st.integers(1, 3)),
    ),
    max_size=14,
)


@pytest.fixture(scope="module", autouse=True)
def _check_digests_only() -> object:
    """These versions contain no network: check their digests, and run no model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.registry.champion.verify", StoredVersion.check)
        yield


def _step(artifacts: Path, store: ModelStore, name: str, number: int) -> None:
    if name == "add":
        add_stored(store.root)
    elif name == "add promoted":
        add_promoted(store.root)
    elif name == "promote":
        promote(store, number, "a test")
    elif name == "rollback":
        rollback(store, "a test")
    else:
        collect(artifacts, "fashion-mnist", number)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_the_champion_is_intact_after_any_steps(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    artifacts = tmp_path_factory.mktemp("artifacts")
    store = ModelStore.of(artifacts, "fashion-mnist")
    highest, events = 0, 0
    for name, number in steps:
        before = store.aliases.read()
        try:
            _step(artifacts, store, name, number)
        except (WrongUsage, VersionNotFound, NothingToRollBackTo):
            assert store.aliases.read() == before
        log, numbers = store.aliases.read(), store.numbers()
        assert len(log) >= events  # append-only
        if stack := champions(log):
            assert alias_values(log) == {"champion": stack[-1]}
            assert stack[-1] in numbers
            store.version("champion").check()
        if name.startswith("add"):
            assert numbers[-1] > highest  # a number is never used twice
        highest, events = max([highest, *numbers]), len(log)
    if len(stack := champions(store.aliases.read())) > 1 and stack[-2] in store.numbers():
        rollback(store, "a test")
        assert store.aliases.champion() == stack[-2]


def test_a_rollback_passes_over_a_removed_version(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    for _ in range(3):
        add_promoted(tmp_path)
    shutil.rmtree(store.folder(2))
    event = rollback(store, "a test").event
    assert (event.before, event.to) == (3, 1)
    assert champions(store.aliases.read()) == [1]
