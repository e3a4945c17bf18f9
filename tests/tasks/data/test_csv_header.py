"""Headers without the label. tests/tasks/data/csv_cases.py has all other headers."""

from pathlib import Path

import pytest

from schemas.errors import DataContractError
from tasks.data.csv_header import check_header
from tests.tasks.data.csv_cases import TINY


@pytest.mark.parametrize("header", ["pixel1,pixel2,pixel3,pixel4", "pixel4, pixel2,pixel1 ,pixel3"])
def test_the_label_may_be_optional(header: str) -> None:
    columns = check_header(Path("images.csv"), header.encode(), TINY, label_optional=True)
    assert columns == tuple(header.replace(" ", "").split(","))
    with pytest.raises(DataContractError, match="column label: expected this name in the header"):
        check_header(Path("images.csv"), header.encode(), TINY, label_optional=False)


@pytest.mark.parametrize(
    ("header", "column"),
    [
        (b"pixel1,pixel2,pixel3,pixel5", "pixel4"),
        (b"pixel1,pixel2,pixel3", "pixel4"),
        (b"pixel1,pixel2,pixel3,pixel4,pixel5", "5"),
    ],
)
def test_names_the_column_that_is_wrong_without_a_label(header: bytes, column: str) -> None:
    with pytest.raises(DataContractError, match=f"(?s)column {column}: .*The column label may be left out"):
        check_header(Path("images.csv"), header, TINY, label_optional=True)
