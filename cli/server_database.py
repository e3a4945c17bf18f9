"""Create the sqlite database of Prefect's server from a stored schema, which takes 0.1 s; its migrations take 5 s.

prefect_database.sql is the schema that the migrations of one release of Prefect create. With another release it is not
used, and the server migrates. A test compares it with the migrations of the installed release. To replace it:

    PYTHONHASHSEED=0 PREFECT_HOME=/tmp/home .venv/bin/prefect server database upgrade --yes
    .venv/bin/python -m cli.server_database /tmp/home/prefect.db > cli/prefect_database.sql
"""

import os
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from importlib import metadata
from pathlib import Path

SCHEMA = Path(__file__).with_name("prefect_database.sql")
_REVISION = "INSERT INTO alembic_version VALUES ('{}');"


def is_current(connection_url: str) -> bool:
    """Return whether the database has the revision of the installed Prefect; create a missing sqlite file with it.

    An existing file is not changed. False stands for any doubt: then the server itself migrates, or reports the error.
    """
    scheme, _, name = connection_url.partition(":///")
    schema = SCHEMA.read_text(encoding="utf-8")
    # After "?" are options, of the connection or of the file.
    if scheme != "sqlite+aiosqlite" or not Path(name).is_absolute() or "?" in name or not schema.startswith(_header()):
        return False
    with suppress(OSError, sqlite3.Error, ValueError):  # ValueError: not one revision
        _create(Path(name), schema)
        with closing(sqlite3.connect(f"{Path(name).as_uri()}?mode=ro", uri=True)) as database:
            return _revision(database) in schema
    return False


def schema_of(path: Path) -> str:
    """Return the statements that create the schema of a database that the installed Prefect has migrated."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        return "\n".join([_header(), *_statements(database), _revision(database), ""])


def _statements(database: sqlite3.Connection) -> Iterator[str]:
    # Without those that sqlite creates itself.
    query = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' ORDER BY rowid"
    for (sql,) in database.execute(query):
        yield f"{sql};"


def _revision(database: sqlite3.Connection) -> str:
    ((revision,),) = database.execute("SELECT version_num FROM alembic_version").fetchall()
    return _REVISION.format(revision)


def _header() -> str:
    return f"-- The schema of Prefect {metadata.version('prefect')}."


def _create(path: Path, schema: str) -> None:
    """Create a database, complete or not at all. The journal of a removed one would be applied to it."""
    if any(path.with_name(path.name + suffix).exists() for suffix in ("", "-wal", "-journal")):
        return
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        temporary = Path(folder) / path.name
        with closing(sqlite3.connect(temporary)) as database:
            database.executescript(f"BEGIN;\n{schema}\nCOMMIT;")
        os.link(temporary, path)  # unlike a rename, it never replaces a file


if __name__ == "__main__":
    sys.stdout.write(schema_of(Path(sys.argv[1])))
