"""Frequent forms of CSVs that cannot be used: `train` and `predict` name the cause and the cure in one sentence."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from schemas.contract import DatasetContract
from schemas.errors import DataContractError
from tasks.data.csv_reader import open_csv
from tasks.data.parquet_split import ingest_csv
from tests.field_faults import field_fault
from tests.tasks.data.csv_cases import HEADER, TINY
from tests.tasks.data.csv_oracle import QUARANTINE, TARGET, supplied

FRAME = pd.DataFrame(
    np.arange(20, dtype=np.uint8).reshape(4, 5) * 12, columns=HEADER.decode().strip().split(",")
).assign(label=[9, 0, 5, 9])
PIXELS = FRAME.drop(columns="label")
FROM_0 = {f"pixel{at}": f"pixel{at - 1}" for at in range(1, 5)}

INDEX = "the first column looks like the index of a pandas DataFrame: save it with to_csv(.., index=False)"
RENAME = (
    "the pixels are named pixel0..: rename them to pixel1..pixel4, or use a dataset file with "
    'columns = "pixel0..", as `fashion-ann dataset init NAME --from DIR` writes it'
)

_NAMED = "`train` and `predict` exit with 3 and name cause and cure in one sentence"


def messages(path: Path, contract: DatasetContract = TINY) -> list[list[str]]:
    """Return the lines of the errors of `train` and `predict`."""
    lines = []
    for train in (True, False):
        with pytest.raises(DataContractError) as caught:
            if train:
                ingest_csv(supplied(path), path.with_name(TARGET), path.with_name(QUARANTINE), contract)
            else:
                with open_csv(path, contract, label_optional=True) as rows:
                    list(rows)
        lines.append(str(caught.value).splitlines())
    return lines


@field_fault("stray files and bad values", "A CSV has the index of a pandas DataFrame as first column", _NAMED)
@field_fault("stray files and bad values", "The pixels in a header are named pixel0.., or by row and column", _NAMED)
@pytest.mark.parametrize(
    ("frame", "index", "cause"),
    [
        (FRAME, True, INDEX),
        (PIXELS, True, INDEX),
        (FRAME.reset_index(), False, INDEX),
        (FRAME.rename_axis("Unnamed: 0"), True, INDEX),
        (FRAME.rename_axis("Unnamed: 0").reset_index().rename_axis("Unnamed: 0.1"), True, INDEX),
        (FRAME.rename(columns=FROM_0), False, RENAME),
        (PIXELS.rename(columns=FROM_0), False, RENAME),
        (FRAME.rename(columns=FROM_0), True, f"{INDEX}; {RENAME}"),
        (FRAME.set_axis(["label", "1x1", "1x2", "2x1", "2x2"], axis=1), False, 'with columns = "1x1.."'),
    ],
    ids=["index", "unlabelled", "named index", "Unnamed: 0", "two", "pixel0", "no labels", "index, pixel0", "grid"],
)
def test_a_header_has_one_cause_and_cure(tmp_path: Path, frame: pd.DataFrame, index: bool, cause: str) -> None:
    frame.to_csv(tmp_path / "a.csv", index=index)
    train, predict = messages(tmp_path / "a.csv")
    assert "label" in frame or "column label: " not in predict[0]
    for fault, rest in (train, predict):
        assert fault.startswith("a.csv line 1, column ")
        assert cause in fault
        assert rest == f"{tmp_path / 'a.csv'} was not used. Correct it, and run again."


@field_fault("stray files and bad values", "Pixels were scaled to 0..1 or -1..1, or saved as floats", _NAMED)
@pytest.mark.parametrize(
    ("frame", "pixel_range", "cure"),
    [
        (FRAME.assign(**PIXELS / 255), (0, 255), "from 0 to 1: multiply them by 255, round them"),
        (PIXELS / 255, (0, 255), "from 0 to 1: multiply them by 255, round them"),
        ((FRAME / 255).assign(label=FRAME["label"] * 1.0), (0, 255), "from 0 to 1: multiply them by 255, round them"),
        (FRAME.assign(**PIXELS / 228), (0, 16), "from 0 to 1: multiply them by 16, round them"),
        (FRAME.assign(**PIXELS / 255), (5, 250), "from 0 to 1: multiply them by 245, add 5, round them"),
        (
            FRAME.assign(**PIXELS.assign(pixel1=0) / 127.5 - 1),
            (0, 255),
            "from -1 to 1: add 1 to them, multiply them by 127.5, round",
        ),
        (FRAME.assign(**PIXELS * 1.0), (0, 255), "with decimals: round them"),
    ],
    ids=["0..1", "unlabelled", "label too", "of 16", "from 5", "-1..1", "floats"],
)
def test_scaled_pixels_have_one_cause_and_cure(
    tmp_path: Path, frame: pd.DataFrame, pixel_range: tuple[int, int], cure: str
) -> None:
    frame.to_csv(tmp_path / "a.csv", index=False)
    low, high = pixel_range
    contract = replace(TINY, pixel_min=low, pixel_max=high, background=None)
    if "label" not in frame:
        with (
            pytest.raises(DataContractError) as caught,
            open_csv(tmp_path / "a.csv", contract, label_optional=True) as rows,
        ):
            list(rows)
        errors = [str(caught.value).splitlines()]
    else:
        errors = messages(tmp_path / "a.csv", contract)
    for fault, more, cause, _ in errors:
        assert fault.startswith("a.csv line 2, column ")
        assert more.startswith(".. and ")
        assert cause.startswith(f"4 of 4 bad rows have pixels {cure}")
        assert cause.endswith(", and save them as integers.")


@pytest.mark.parametrize("header", [True, False], ids=["header", "no header"])
def test_an_index_without_a_column_has_cause_and_cure(tmp_path: Path, header: bool) -> None:
    text = FRAME.to_csv(index_label=False, header=header)
    (tmp_path / "a.csv").write_text(text)
    for lines in messages(tmp_path / "a.csv", TINY if header else replace(TINY, naming="none")):
        assert lines[2].startswith("4 of 4 bad rows have their number as first of 6 cells, like the index of a pandas")
        assert lines[2].endswith(": save it with to_csv(.., index=False).")


@pytest.mark.parametrize("cell", ["x", "nan", "inf", "1_0", "\uff11", "300", "300.5", "-2.5", "", "1 2"])
def test_other_cells_have_no_such_cause(tmp_path: Path, cell: str) -> None:
    (tmp_path / "a.csv").write_text(f"{HEADER.decode()}9,0.5,0.5,0.5,{cell}\n")
    for lines in messages(tmp_path / "a.csv"):
        assert not [line for line in lines if "save them as integers" in line]


def test_a_cause_is_that_of_most_bad_rows(tmp_path: Path) -> None:
    scaled = "9,0.5,0.25,0.0,1.0\n" * 2
    (tmp_path / "a.csv").write_text(f"{HEADER.decode()}{scaled}9,300,0,0,0\n")
    for lines in messages(tmp_path / "a.csv"):
        assert lines[-2].startswith("2 of 3 bad rows have pixels from 0 to 1")
    (tmp_path / "a.csv").write_text(f"{HEADER.decode()}{scaled}9,300,0,0,0\n9,1\n")
    for lines in messages(tmp_path / "a.csv"):
        assert len(lines) == 8 + 2 + 1  # the eight scaled cells, the other bad rows, and what to do
