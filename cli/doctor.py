"""Check what a run needs. Each check reports one line, and how to fix what is broken. Nothing on disk is changed."""

import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from cli.arguments import counted
from cli.deploy import pool_names
from cli.server_process import access_of, api_problem, prefect_settings
from schemas.config import PROJECT_ROOT, separate_folders
from schemas.contract import DEFAULT_DATASET, FASHION_MNIST, DatasetContract, contract_of
from schemas.errors import FashionAnnError, OtherLayout, StoredArtifactError, VersionNotFound
from tasks.data.remote_folder import local_data_folder
from tasks.runtime.fingerprint import installed_extra, installed_version, locked_packages

if TYPE_CHECKING:
    from prefect.client.schemas.responses import DeploymentResponse

MIN_FREE_BYTES = 1_000_000_000
# Above it, queries of Prefect's server and backups become slow. Ninety days of our schedules need less.
MAX_DATABASE_BYTES = 1_000_000_000
MAX_CHAMPION_DAYS = 30


class Broken(Exception):
    """A failed check: what was observed, and the fix."""

    def __init__(self, message: str, fix: str) -> None:
        super().__init__(message)
        self.fix = fix


class Concern(Broken):
    """A check that passes with a warning: what was observed, and what to do about it."""


class NothingToCheck(Exception):
    """A check that does not apply, with the reason."""


@dataclass(frozen=True)
class Check:
    """The result of one check. ``ok`` is None if there was nothing to check.

    cure: how to fix a failure, or a warning if ``ok`` is True.
    """

    name: str
    ok: bool | None
    says: str
    cure: str = ""


@dataclass(frozen=True)
class Pool:
    """A work pool, with the numbers of its deployments and of its online workers.

    needed: whether a run waits for a worker, or a schedule will start a run.
    """

    name: str
    deployments: int
    online: int
    needed: bool = False


def examine(artifacts_dir: Path, data_dir: Path, dataset: str = DEFAULT_DATASET) -> list[Check]:
    """Run all checks in order. One that raises an exception counts as failed."""
    with _preserve_prefect_home():
        return [
            run_check("python", check_python),
            run_check("lock", check_lock),
            run_check("gpu", check_gpu),
            run_check("prefect", check_prefect),
            run_check("pools", check_pools),
            run_check("database", check_database),
            run_check("schedules", check_schedules),
            run_check("disk", lambda: check_disk(separate_folders(artifacts_dir, data_dir)[0])),
            run_check("data", lambda: check_data(local_data_folder(data_dir, artifacts_dir), contract_of(dataset))),
            run_check("store", lambda: check_store(artifacts_dir, dataset)),
            run_check("champion", lambda: check_champion(artifacts_dir, dataset)),
        ]


def run_check(name: str, check: Callable[[], str]) -> Check:
    """Return the result of a check, which returns one line, or raises `Broken`, `Concern` or `NothingToCheck`."""
    try:
        return Check(name, True, check())
    except NothingToCheck as reason:
        return Check(name, None, str(reason))
    except Concern as concern:
        return Check(name, True, _line(concern), concern.fix)
    except Broken as broken:
        return Check(name, False, _line(broken), broken.fix)
    except FashionAnnError as error:
        return Check(name, False, _line(error), "The message names what was expected.")
    except Exception as error:
        message = f"the check itself failed: {type(error).__name__}: {error}"
        return Check(name, False, _line(message), "See the message.")


def _line(message: object) -> str:
    """Return ``message`` as one line of at most 400 characters."""
    text = " ".join(str(message).split())
    return text if len(text) <= 400 else f"{text[:398]}.."


# --- the environment ---


def check_python() -> str:
    from packaging.specifiers import SpecifierSet

    project = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds, version = project["requires-python"], platform.python_version()
    if not SpecifierSet(bounds).contains(version, prereleases=True):
        raise Broken(
            f"expected {bounds}, this is {version} ({sys.executable})",
            "Install a Python within these bounds and rebuild .venv with it: `make clean run PYTHON=python3.12`.",
        )
    return f"{version}, within {bounds}"


