import logging
import re
from pathlib import Path
from typing import Any

import pytest

from schemas.store import AliasEvent
from tasks.registry.champion import promote
from tasks.registry.gc import collect
from tasks.registry.store import ModelStore
from tasks.reports.versions_page import write_versions_page
from tests.stored import add_promoted, add_stored, data_facts, event
from tests.tasks.reports.pages import Page


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """Return a store of three versions: champion, rejected, champion."""
    store = ModelStore.of(tmp_path, "fashion-mnist")
    add_promoted(store.root, accuracy=0.5, created="2026-01-01T10:00:00.000Z")
    refused = {"outcome": "refused", "reason": "Rejected: <test accuracy>.", "event": None}
    add_stored(store.root, accuracy=0.1, created="2026-01-02T10:00:00.000Z", verdict=refused, note="a <b> note")
    add_promoted(store.root, accuracy=4 / 6, created="2026-01-03T10:00:00.000Z", data=data_facts("f" * 64))
    return store


def written(store: ModelStore) -> Page:
    write_versions_page(store)
    return Page(store.root / "index.html")


def test_shows_accuracy_verdict_data_and_links(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "comparisons").mkdir()
    (tmp_path / "comparisons" / "0001-0003.html").touch()
    page = written(store)
    # Wilson's interval of 4 of 6 rows.
    for text in ("0.6667", "0.3000 to 0.9032", "0.5000", "Rejected: <test accuracy>. Note: a <b> note", "f" * 64):
        assert text in page.text
    links = [link["href"] for link in page.all("a")]
    reports = [f"versions/000{number}/report.html" for number in (3, 2, 1)]
    assert [link for link in links if link.startswith("versions/")] == reports
    assert [link for link in links if link.startswith("..")] == ["../../comparisons/0001-0003.html"]
    assert all((store.root / link).exists() for link in links if not link.startswith("#"))
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {link[1:] for link in links if link.startswith("#")} <= ids
    assert "://" not in page.html
    assert not page.all("script")


def test_shows_each_time_of_a_champion(store: ModelStore) -> None:
    moved = event(1, 3, "rollback").as_json()
    store.aliases.append(AliasEvent.model_validate({**moved, "when": "2026-01-05T10:00:00.000Z"}))
    page = written(store)
    assert re.findall(r'<tr><th scope="row"><a href="#v(\d)">', page.html) == ["1", "3", "1"]
    assert "2026-01-05 10:00 until now 3 rollback" in page.text
    widths = [
        float(box["width"]) for box in page.all("rect") if box.get("class", "").startswith("reign") and "y" in box
    ]
    assert len(widths) == 3
    assert all(width > 0 for width in widths)


def test_an_unreadable_version_is_a_row(store: ModelStore) -> None:
    (store.folder(2) / "manifest.json").write_text("{}")
    page = written(store)
    assert page.text.count("cannot be read") == 1
    assert "Rejected:" not in page.text
    assert "0.6667" in page.text


def test_a_rejected_version_does_not_scale_the_chart(tmp_path: Path) -> None:
    store, data = ModelStore.of(tmp_path, "fashion-mnist"), data_facts()
    data["split_rows"]["test"] = 10_000
    add_promoted(store.root, data=data)
    add_stored(store.root, accuracy=0.1, data=data, verdict={"outcome": "refused", "reason": "a test", "event": None})
    page = written(store)
    assert min(map(float, re.findall(r'text-anchor="end">([\d.]+)</text>', page.html))) > 0.85
    (mark,) = re.findall(r'<path class="rejected" d="M[\d.]+ ([\d.]+)l7', page.html)
    assert float(mark) == 208 - 3.5  # on the axis


def _moved(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.registry.champion.verify", lambda version: 0.0)
    promote(store, 1, "by hand")


@pytest.mark.parametrize(
    "change",
    [
        lambda store, _: add_stored(store.root),
        _moved,
        lambda store, _: store.aliases.append(event(2, alias="staging")),
        lambda store, _: (store.folder(1) / "report.html").unlink(),
        lambda store, _: collect(store.root.parents[1], "fashion-mnist", keep=1),
    ],
    ids=["a version", "promote", "another alias", "a report", "gc"],
)
def test_is_written_again_after_a_change_only(store: ModelStore, change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = written(store)
    page = store.root / "index.html"
    before = page.stat().st_mtime_ns, page.stat().st_ino
    write_versions_page(store)
    assert (page.stat().st_mtime_ns, page.stat().st_ino) == before
    change(store, monkeypatch)
    assert written(store).html != first.html
    assert [path.name for path in store.root.iterdir() if "index" in path.name] == ["index.html"]


def test_a_failure_is_a_warning(store: ModelStore, caplog: pytest.LogCaptureFixture) -> None:
    (store.root / "index.html").mkdir()
    with caplog.at_level(logging.WARNING):
        write_versions_page(store)
    assert "index.html is not written yet" in caplog.text
    (store.root / "aliases.jsonl").write_text("no log\n")
    (store.root / "index.html").rmdir()
    write_versions_page(store)
    assert not (store.root / "index.html").exists()


def test_nothing_is_tried_in_a_store_that_is_read_only(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write to any folder
    write_versions_page(store)
    assert not (store.root / "index.html").exists()
    assert caplog.text == ""


def test_a_store_without_versions(tmp_path: Path) -> None:
    store = ModelStore.of(tmp_path, "digits")
    write_versions_page(store)
    assert not store.root.exists()
    store.root.mkdir(parents=True)
    assert "This store has no version yet" in written(store).text


def test_many_versions_are_folded(tmp_path: Path) -> None:
    store = ModelStore.of(tmp_path, "fashion-mnist")
    for number in range(1, 121):
        add_promoted(store.root, data=data_facts(f"{number:064d}"))
    page = written(store)
    assert [
        name
        for name in ("Older versions (70)", "Earlier champions (70)", "Data of older versions (70)")
        if name not in page.text
    ] == []
    assert len(page.html) < 2_000 * 120 + 20_000


def test_a_copy_from_another_machine_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASHION_ANN_REMOTE", f"file://{tmp_path}/remote")
    store, other = (ModelStore.of(tmp_path / name, "fashion-mnist") for name in ("one", "other"))
    add_promoted(store.root)
    with store.lock():
        store.synchronize()
    assert not store.copied
    assert other.refresh().copied
    page = written(other)
    assert 'id="v1"' in page.html
    assert "versions/0001/report.html" not in page.html  # not on this machine yet
    assert not other.version(1).path("report.html").samefile(store.folder(1) / "report.html")
    assert "versions/0001/report.html" in written(other).html
