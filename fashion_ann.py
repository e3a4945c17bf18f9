"""Entry point of the command `fashion-ann`, under a name that no other module has.

A `cli.py`, `flows.py`, `schemas.py` or `tasks.py` in a folder of PYTHONPATH would be imported instead of our package.
"""

# Both are part of the running interpreter. `main` removes the caller's folder before any other import.
import os
import sys


def main() -> None:
    """Run the command line, with the checkout first on the search path and without the caller's folder."""
    if not sys.flags.safe_path:
        del sys.path[0]  # the working directory, with `python -m`
    if path := os.environ.get("PYTHONPATH"):
        relative = {os.path.abspath(folder) for folder in path.split(os.pathsep) if not os.path.isabs(folder)}  # noqa: PTH100, PTH117
        sys.path[:] = [folder for folder in sys.path if folder not in relative]
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from cli.main import main

    main()


if __name__ == "__main__":
    main()