def check_lock(lock: Path | None = None) -> str:
    """Check that each package that the lock names for this platform is installed in the locked version."""
    extra = installed_extra()
    lock = lock or PROJECT_ROOT / "requirements" / f"{extra}.lock"
    pinned = locked_packages(lock.read_text(encoding="utf-8"))
    differing = [
        f"{name} {installed or 'is missing'} (expected {version})"
        for name, (version, _) in pinned.items()
        if (installed := installed_version(name)) != version
    ]
    if differing:
        shown = ", ".join([*differing[:3], *([".."] if len(differing) > 3 else [])])
        raise Broken(
            f"{len(differing)} of {len(pinned)} packages differ from {lock.name}: {shown}",
            f"`make clean .venv/{extra}.stamp` rebuilds .venv from the lock.",
        )
    return f"{len(pinned)} packages match {lock.name}"


# In a subprocess, because TensorFlow prints to stderr when it is imported and may hang in a driver.
_TENSORFLOW_PROGRAM = (
    "import json, tensorflow as tf\n"
    "gpus = tf.config.list_physical_devices('GPU')\n"
    "names = [tf.config.experimental.get_device_details(gpu).get('device_name', gpu.name) for gpu in gpus]\n"
    "print(json.dumps({'version': tf.__version__, 'gpus': names}))"
)
# Training ignores a keras.json too, and checks its own backend.
_TENSORFLOW_ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_HOME": os.devnull, "KERAS_BACKEND": "tensorflow"}


