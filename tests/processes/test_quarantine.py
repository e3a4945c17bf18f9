"""Bad rows come back once they are corrected, with the commands of the documentation."""

import gzip
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from schemas.config import PROJECT_ROOT
from tasks.data.published_data import fetch_data
from tasks.data.quarantine import quarantine_path
from tests.tasks.data.csv_cases import BODY, GOOD, HEADER, LABEL_LAST, ROWS, TINY
from tests.tasks.data.csv_oracle import rows_of, values
from tests.tasks.data.test_quarantine import TWO_BAD, put, run, tiny_is_a_dataset

__all__ = ["tiny_is_a_dataset"]  # a fixture that is used by being here


def documented(language: str) -> str:
    """The one block of that language in the part of docs/data.md about corrected rows."""
    text = (PROJECT_ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    part = text.partition("## Taking corrected rows")[2].partition("\n## ")[0]
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", part, re.MULTILINE | re.DOTALL)
    return str(block)


def follow_the_documentation(quarantine: Path, data: Path) -> None:
    subprocess.run([sys.executable, "-c", documented("python"), str(quarantine)], cwd=data, check=True)
    subprocess.run(["sh", "-c", documented("sh")], cwd=data, check=True)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("content", [TWO_BAD, LABEL_LAST + b"1,2,256,x,-1\r\n" + b"\n" + b"1,2,3,\xff,5"])
def test_corrected_rows_come_back_once_as_the_documentation_says(tmp_path: Path, content: bytes, packed: bool) -> None:
    artifacts, data = tmp_path / "artifacts", tmp_path / "data"
    data.mkdir()
    (data / "fashion-mnist_test.csv").write_bytes(GOOD)
    if packed:
        (data / "fashion-mnist_train.csv.gz").write_bytes(gzip.compress(content))
    else:
        (data / "fashion-mnist_train.csv").write_bytes(content)
    contract = replace(TINY, name="fashion-mnist")
    train = fetch_data(contract, data, ())["train"]
    run(train, artifacts, 3)

    quarantine = quarantine_path(artifacts, train)
    follow_the_documentation(quarantine, data)
    corrected = data / "fashion-mnist_train-corrected.csv"
    text = corrected.read_bytes()
    bad = [row["raw_text"].rstrip() for row in rows_of(quarantine)]
    assert text.splitlines()[1:] == [row for row in bad if row]
    for wrong, right in ((b"10,", b"1,"), (b"256,x,-1", b"25,3,1"), (b"\xff", b"4")):
        text = text.replace(wrong, right)
    corrected.write_bytes(text)

    for _ in range(2):
        train = fetch_data(contract, data, ())["train"]
        again = run(train, artifacts, 3)
        assert (again.rows, again.quarantined) == (5, len(bad))
        taken = values(again.path)
        assert taken[:3] == ROWS
        assert len(taken) == 5
        # Once more, with what is in quarantine now: nothing changes.
        follow_the_documentation(quarantine_path(artifacts, train), data)


def test_blank_lines_alone_leave_nothing_to_correct(tmp_path: Path) -> None:
    csv = put(tmp_path, HEADER + b"\n" + BODY)
    run(csv, tmp_path / "artifacts", 1)
    follow_the_documentation(quarantine_path(tmp_path / "artifacts", csv), tmp_path)
    assert not list(tmp_path.glob("*-corrected.csv"))
