"""Run a temporary Postgres server from Debian's package."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.server_process import HOST, free_port

MISSING = "no Postgres server in /usr/lib/postgresql: install Debian's package (`apt-get install postgresql`)"
_SUPERUSER = "postgres"
_SECONDS_TO_START = 60


def binaries() -> Path | None:
    """Return the folder with the programs of the newest installed Postgres server."""
    servers = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    return max((path.parent for path in servers), key=lambda folder: int(folder.parent.name), default=None)


class Postgres:
    """A cluster in its own folder, on a port of 127.0.0.1."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs = programs
        self.folder = folder
        self.port = free_port()
        # The server refuses to run as root.
        self.user = "postgres" if os.geteuid() == 0 else None
        self._run("initdb", "--pgdata", str(folder / "data"), "--auth", "trust", "--username", _SUPERUSER)
        self.process = self._start()

    def _as_user(self) -> dict[str, object]:
        # In its own folder, because the user may not be able to read the working directory of the caller.
        owner = {} if self.user is None else {"user": self.user, "group": self.user, "extra_groups": []}
        return {"cwd": self.folder, "stdin": subprocess.DEVNULL, **owner}

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # type: ignore[call-overload,no-any-return]
            [self.programs / program, *arguments], check=True, capture_output=True, text=True, **self._as_user()
        )

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [self.programs / "postgres", "-D", self.folder / "data", "-k", self.folder, "-h", HOST]
        with (self.folder / "log").open("ab") as log:
            process: subprocess.Popen[bytes] = subprocess.Popen(  # type: ignore[call-overload]
                [*command, "-p", str(self.port)], stdout=log, stderr=log, **self._as_user()
            )
        deadline = time.monotonic() + _SECONDS_TO_START
        while subprocess.run([self.programs / "pg_isready", "-q", "-h", HOST, "-p", str(self.port)]).returncode:
            assert process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, "Postgres did not become ready"
            time.sleep(0.1)
        return process

    def new_database(self, name: str) -> str:
        """Create a database and return its address for Prefect."""
        self._run("createdb", "-h", HOST, "-p", str(self.port), "-U", _SUPERUSER, name)
        return f"postgresql+asyncpg://{_SUPERUSER}@{HOST}:{self.port}/{name}"

    def restart(self, seconds_away: float) -> None:
        """Close every connection and start again after ``seconds_away``."""
        self.stop()
        time.sleep(seconds_away)
        self.process = self._start()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)  # "fast" shutdown: does not wait for sessions
        self.process.wait(timeout=60)


@contextmanager
def postgres_cluster(programs: Path) -> Iterator[Postgres]:
    # Not in pytest's folder, which only its owner may enter.
    folder = Path(tempfile.mkdtemp(prefix="fashion-ann-postgres-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        cluster = Postgres(programs, folder)
        try:
            yield cluster
        finally:
            cluster.stop()
    finally:
        shutil.rmtree(folder)
