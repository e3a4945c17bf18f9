"""Look up every package of the locks in pip-audit's database of known vulnerabilities: `make audit`.

Exit status 0: no known vulnerability; 1: at least one; 69: not audited, or not completely.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

LOCKS = sorted((Path(__file__).resolve().parents[1] / "requirements").glob("*.lock"))
VULNERABLE, NOT_AUDITED = 1, 69  # the second is EX_UNAVAILABLE of sysexits.h


def main() -> int:
    """Print the result, and return the exit status."""
    requirements = [word for lock in LOCKS for word in ("--requirement", str(lock))]
    command = [sys.executable, "-m", "pip_audit", *requirements, "--require-hashes", "--disable-pip"]
    done = subprocess.run([*command, "--format=json", "--progress-spinner=off"], capture_output=True, text=True)
    status, lines = interpret(done.stdout, done.stderr)
    print(*lines, sep="\n")
    return status


def interpret(output: str, errors: str) -> tuple[int, list[str]]:
    """Return the exit status for pip-audit's ``output``, and the lines to print.

    pip-audit itself ends with 0 if its database has none of the packages, as that of a package mirror.
    """
    try:
        packages = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return NOT_AUDITED, [f"not audited: {_last(errors.splitlines()) or 'pip-audit printed nothing'}"]
    skipped = [package["skip_reason"] for package in packages if "skip_reason" in package]
    lines = [
        f"{package['name']} {package['version']} is vulnerable: {found['id']}, "
        f"corrected in {', '.join(found['fix_versions']) or 'no release'}"
        for package in packages
        for found in package.get("vulns", [])
    ]
    status = VULNERABLE if lines else NOT_AUDITED if skipped or not packages else 0
    if status == NOT_AUDITED or skipped:
        lines.append(f"not audited: {len(skipped)} of {len(packages)} packages. {_last(skipped)}".rstrip())
    return status, lines or [f"audited: {len(packages)} packages, none with a known vulnerability"]


def _last(lines: Sequence[str]) -> str:
    return next((line for line in reversed(lines) if line.strip()), "")


if __name__ == "__main__":
    sys.exit(main())
