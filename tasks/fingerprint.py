"""Identify what an environment was installed from."""

from collections.abc import Container
from importlib import metadata
from typing import Literal

CPU_TENSORFLOW = "tensorflow-cpu"
# `tensorflow[and-cuda]`, which is the gpu extra on Linux, requires it on x86-64 and on ARM.
CUDNN = "nvidia-cudnn-cu12"

Extra = Literal["cpu", "gpu"]


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
