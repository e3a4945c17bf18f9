"""Fingerprint code, lock and packages: the part of a cache key that is not a stage's inputs."""

import ast
import sys
from collections.abc import Container
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Literal

from schemas.config import PROJECT_ROOT
from tasks.runtime.files import digest_of, sha256_file

CPU_TENSORFLOW = "tensorflow-cpu"
# `tensorflow[and-cuda]`, which is the gpu extra on Linux, requires it on x86-64 and on ARM.
CUDNN = "nvidia-cudnn-cu12"

Extra = Literal["cpu", "gpu"]

_PARSING_TRIES = 10
_PROJECT_PACKAGES = ("schemas", "tasks")
# Modules that a stage calls but whose code cannot change its output: events, processes, UI artifacts, pages, warm-up.
_NOT_PART_OF_A_KEY = ("tasks.runtime.", "tasks.reports.", "tasks.model.warm_up")
# Packages that a model's weights can depend on.
_PACKAGES = (
    *("keras", "tensorflow", CPU_TENSORFLOW, CUDNN, "jax", "numpy", "pandas", "pyarrow"),
    *("great-expectations", "prefect", "fashion-ann"),
)


@cache
def code_digest(core: tuple[str, ...], root: Path = PROJECT_ROOT) -> str:
    """Return the digest of the code of ``core`` and of the project modules that it imports, in the checkout ``root``.

    Docstrings, comments, layout and log calls are excluded: rewording them leaves every cache key as it is.
    """
    seen: dict[str, str] = {}
    for module in core:
        _collect_code(module, root, seen)
    return digest_of(seen)


def _collect_code(module: str, root: Path, seen: dict[str, str]) -> None:
    path = root.joinpath(*module.split(".")).with_suffix(".py")
    if module in seen or module.startswith(_NOT_PART_OF_A_KEY) or not path.is_file():
        return
    seen[module], imported = _code(path)
    for name in imported:
        _collect_code(name, root, seen)


@cache
def _code(path: Path) -> tuple[str, list[str]]:
    """Return a module's code in a normal form, and the names of the project modules that it may import.

    Cached, because most modules belong to several stages.
    """
    tree = _Normalizer().visit(_parsed(path))
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return ast.dump(tree), [name for name in names if name.partition(".")[0] in _PROJECT_PACKAGES]


class _Normalizer(ast.NodeTransformer):
    """Remove docstrings and calls of ``logger``: neither can change what a module computes."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for field in ("body", "orelse", "finalbody"):
            statements = getattr(node, field, None)
            if isinstance(statements, list):
                kept = [
                    statement for statement in statements if not _is_text(statement) and not _is_log_call(statement)
                ]
                setattr(node, field, kept or ([ast.Pass()] if field == "body" else []))
        return node


def _is_text(statement: ast.AST) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _is_log_call(statement: ast.AST) -> bool:
    match statement:
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="logger")))):
            return True
    return False


def _parsed(path: Path) -> ast.Module:
    """Parse a file. Before Python 3.11.8 that can fail while another thread parses: cpython issue 106905."""
    source = path.read_text(encoding="utf-8")
    for _ in range(_PARSING_TRIES - 1):
        with suppress(SystemError):
            return ast.parse(source)
    return ast.parse(source)


def extra_of(packages: Container[str]) -> Extra:
    """Return the TensorFlow extra of pyproject.toml that installs ``packages``, a set of distribution names.

    On ARM and on macOS the cpu extra is the distribution `tensorflow`, so `tensorflow-cpu` alone does not decide.
    """
    return "gpu" if CUDNN in packages and CPU_TENSORFLOW not in packages else "cpu"


def installed_extra() -> Extra:
    """Return the TensorFlow extra of this environment, and so the name of its lock in requirements/."""
    return extra_of({name for name in (CPU_TENSORFLOW, CUDNN) if installed_version(name) is not None})


def installed_version(name: str) -> str | None:
    """Return the version of a distribution, None if it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@cache
def lock_digest() -> str:
    """Return the sha256 of the lock that this environment was installed from."""
    return sha256_file(PROJECT_ROOT / "requirements" / f"{installed_extra()}.lock")


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that a model's weights can depend on."""
    installed = {name: version for name in _PACKAGES if (version := installed_version(name)) is not None}
    return {"python": ".".join(map(str, sys.version_info[:3])), **installed}
