"""Entry point of the command `fashion-ann`, under a name that no other module has.

A `cli.py`, `flows.py`, `schemas.py` or `tasks.py` in a folder of PYTHONPATH would be imported instead of our package.
"""

import sys
from pathlib import Path
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line, with the checkout first on the search path."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from cli.main import main

    main()


if __name__ == "__main__":
    main()
