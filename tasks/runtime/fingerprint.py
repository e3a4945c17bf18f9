"""Fingerprint code, lock and packages: the part of a cache key that is not a stage's inputs."""

import ast
import hashlib
import sys
from collections.abc import Container, Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Literal

from schemas.config import PROJECT_ROOT
from schemas.errors import CodeChanged
from tasks.runtime.files import digest_of

# Modules that a stage calls but whose code cannot change its output: events, processes, UI artifacts, pages, warm-up.
_NOT_PART_OF_A_KEY = ("tasks.runtime.", "tasks.reports.", "tasks.model.warm_up")
# Packages that a model's weights can depend on.
_PACKAGES = (
    *("keras", "tensorflow", "tensorflow-cpu", "nvidia-cudnn-cu12", "jax", "numpy", "pandas", "pyarrow"),
    *("great-expectations", "prefect", "fashion-ann"),
)


# Read when a process starts, because a file that is edited during its run is not the code that runs.
_CONTENTS = {
    path: path.read_bytes()
    for pattern in ("requirements/*.lock", "schemas/**/[!.]*.py", "tasks/**/[!.]*.py")
    for path in PROJECT_ROOT.glob(pattern)
    if path.is_file()
}


def _content(path: Path) -> bytes:
    """Return the content that a file had when this process started, or its content now if it is of another checkout."""
    return _CONTENTS[path] if path in _CONTENTS else path.read_bytes()


def code_was_edited() -> bool:
    """Return True if the files of the checkout are no longer the code that this process imported."""
    return any(not path.is_file() or path.read_bytes() != content for path, content in _CONTENTS.items())


def code_and_lock(*core: str) -> dict[str, str]:
    """Return the digests of ``core``'s code and of the lock, both as they were when this process started."""
    return {"code": code_digest(core), "lock": lock_digest()}


def require_code_and_lock(module: str, expected: Mapping[str, str]) -> None:
    """Raise `CodeChanged` if this process has other code or another lock than ``expected``, those of its parent."""
    if changed := [name for name, digest in code_and_lock(module).items() if digest != expected[name]]:
        raise CodeChanged(
            f"The {' and the '.join(changed)} of {module} changed after this run started. The output would get "
            "the cache key of other code, so none was stored. Run again."
        )


@cache
def code_digest(core: tuple[str, ...], root: Path = PROJECT_ROOT) -> str:
    """Return the digest of the code of ``core`` and of the project modules that it imports, in the checkout ``root``.

    Docstrings, comments, layout and log calls are excluded: rewording them leaves every cache key as it is.
    """
    code: dict[str, str] = {}
    pending = list(core)
    while pending:
        module = pending.pop()
        path = root.joinpath(*module.split(".")).with_suffix(".py")
        if module not in code and not module.startswith(_NOT_PART_OF_A_KEY) and (path in _CONTENTS or path.is_file()):
            code[module], imported = _code(path)
            pending += imported
    return digest_of(code)


@cache  # most modules belong to several stages
def _code(path: Path) -> tuple[str, list[str]]:
    """Return a module's code in a normal form, and the names of the modules that it may import."""
    tree = _parse(path)
    names: list[str] = []
    # Only statements contain what is looked for. `ast.walk` and `ast.NodeTransformer` visit ten times as many nodes.
    pending: list[ast.AST] = [tree]
    while pending:
        match node := pending.pop():
            case ast.ImportFrom(module=str(module)):
                names += [module, *(f"{module}.{alias.name}" for alias in node.names)]
            case ast.Import():
                names += [alias.name for alias in node.names]
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            if isinstance(statements := getattr(node, field, None), list):
                statements[:] = [statement for statement in statements if not _is_wording(statement)]
                pending += statements
    return ast.dump(tree), names


def _is_wording(statement: ast.AST) -> bool:
    """Return whether a statement is a docstring or a call of ``logger``: neither can change what a module computes."""
    match statement:
        case ast.Expr(value=ast.Constant(value=str()) | ast.Call(func=ast.Attribute(value=ast.Name(id="logger")))):
            return True
    return False


def _parse(path: Path) -> ast.Module:
    """Parse a file. Before Python 3.11.8 that can fail while another thread parses: cpython issue 106905."""
    source = _content(path).decode()
    for _ in range(9):
        with suppress(SystemError):
            return ast.parse(source)
    return ast.parse(source)


def extra_of(packages: Container[str]) -> Literal["cpu", "gpu"]:
    """Return the TensorFlow extra of pyproject.toml that installs ``packages``, a set of distribution names.

    On ARM and on macOS the cpu extra is the distribution `tensorflow`, so `tensorflow-cpu` alone does not decide. The
    gpu extra is `tensorflow[and-cuda]`, which requires cuDNN.
    """
    return "gpu" if "nvidia-cudnn-cu12" in packages and "tensorflow-cpu" not in packages else "cpu"


def installed_extra() -> Literal["cpu", "gpu"]:
    """Return the TensorFlow extra of this environment, and so the name of its lock in requirements/."""
    return extra_of(package_versions())


def installed_version(name: str) -> str | None:
    """Return the version of a distribution, None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@cache
def lock_digest() -> str:
    """Return the sha256 of the lock that this environment was installed from."""
    return hashlib.sha256(installed_lock()).hexdigest()


def installed_lock() -> bytes:
    """Return the content of the lock that this environment was installed from."""
    return _content(PROJECT_ROOT / "requirements" / f"{installed_extra()}.lock")


def locked_packages(lock: str) -> dict[str, tuple[str, list[str]]]:
    """Return version and sha256 digests of each package of a lock for this platform, by its name."""
    from packaging.requirements import Requirement

    packages = {}
    for line in lock.replace("\\\n", " ").splitlines():
        text, *digests = line.split(" --hash=sha256:")
        if text.strip() and not text.startswith("#"):
            requirement = Requirement(text.strip())
            if requirement.marker is None or requirement.marker.evaluate():
                version = next(iter(requirement.specifier)).version
                packages[requirement.name] = version, [digest.strip() for digest in digests]
    return packages


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that a model's weights can depend on."""
    installed = {name: version for name in _PACKAGES if (version := installed_version(name)) is not None}
    return {"python": ".".join(map(str, sys.version_info[:3])), **installed}
