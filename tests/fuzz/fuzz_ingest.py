"""Search for bytes that ingest reads differently than Python's csv module: `make fuzz`.

The search is guided by coverage (libFuzzer through atheris) and takes libFuzzer's arguments. A failing input is written
to tests/fuzz/found-crash-DIGEST. Move it to corpus/ once the fault is fixed: test_csv_reader.py tests all files there.
"""

import sys
import tempfile
from pathlib import Path

import atheris

# Only ingest: coverage of the oracle would mislead the search.
with atheris.instrument_imports(include=["tasks.data"]):
    import tasks.data.csv_reader

from tests.tasks.data.csv_oracle import compare_with_csv


def check_input(content: bytes) -> None:
    # Small blocks, so that lines end anywhere in a block.
    tasks.data.csv_reader.BLOCK_BYTES = 64
    with tempfile.TemporaryDirectory() as folder:
        compare_with_csv(content, Path(folder))


if __name__ == "__main__":
    atheris.Setup(sys.argv, check_input)
    atheris.Fuzz()
