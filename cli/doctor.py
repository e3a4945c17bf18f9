"""What a run needs, looked at from outside: each check is one line, with what to do where it is broken.

Nothing on disk is changed. What takes seconds (TensorFlow, Prefect) is asked last within its check, and only once.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from cli.deploy import pool_names
from cli.server_process import refusal
from schemas.config import PROJECT_ROOT
from schemas.contract import FASHION_MNIST, SPLITS, DatasetContract, contract_of
from schemas.errors import FashionAnnError, StoredArtifactError, VersionNotFound

LEAST_FREE_BYTES = 1_000_000_000

_SECONDS_FOR_TENSORFLOW = 180


class Unwell(FashionAnnError):
    """At least one check found something broken."""


@dataclass(frozen=True)
class Check:
    """One line. ``ok`` is None where there was nothing to check; ``cure`` says what to do when it is False."""

    name: str
    ok: bool | None
    says: str
    cure: str = ""


@dataclass(frozen=True)
class Pool:
    name: str
    deployments: int
    online: int


def examine(artifacts_dir: Path, data_dir: Path, dataset: str = FASHION_MNIST.name) -> list[Check]:
    """All checks, in order. One that fails itself is broken, and the others go on."""
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("python", check_python),
        ("lock", check_lock),
        ("gpu", check_gpu),
        ("prefect", check_prefect),
        ("pools", check_pools),
        ("disk", lambda: check_disk(artifacts_dir)),
        ("data", lambda: check_data(data_dir, contract_of(dataset))),
        ("store", lambda: check_store(artifacts_dir, dataset)),
    ]
    with _home_of_prefect_as_it_was():
        return [_survived(name, check) for name, check in checks]


def _survived(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except FashionAnnError as error:
        return Check(name, False, _line(error), "The message says what was expected.")
    except Exception as error:
        return Check(
            name, False, f"the check itself failed: {type(error).__name__}: {_line(error)}", "See the message."
        )


def _line(said: object) -> str:
    """One line of at most 400 characters, whatever was said."""
    text = " ".join(str(said).split())
    return text if len(text) <= 400 else f"{text[:398]}.."


# --- the environment ---


def check_python() -> Check:
    from packaging.specifiers import SpecifierSet

    bounds = str(
        tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["requires-python"]
    )
    found = platform.python_version()
    if SpecifierSet(bounds).contains(found, prereleases=True):
        return Check("python", True, f"{found}, within {bounds}")
    return Check(
        "python",
        False,
        f"expected {bounds}, found {found} ({sys.executable})",
        "Install a Python within these bounds, and make .venv with it: `make clean run PYTHON=python3.12`.",
    )


def installed_extra() -> str:
    """ "cpu" or "gpu": which TensorFlow this environment was made for. Where cpu has wheels of no name of its own, the
    libraries of CUDA tell."""
    if _version("tensorflow-cpu") is not None:
        return "cpu"
    names_differ = platform.machine() == "x86_64" and sys.platform == "linux"
    return "gpu" if names_differ or _version("nvidia-cudnn-cu12") is not None else "cpu"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_lock(lock: Path | None = None) -> Check:
    """Every package of the lock that this platform needs is installed, in the version that the lock names."""
    extra = installed_extra()
    lock = lock or PROJECT_ROOT / "requirements" / f"{extra}.lock"
    pinned = locked_versions(lock.read_text(encoding="utf-8"))
    differing = [
        f"{name} {found or 'is missing'} (expected {version})"
        for name, version in pinned.items()
        if (found := _version(name)) != version
    ]
    if not differing:
        return Check("lock", True, f"{len(pinned)} packages as {lock.name} names them")
    shown = ", ".join(differing[:3])
    return Check(
        "lock",
        False,
        f"{len(differing)} of {len(pinned)} packages are not those of {lock.name}: {shown}"
        f"{', ..' if len(differing) > 3 else ''}",
        f"`make clean .venv/{extra}.stamp` makes .venv anew from the lock.",
    )


def locked_versions(text: str) -> dict[str, str]:
    """Name and version of each requirement of a lock whose marker holds here."""
    from packaging.requirements import Requirement

    pinned: dict[str, str] = {}
    for line in text.replace("\\\n", " ").splitlines():
        stated = line.partition(" --hash=")[0].strip()
        if not stated or stated.startswith("#"):
            continue
        requirement = Requirement(stated)
        if requirement.marker is None or requirement.marker.evaluate():
            pinned[requirement.name] = next(iter(requirement.specifier)).version
    return pinned


# A process of its own: TensorFlow greets on stderr, and may hang in a driver.
_ASK_TENSORFLOW = (
    "import json, tensorflow as tf\n"
    "gpus = tf.config.list_physical_devices('GPU')\n"
    "names = [tf.config.experimental.get_device_details(gpu).get('device_name', gpu.name) for gpu in gpus]\n"
    "print(json.dumps({'version': tf.__version__, 'gpus': names}))"
)


def check_gpu(program: str = _ASK_TENSORFLOW, seconds: float = _SECONDS_FOR_TENSORFLOW) -> Check:
    """TensorFlow can be imported; with the gpu extra it sees a GPU."""
    extra = installed_extra()
    anew = f"`make clean .venv/{extra}.stamp` installs it anew."
    try:
        done = subprocess.run(  # noqa: S603  # our own interpreter and program
            [sys.executable, "-c", program],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return Check(
            "gpu", False, f"TensorFlow did not start within {seconds:g} s", "See whether `nvidia-smi` answers. " + anew
        )
    if done.returncode:
        said = _line(next(iter(done.stderr.strip().splitlines()[-1:]), f"status {done.returncode}"))
        return Check("gpu", False, f"TensorFlow cannot be imported: {said}", anew)
    answer = json.loads(done.stdout.splitlines()[-1])
    what = f"TensorFlow {answer['version']}, extra {extra}"
    if answer["gpus"]:
        return Check("gpu", True, f"{what}, sees {', '.join(answer['gpus'])}")
    if extra == "cpu":
        return Check("gpu", True, f"{what}: training runs on the CPU")
    return Check(
        "gpu",
        False,
        f"{what}, sees no GPU",
        "`nvidia-smi` must list it: install NVIDIA's driver, or hand the GPU to this container. For a machine without "
        "one: `make clean .venv/cpu.stamp`.",
    )


# --- Prefect ---


@contextmanager
def _home_of_prefect_as_it_was() -> Iterator[None]:
    """Importing Prefect makes its home, empty; doctor leaves no trace."""
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    existed = home.exists()
    try:
        yield
    finally:
        if not existed and home.is_dir() and not any(home.iterdir()):
            home.rmdir()


def _configured_api() -> str | None:
    from prefect.settings import get_current_settings

    return get_current_settings().api.url


def _server_version() -> str | None:
    """None for Prefect Cloud, which has no version."""
    from prefect.client.base import ServerType
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return None if client.server_type == ServerType.CLOUD else str(client.api_version())


def check_prefect() -> Check:
    """The configured API answers, in our version; with none configured, that the embedded server can start."""
    url = _configured_api()
    if url is None:
        return _check_embedded()
    if (fault := refusal()) is not None:
        return Check("prefect", False, _line(fault.says), fault.cure)
    client, server = metadata.version("prefect"), _server_version()
    if server not in (client, None):
        return Check(
            "prefect",
            False,
            f"the server at {url} is {server}, this client is {client}",
            f"Run the server from the same lock, as prefect=={client}.",
        )
    return Check("prefect", True, f"server at {url}" + (f", {server} as here" if server else ""))


def _check_embedded() -> Check:
    from prefect.settings import get_current_settings

    home = Path(get_current_settings().home)
    if not home.is_dir() and home.exists():
        fault = "is not a folder"
    elif not os.access(_nearest(home), os.W_OK | os.X_OK):
        fault = "cannot be written to"
    else:
        return Check("prefect", True, f"embedded server, {metadata.version('prefect')}, database in {home}")
    return Check(
        "prefect", False, f"embedded server, but PREFECT_HOME {home} {fault}", "Set PREFECT_HOME to a folder of yours."
    )


def _nearest(path: Path) -> Path:
    """The path itself, or the first folder above it that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


