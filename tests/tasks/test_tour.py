"""docs/tour.ipynb runs on the sample, and its stored outputs are those of the same cells."""

from typing import Any

import pytest

from tests.notebook import cells, run_cells
from tests.sample import SAMPLE


def kinds(outputs: list[dict[str, Any]]) -> list[list[str]]:
    """Return the formats of each output of a cell."""
    return [sorted(output.get("data", {"printed": ""})) for output in outputs]


@pytest.mark.usefixtures("in_this_process")
def test_every_cell_runs_and_shows_what_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASHION_ANN_DATA_DIR", str(SAMPLE))
    stored = cells()
    outputs = run_cells(["".join(cell["source"]) for cell in stored])
    assert [kinds(cell["outputs"]) for cell in stored] == list(map(kinds, outputs))
    formats = [kind for cell in outputs for output in kinds(cell) for kind in output]
    assert formats.count("image/png") + formats.count("image/svg+xml") == 6
    printed = "".join("".join(output.get("text", [])) for cell in outputs for output in cell)
    assert "200 rows, accuracy 0." in printed