def check_gpu(program: str = _TENSORFLOW_PROGRAM, seconds: float = 180) -> str:
    """Check that TensorFlow can be imported and, with the gpu extra, that it detects a GPU."""
    extra = installed_extra()
    reinstall = f"`make clean .venv/{extra}.stamp` reinstalls it."
    try:
        done = subprocess.run(  # noqa: S603  # our own interpreter and program
            [sys.executable, "-P", "-c", program],  # -P: a tensorflow.py of the working directory is not imported
            env={**os.environ, **_TENSORFLOW_ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        problem = f"TensorFlow did not start within {seconds:g} s"
        raise Broken(problem, f"Check that `nvidia-smi` does not hang. {reinstall}") from error
    if done.returncode:
        last_line = next(iter(done.stderr.strip().splitlines()[-1:]), f"status {done.returncode}")
        raise Broken(f"TensorFlow cannot be imported: {last_line}", reinstall)
    output = json.loads(done.stdout.splitlines()[-1])
    tensorflow = f"TensorFlow {output['version']}, extra {extra}"
    if output["gpus"]:
        return f"{tensorflow}, GPU: {', '.join(output['gpus'])}"
    if extra != "cpu":
        raise Broken(
            f"{tensorflow}, detects no GPU",
            "`nvidia-smi` must list it: install NVIDIA's driver, or pass the GPU to this container. On a machine "
            "without a GPU: `make clean .venv/cpu.stamp`.",
        )
    return f"{tensorflow}: training runs on the CPU"


# --- Prefect ---


@contextmanager
def _preserve_prefect_home() -> Iterator[None]:
    """Remove Prefect's home at the end if it did not exist before: importing Prefect creates it, empty."""
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    existed = home.exists()
    try:
        yield
    finally:
        if not existed and home.is_dir() and not any(home.iterdir()):
            home.rmdir()


def server_version() -> str | None:
    """Return the version of the configured server, None for Prefect Cloud."""
    from prefect.client.base import ServerType
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return None if client.server_type == ServerType.CLOUD else str(client.api_version())


def check_prefect() -> str:
    """Check that the configured API answers, has our version and a password, or that the embedded server can start."""
    settings, client = prefect_settings(), metadata.version("prefect")
    if not settings.api.url:
        if not _is_writable(settings.home):
            problem = "is not a folder" if settings.home.is_file() else "cannot be written to"
            raise Broken(
                f"embedded server, but PREFECT_HOME {settings.home} {problem}",
                "Set PREFECT_HOME to a folder that you may write to.",
            )
        if (revision := _unknown_revision(settings.home / "prefect.db")) is not None:
            raise Broken(
                f"embedded server, but the database in {settings.home} was written by another version of Prefect: its "
                f"revision {revision} is unknown to {client}",
                "Use that version, or move the database away to start with an empty one.",
            )
        return f"embedded server, {client}, database in {settings.home}"
    if (problem_of_api := api_problem()) is not None:
        raise Broken(problem_of_api.description, problem_of_api.fix)
    server = server_version()
    if server not in (client, None):
        raise Broken(
            f"the server at {settings.api.url} has version {server}, this client {client}",
            f"Install the server from the same lock, with prefect=={client}.",
        )
    line = f"server at {settings.api.url}" + (f", also {server}" if server else "")
    if server is None or (access := access_of(settings.api.url)) is None:
        return line
    if not access.password or access.origins == ["*"]:
        raise Concern(
            f"{line}; {access}",
            "Anyone who reaches it can run commands as its workers' user. Start it with PREFECT_SERVER_API_AUTH_STRING "
            "and PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS, or with `fashion-ann down` and `fashion-ann up`.",
        )
    return f"{line}; {access}"


def _unknown_revision(database: Path) -> str | None:
    """Return the revision of Prefect's database if this Prefect has no migration to it."""
    import prefect

    migrations = prefect.__module_path__ / "server" / "database" / "_migrations"
    with (
        suppress(sqlite3.Error),  # no database yet, or a locked one
        # Immutable: sqlite creates no files beside it.
        closing(sqlite3.connect(f"{database.as_uri()}?mode=ro&immutable=1", uri=True)) as connection,
    ):
        for (revision,) in connection.execute("SELECT version_num FROM alembic_version"):
            if not any(f'"{revision}"' in path.read_text(encoding="utf-8") for path in migrations.rglob("*.py")):
                return str(revision)
    return None


def _existing(path: Path) -> Path:
    """Return the path itself, or its nearest parent that exists."""
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _is_writable(folder: Path) -> bool:
    """Return whether files can be created in ``folder``, or ``folder`` itself if it does not exist."""
    existing = _existing(folder)
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def read_pools() -> list[Pool]:
    """Return the work pools of the configured API."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, WorkPoolFilter
    from prefect.client.schemas.objects import WorkerStatus

    late = FlowRunFilter.model_validate({"state": {"name": {"any_": ["Late"]}}})

    with get_client(sync_client=True) as client:
        pools = []
        for pool in client.read_work_pools():
            this_pool = WorkPoolFilter.model_validate({"name": {"any_": [pool.name]}})
            workers = client.read_workers_for_work_pool(pool.name)
            online = sum(worker.status == WorkerStatus.ONLINE for worker in workers)
            deployments = client.read_deployments(work_pool_filter=this_pool)
            scheduled = any(_active_schedules(deployment) for deployment in deployments)
            needed = scheduled or bool(client.read_flow_runs(work_pool_filter=this_pool, flow_run_filter=late, limit=1))
            pools.append(Pool(pool.name, len(deployments), online, needed))
    return pools


def _active_schedules(deployment: "DeploymentResponse") -> int:
    return 0 if deployment.paused else sum(schedule.active for schedule in deployment.schedules)


def check_pools() -> str:
    """Check that each pool of this project that has deployments has an online worker.

    A pool without waiting runs and schedules only causes a warning: the gpu pool, if no machine has a GPU.
    """
    url = prefect_settings().api.url
    if not url:
        raise NothingToCheck("the embedded server needs none")
    if api_problem() is not None:
        raise NothingToCheck(f"not checked: the API at {url} cannot be used")
    pools = read_pools()
    if not pools:
        return "no work pools: `fashion-ann train` needs none, deployments do"
    counts = ", ".join(
        f"{pool.name}: {counted(pool.deployments, 'deployment')}, {counted(pool.online, 'worker')} online"
        for pool in pools
    )
    ours = pool_names().values()
    idle = [pool for pool in pools if pool.name in ours and pool.deployments and not pool.online]
    commands = ", ".join(f"`prefect worker start --pool {pool.name}`" for pool in idle)
    if any(pool.needed for pool in idle):
        raise Broken(counts, f"Start a worker, or its runs stay late: {commands}.")
    if idle:
        raise Concern(
            counts, f"No run waits for a worker. A run that you start by hand waits until you start one: {commands}."
        )
    return counts


def database_file() -> Path | None:
    """Return the sqlite file of the configured server, or of the embedded one. None for another database or machine.

    Raises `NothingToCheck` if the configured API cannot be used.
    """
    from prefect.client.orchestration import get_client

    settings = prefect_settings()
    if not settings.api.url:
        url = settings.server.database.connection_url
        kind, _, path = ("" if url is None else url.get_secret_value()).partition(":///")
        return Path(path) if kind.startswith("sqlite") else None
    if api_problem() is not None:
        raise NothingToCheck(f"not checked: the API at {settings.api.url} cannot be used")
    if settings.connected_to_cloud:
        return None
    with get_client(sync_client=True) as client:
        home = client.request("GET", "/admin/settings").json()["home"]
    # The server does not return its database's address, which may have a password. A server that uses the file keeps
    # the second one beside it.
    file = Path(home) / "prefect.db"
    return file if file.with_name("prefect.db-wal").exists() else None


def check_database() -> str:
    """Check that the sqlite database of the server has at most `MAX_DATABASE_BYTES`; a larger one is a concern."""
    if (file := database_file()) is None:
        raise NothingToCheck("the server's database is no sqlite file on this machine")
    parts = [part for part in file.parent.glob(f"{file.name}*") if part.name in (file.name, f"{file.name}-wal")]
    size = sum(part.stat().st_size for part in parts)
    line = f"{size / 1e9:.2f} GB in {file}"
    if size > MAX_DATABASE_BYTES:
        raise Concern(
            f"{line}, expected at most {MAX_DATABASE_BYTES / 1e9:g} GB",
            "Shorten PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD. sqlite reuses the space of deleted runs, and "
            f"returns it with `sqlite3 {file} VACUUM` while the server is stopped.",
        )
    return line


def check_schedules() -> str:
    """Count the active schedules. With a server on sqlite they are a concern: it loses events while it is busy."""
    from prefect.client.orchestration import get_client

    if not prefect_settings().api.url:
        raise NothingToCheck("the embedded server has none")
    file = database_file()
    with get_client(sync_client=True) as client:
        active = sum(map(_active_schedules, client.read_deployments()))
    line = counted(active, "active schedule")
    if active and file is not None:
        raise Concern(
            f"{line} on the sqlite database {file}",
            "Use Postgres for unattended runs: set PREFECT_API_DATABASE_CONNECTION_URL (docs/deployed.md).",
        )
    return line


# --- files ---


def check_disk(artifacts_dir: Path) -> str:
    """Check that the artifacts folder can be written to and has at least `MIN_FREE_BYTES` of free space."""
    existing = _existing(artifacts_dir)
    free = shutil.disk_usage(existing).free
    space = f"{free / 1e9:.1f} GB free for {artifacts_dir}"
    if not _is_writable(artifacts_dir) or os.statvfs(existing).f_flag & os.ST_RDONLY:
        raise Broken(
            f"{existing} cannot be written to",
            "Make it writable, or choose another folder with --artifacts-dir or FASHION_ANN_ARTIFACTS_DIR.",
        )
    if free < MIN_FREE_BYTES:
        raise Broken(
            f"{space}, expected at least {MIN_FREE_BYTES / 1e9:.1f} GB",
            "Remove old versions and outputs with `fashion-ann gc`, or choose a folder on another disk with "
            "--artifacts-dir.",
        )
    return space


def check_data(data_dir: Path, contract: DatasetContract = FASHION_MNIST) -> str:
    """Check that the CSVs of both splits can be read, or that a run may download the published ones."""
    from tasks.data.data_folder import present_csvs
    from tasks.data.missing_data import describe_missing, may_fetch

    present = present_csvs(contract, data_dir)
    paths = [path for shards in present.values() for path in shards]
    for path in paths:
        try:
            with path.open("rb") as file:
                empty = not file.read(1)
        except OSError as error:
            raise Broken(f"{path} cannot be read: {error.strerror or error}", "Make it readable.") from error
        if empty:
            raise Broken(f"{path} is empty", "Replace it.")
    if not present and may_fetch(contract, data_dir):
        if not _is_writable(data_dir):
            raise Broken(
                f"no CSVs in {data_dir}, and it cannot be written to",
                "Add the CSVs, or choose another folder with --data-dir or FASHION_ANN_DATA_DIR.",
            )
        return f"no CSVs in {data_dir}: the published ones will be downloaded"
    if (problem := describe_missing(contract, data_dir)) is not None:
        fix = "Add the CSVs, or name their folder with --data-dir or FASHION_ANN_DATA_DIR."
        if contract.can_be_fetched:
            fix += " `fashion-ann train --fetch` downloads the published ones into a folder without CSVs."
        raise Broken(problem, fix)
    return f"{' and '.join(path.name for path in paths)} in {data_dir}; a run checks every cell"


def check_store(artifacts_dir: Path, dataset: str = DEFAULT_DATASET) -> str:
    """Check that every version matches its manifest, that the champion exists and that the alias log is intact."""
    from tasks.registry.store import ModelStore

    store = ModelStore.of(artifacts_dir, dataset)
    numbers = store.numbers()
    champion = store.aliases.champion()
    damage: dict[int, str] = {}
    other_layout: dict[int, str] = {}
    for number in numbers:
        try:
            store.version(number).check()
        except VersionNotFound:
            numbers = store.numbers()  # `gc` removed it meanwhile
        except OtherLayout as error:
            other_layout[number] = _line(error)
        except StoredArtifactError as error:
            damage[number] = _line(error)
    log = store.aliases.path
    leftovers = len(store.leftovers()) + (log.exists() and not (log.read_bytes() or b"\n").endswith(b"\n"))
    note = f"; {counted(leftovers, 'leftover')}: of a running or a killed run, the next one cleans up"
    suffix = note if leftovers else ""
    if damage:
        # Report the champion's damage first: it is the version in use.
        number = champion if champion in damage else min(damage)
        more = f", and {len(damage) - 1} more" if len(damage) > 1 else ""
        title = "the champion, " if number == champion else ""
        others = "or promote another version" if number == champion else "other versions are not affected"
        raise Broken(
            f"{title}version {number} is damaged{more}: {damage[number]}{suffix}",
            f"Restore {store.folder(number)} from a copy; {others}.",
        )
    if champion in other_layout:
        fix = "Train, and promote the new version: this release cannot compare it with the champion."
        raise Broken(f"the champion: {other_layout[champion]}{suffix}", fix)
    if champion is not None and champion not in numbers:
        raise Broken(
            f"the champion, version {champion}, is missing{suffix}",
            f"Restore {store.folder(champion)} from a copy, or train: the next version replaces it.",
        )
    if not numbers:
        return f"no version in {store.root} yet{suffix}"
    try:
        store.history()
    except StoredArtifactError as error:
        raise Broken(f"{error}{suffix}", "Restore the log from a copy.") from error
    if champion is not None:
        store.version(champion).check_signature()
    current = f"champion {champion}" if champion is not None else "no champion"
    unread = f"{len(other_layout)} of another layout, the others" if other_layout else "all"
    return f"{counted(len(numbers), 'version')}, {unread} intact, {current}{suffix}"


def check_champion(artifacts_dir: Path, dataset: str = DEFAULT_DATASET) -> str:
    """Return the age of the champion. More than `MAX_CHAMPION_DAYS` are a concern."""
    from tasks.registry.store import ModelStore

    store = ModelStore.of(artifacts_dir, dataset)
    try:
        number = store.aliases.champion()
        created = None if number is None else store.version(number).manifest.created
    except (StoredArtifactError, VersionNotFound) as error:
        raise NothingToCheck("not checked: see the store") from error
    if created is None:
        raise NothingToCheck("no champion")
    days = (datetime.now(UTC) - datetime.fromisoformat(created)).days
    line = f"version {number}, created {counted(days, 'day')} ago"
    if days > MAX_CHAMPION_DAYS:
        raise Concern(
            f"{line}, expected at most {MAX_CHAMPION_DAYS} days",
            "Check that new data arrives, that the nightly run ends well, and that no version waits for approval: "
            "`fashion-ann versions`.",
        )
    return line