def _pools() -> list[Pool]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName
    from prefect.client.schemas.objects import WorkerStatus

    with get_client(sync_client=True) as client:
        pools = []
        for pool in client.read_work_pools():
            chosen = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool.name]))
            workers = client.read_workers_for_work_pool(pool.name)
            online = sum(worker.status == WorkerStatus.ONLINE for worker in workers)
            pools.append(Pool(pool.name, len(client.read_deployments(work_pool_filter=chosen)), online))
    return pools


def check_pools() -> Check:
    """Each of our pools that has deployments has a worker that is online; others' pools are none of our business."""
    url = _configured_api()
    if url is None:
        return Check("pools", None, "the embedded server needs none")
    if refusal() is not None:
        return Check("pools", None, f"not asked: the API at {url} cannot be used")
    pools = _pools()
    if not pools:
        return Check("pools", True, "no work pools: `fashion-ann train` needs none, deployments do")
    says = ", ".join(
        f"{pool.name}: {_counted(pool.deployments, 'deployment')}, {_counted(pool.online, 'worker')} online"
        for pool in pools
    )
    ours = pool_names()
    idle = [pool.name for pool in pools if pool.name in ours and pool.deployments and not pool.online]
    cure = "Start a worker, or its runs stay late: " + ", ".join(
        f"`prefect worker start --pool {name}`" for name in idle
    )
    return Check("pools", not idle, says, f"{cure}." if idle else "")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


