"""Search for inputs that ingest and Python's csv module read differently: `make fuzz`.

atheris runs libFuzzer, guided by coverage; the arguments are libFuzzer's. It writes such an input to
tests/fuzz/found-crash-DIGEST. After the fix add it to corpus/: tests/tasks/test_ingest.py tests every file there.
"""

import sys
import tempfile
from pathlib import Path

import atheris

# Only product code: coverage of the oracle's branches would mislead the search.
with atheris.instrument_imports(include=["tasks.data"]):
    import tasks.data.csv_reader

from tests.tasks.data.csv_oracle import demand_the_verdict_of_csv


def check_input(content: bytes) -> None:
    # Small blocks, so that lines cross block borders in these short files.
    tasks.data.csv_reader._BLOCK_BYTES = 64
    with tempfile.TemporaryDirectory() as folder:
        demand_the_verdict_of_csv(content, Path(folder))


if __name__ == "__main__":
    atheris.Setup(sys.argv, check_input)
    atheris.Fuzz()
