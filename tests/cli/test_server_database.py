import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cli.server_database import SCHEMA, is_current, schema_of


def url_of(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


def test_a_missing_database_gets_the_stored_schema(tmp_path: Path) -> None:
    path = tmp_path / "prefect.db"
    assert is_current(url_of(path))
    assert schema_of(path) == SCHEMA.read_text(encoding="utf-8")
    content = path.read_bytes()
    assert is_current(url_of(path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["prefect.db"]
    assert path.read_bytes() == content


def database_of_another_prefect(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.executescript(
            "CREATE TABLE alembic_version (version_num TEXT); INSERT INTO alembic_version VALUES ('abc')"
        )


def interrupted_migration(path: Path) -> None:
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")


@pytest.mark.parametrize(
    "prepare",
    [
        database_of_another_prefect,
        interrupted_migration,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"something else"),
        lambda path: path.mkdir(),
        lambda path: path.with_name("prefect.db-wal").write_bytes(b"rows of a removed database"),
        lambda path: path.symlink_to(path.with_name("nowhere")),
    ],
    ids=["another revision", "no revision", "empty", "no database", "folder", "journal", "dangling link"],
)
def test_an_existing_database_is_left_as_it_is(prepare: object, tmp_path: Path) -> None:
    path = tmp_path / "prefect.db"
    assert callable(prepare)
    prepare(path)
    before = {entry.name: entry.is_file() and entry.read_bytes() for entry in tmp_path.iterdir()}
    assert not is_current(url_of(path))
    assert {entry.name: entry.is_file() and entry.read_bytes() for entry in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+asyncpg://prefect@127.0.0.1/prefect",
        "sqlite+aiosqlite:///:memory:",
        "sqlite+aiosqlite:///prefect.db",
        "sqlite+aiosqlite:////nowhere/prefect.db",
        "sqlite+aiosqlite:///file:prefect.db?uri=true",
    ],
)
def test_the_server_migrates_other_databases(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not is_current(url)
    assert list(tmp_path.iterdir()) == []


def test_options_of_a_url_are_no_part_of_the_path(tmp_path: Path) -> None:
    assert not is_current(f"{url_of(tmp_path / 'prefect.db')}?timeout=30")
    assert list(tmp_path.iterdir()) == []


def test_the_schema_of_another_prefect_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other.sql"
    other.write_text(SCHEMA.read_text(encoding="utf-8").replace("Prefect ", "Prefect 1", 1), encoding="utf-8")
    monkeypatch.setattr("cli.server_database.SCHEMA", other)
    assert not is_current(url_of(tmp_path / "prefect.db"))
    assert not (tmp_path / "prefect.db").exists()
