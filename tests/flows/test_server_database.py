"""The stored schema of Prefect's database."""

from pathlib import Path

from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

from cli.server_database import SCHEMA, schema_of


def normal_form(schema: str) -> list[list[str]]:
    """Return the statements with sorted lines: Alembic adds constraints and indexes in any order."""
    return sorted(
        sorted(line.strip(" \t,") for line in part.splitlines() if line.strip()) for part in schema.split(";")
    )


def test_the_stored_schema_is_that_of_the_migrations(server: str) -> None:
    migrated = Path(PREFECT_API_DATABASE_CONNECTION_URL.value().partition(":///")[2])
    expected = normal_form(schema_of(migrated))
    assert len(expected) > 150
    assert normal_form(SCHEMA.read_text(encoding="utf-8")) == expected, "see cli/server_database.py"
