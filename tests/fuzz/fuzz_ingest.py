"""Look for bytes that ingest takes for something else than Python's csv module does: `make fuzz`.

Coverage-guided, by libFuzzer through atheris; arguments are libFuzzer's. What it finds is written to
tests/fuzz/found-crash-DIGEST, and belongs into corpus/ once it is mended: tests/tasks/test_ingest.py tries all there.
"""

import sys
import tempfile
from pathlib import Path

import atheris

# What is to be covered; the oracle's own branches would only distract.
with atheris.instrument_imports(include=["tasks.data"]):
    import tasks.ingest

from tests.tasks.data.csv_oracle import demand_the_verdict_of_csv


def one_input(content: bytes) -> None:
    # Lines of all lengths end anywhere in a block; a file as small as this would be a single one.
    tasks.data.csv_reader._BLOCK_BYTES = 64
    with tempfile.TemporaryDirectory() as folder:
        demand_the_verdict_of_csv(content, Path(folder))


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
