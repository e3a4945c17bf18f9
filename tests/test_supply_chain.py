"""Installations are locked by hash, licences are listed, and an audit without a database is not a success."""

import json
import re
import subprocess
from importlib.metadata import requires

import pytest

from benchmarks import licences
from benchmarks.audit import interpret
from schemas.config import PROJECT_ROOT
from tasks.runtime.fingerprint import installed_version

INSTALL = (
    r"\b(?:pip3?|pipx|uvx|conda|easy_install|uv (?:pip|tool|add|run))\s(?:-\S+ )*(?:install|add|sync|--with)\b|\buvx\b"
)
LOCKED = re.compile(
    r"--require-hashes -r (requirements/[\w-]+\.lock|\"requirements/\$1\.lock\"|\$<|\{lock\})|--no-deps .*--editable \."
)


def install_commands(text: str) -> list[str]:
    """Return each command that installs Python packages, to the end of its line or code span."""
    text = re.sub(r"\\\n\s*|\s*\"\s*\n\s*f?\"", " ", text)  # continued lines, and joined strings of Python
    for name, value in re.findall(r"^(\w+) :=(.*)$", text, re.MULTILINE):  # variables of make
        text = re.sub(rf"^{name} :=.*$", "", text, flags=re.MULTILINE).replace(f"$({name})", value)
    return [line[found.start() :] for line in re.split(r"[`\n]", text) for found in re.finditer(INSTALL, line)]


def unlocked(text: str) -> list[str]:
    return [command for command in install_commands(text) if not LOCKED.search(command)]


@pytest.mark.parametrize(
    "text",
    [
        "pip install scikit-learn",
        "`python -m pip install 'jax[cuda12]'`",
        "uv pip install -r requirements.txt",
        'f"run `.venv/bin/python -m pip "\n    f"install scikit-learn`"',
        "INSTALL := uv pip install\n\t$(INSTALL) keras",
        "pip install \\\n    keras",
    ],
)
def test_scan_finds_an_unlocked_installation(text: str) -> None:
    assert unlocked(text)


def test_every_installation_is_locked_by_hash() -> None:
    files = subprocess.run(["git", "ls-files"], cwd=PROJECT_ROOT, capture_output=True, text=True, check=True).stdout
    commands = 0
    for name in files.splitlines():
        if name.startswith(("tests/", "docs/images/")) or name.endswith(".lock"):
            continue
        text = (PROJECT_ROOT / name).read_text(encoding="utf-8")
        assert unlocked(text) == [], name
        commands += len(install_commands(text))
        for lock in re.findall(r"--require-hashes -r (requirements/\S+?\.lock)", text):
            assert (PROJECT_ROOT / lock).exists(), name
    assert commands >= 10


def test_extras_move_no_package_of_the_runtime() -> None:
    pins = [(pin, set(locks)) for pin, locks in licences.locked_packages().items()]
    runtime = {pin for pin, locks in pins if locks & {"cpu", "gpu"}}
    names = {name for name, _ in runtime}
    extras = {"datasets", "docker", "tune", "dask", "jax", "remote"}
    assert [pin for pin, locks in pins if locks & extras and pin[0] in names and pin not in runtime] == []


def test_the_page_of_licences_is_current() -> None:
    text = licences.PAGE.read_text(encoding="utf-8")
    assert text == licences.page(text), "python -m benchmarks.licences"
    assert licences.UNKNOWN not in text
    assert "not stated" not in text


def test_licence_of_another_system_stays_on_the_page() -> None:
    text = licences.PAGE.read_text(encoding="utf-8").replace(
        "| pywin32 | 312 | Python Software", "| pywin32 | 1 | Python"
    )
    assert re.search(r"^\| pywin32 \| 312 \| Python Foundation License \|", licences.page(text), re.MULTILINE)
    assert licences.UNKNOWN in licences.page("")


def _output(*packages: dict[str, object]) -> str:
    return json.dumps({"dependencies": packages, "fixes": []})


CLEAN = {"name": "a", "version": "1", "vulns": []}
SKIPPED = {"name": "b", "skip_reason": "not found: b"}
VULNERABLE = {"name": "c", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}


@pytest.mark.parametrize(
    ("output", "errors", "status", "line"),
    [
        (_output(CLEAN), "", 0, "audited: 1 packages, none with a known vulnerability"),
        (_output(CLEAN, VULNERABLE), "", 1, "c 2 is vulnerable: CVE-1, corrected in 3"),
        (_output(SKIPPED, VULNERABLE), "", 1, "not audited: 1 of 2 packages. not found: b"),
        (_output(SKIPPED), "", 69, "not audited: 1 of 1 packages. not found: b"),  # pip-audit ends with 0 here
        (_output(CLEAN, SKIPPED), "", 69, "not audited: 1 of 2 packages. not found: b"),
        (_output(), "", 69, "not audited: 0 of 0 packages."),
        ("", "Traceback\nConnectionError: no route\n\n", 69, "not audited: ConnectionError: no route"),
        ("", "", 69, "not audited: pip-audit printed nothing"),
    ],
)
def test_an_audit_that_did_not_happen_is_no_success(output: str, errors: str, status: int, line: str) -> None:
    received, lines = interpret(output, errors)
    assert received == status
    assert lines[-1] == line


def test_page_names_the_parsers_that_are_installed() -> None:
    import h5py
    import orjson
    import pyarrow as pa
    import pydantic_core
    import yaml

    page = (PROJECT_ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    rows = {row.split("|")[2].split(",")[0].strip(): row for row in page.splitlines() if row.startswith("| ")}
    assert rows["HDF5"].split("|")[2:4] == [f" HDF5, in h5py {h5py.__version__} ", f" {h5py.version.hdf5_version} "]
    assert rows["Arrow"].split("|")[3] == f" {pa.__version__} "
    assert f"PyYAML {yaml.__version__}" in rows["libyaml"]
    assert f" {orjson.__version__}, {pydantic_core.__version__} " in rows["orjson and pydantic-core (Rust)"]
    tensorflow = next(name for name in ("tensorflow-cpu", "tensorflow") if installed_version(name))
    (bound,) = re.findall(r"h5py<(\d+\.\d+)", " ".join(requires(tensorflow) or []))
    assert f"requires h5py below {bound}" in rows["HDF5"]


def test_no_parser_of_images_or_xml_is_locked() -> None:
    servers = {"storage", "mlflow-server"}  # environments of servers in tests
    locked = {name for (name, _), locks in licences.locked_packages().items() if not servers >= set(locks)}
    assert not locked & {"pillow", "lxml", "matplotlib", "opencv-python"}