# --- files ---


def check_disk(artifacts_dir: Path) -> Check:
    place = _nearest(artifacts_dir)
    free = shutil.disk_usage(place).free
    says = f"{free / 1e9:.1f} GB free for {artifacts_dir}"
    if not os.access(place, os.W_OK | os.X_OK) or os.statvfs(place).f_flag & os.ST_RDONLY:
        return Check(
            "disk",
            False,
            f"{place} cannot be written to",
            "Make it writable, or name another folder with --artifacts-dir or FASHION_ANN_ARTIFACTS_DIR.",
        )
    if free < LEAST_FREE_BYTES:
        return Check(
            "disk",
            False,
            f"{says}, expected {LEAST_FREE_BYTES / 1e9:.1f} GB at least",
            "`fashion-ann gc` removes old versions and outputs; or name a folder on another disk with --artifacts-dir.",
        )
    return Check("disk", True, says)


def check_data(data_dir: Path, contract: DatasetContract = FASHION_MNIST) -> Check:
    """The CSVs of both splits are there and can be read, or none is and the folder can be fetched into."""
    from tasks.data.data_folder import present_csvs

    present = present_csvs(contract, data_dir)
    paths = [path for shards in present.values() for path in shards]
    for path in paths:
        try:
            with path.open("rb") as file:
                empty = not file.read(1)
        except OSError as error:
            return Check("data", False, f"{path} cannot be read: {error.strerror or error}", "Make it readable.")
        if empty:
            return Check("data", False, f"{path} is empty", "Supply it anew, or remove both CSVs to have them fetched.")
    if len(present) == len(SPLITS):
        names = " and ".join(path.name for path in paths)
        return Check("data", True, f"{names} in {data_dir}; a run checks every cell")
    if present:
        missing = next(contract.csv_name(split) for split in SPLITS if split not in present)
        return Check(
            "data",
            False,
            f"{data_dir} holds {paths[0].name} but not {missing}",
            f"Add {missing}, or take the other away.",
        )
    place = _nearest(data_dir)
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return Check(
            "data",
            False,
            f"no CSVs in {data_dir}, and it cannot be written to",
            "Supply the CSVs, or name another folder with --data-dir or FASHION_ANN_DATA_DIR.",
        )
    return Check("data", True, f"no CSVs in {data_dir}: the published ones will be fetched")


def check_store(artifacts_dir: Path, dataset: str = FASHION_MNIST.name) -> Check:
    """Every version is what its manifest says, and the champion is among them."""
    from tasks.registry.store import ModelStore

    store = ModelStore.of(artifacts_dir, dataset)
    numbers = store.numbers()
    champion = store.aliases.champion()
    faults: dict[int, str] = {}
    for number in numbers:
        try:
            store.version(number).check()
        except VersionNotFound:
            numbers = store.numbers()  # `gc` took it meanwhile
        except StoredArtifactError as error:
            faults[number] = _line(error)
    left = len(store.leftovers())
    log = store.aliases.path
    left += log.exists() and not (log.read_bytes() or b"\n").endswith(b"\n")
    tail = f"; {_counted(left, 'leftover')}: a run goes on, or was killed and the next one cleans up" if left else ""
    if faults:
        # The champion's is the one that people meet.
        number = champion if champion in faults else min(faults)
        more = f", and {len(faults) - 1} more" if len(faults) > 1 else ""
        who = "the champion, " if number == champion else ""
        others = "or make another version champion" if number == champion else "nothing else hangs on it"
        return Check(
            "store",
            False,
            f"{who}version {number} is damaged{more}: {faults[number]}{tail}",
            f"Restore {store.folder(number)} from a copy; {others}.",
        )
    if champion is not None and champion not in numbers:
        return Check(
            "store",
            False,
            f"the champion, version {champion}, is not there{tail}",
            f"Restore {store.folder(champion)} from a copy, or train: the next version takes its place.",
        )
    if not numbers:
        return Check("store", True, f"no version in {store.root} yet{tail}")
    try:
        store.history()
    except StoredArtifactError as error:
        return Check("store", False, f"{_line(error)}{tail}", "Restore the log from a copy.")
    named = f"champion {champion}" if champion is not None else "no champion"
    return Check("store", True, f"{_counted(len(numbers), 'version')}, all whole, {named}{tail}")
