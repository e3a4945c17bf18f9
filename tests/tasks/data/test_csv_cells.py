"""Cells of a line: quotes, carriage returns and numbers."""

import pytest

from tasks.data.csv_cells import Line, parse_cell, parse_line, shorten


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"", Line([""])),
        (b"1, 2 ,", Line(["1", " 2 ", ""])),
        (b'"1","2"', Line(["1", "2"])),
        (b'1, "2" ,"3,""4"""', Line(["1", "2", '3,"4"'])),
        (b'"1\r\n","2"', Line(["1\r\n", "2"])),
        (b'1"2,"3"4,"5,6"7', Line(['1"2', '"3"4', '"5,6"7'])),
        (b"1,\xff,\xc3\xa9", Line(["1", "\\xff", "\xe9"])),
        (b'1,"2,3', Line(["1", '"2,3'], open_quote=True)),
        (b'1, "2"",\r\n', Line(["1", '"2"",\r\n'], open_quote=True)),
        (b"1,2\r3,4\r", Line(["1", "2\r3", "4\r"], lone_return=1)),
        (b'"1"\r"2,3",4', Line(['"1"\r"2,3"', "4"], lone_return=0)),
        (b'1\r2,"3', Line(["1\r2", '"3'], open_quote=True, lone_return=0)),
        (b'"' + b"1" * 140_000 + b'",2', Line(["1" * 140_000, "2"])),  # beyond the limit of csv.reader
    ],
)
def test_splits_a_line_into_cells(line: bytes, expected: Line) -> None:
    assert parse_line(line) == expected


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        *(
            ("0", 0),
            (" 0255 ", 255),
            ("0" * 5_000 + "7", 7),
            ("1000", None),
            ("", None),
            (" ", None),
            ("+5", None),
            ("1_0", None),
        ),
        *(("1.0", None), ("\uff11", None), ("1 2", None)),
    ],
)
def test_parses_decimal_digits_only(cell: str, number: int | None) -> None:
    assert parse_cell(cell) == number


@pytest.mark.parametrize(
    ("value", "shown"),
    [("-1.5", "-1.5"), ("a\nb", "'a\\nb'"), ("9" * 41, "9" * 38 + ".."), ("x" * 41, "'" + "x" * 37 + "..")],
)
def test_shortens_a_value_to_forty_characters_on_a_line(value: str, shown: str) -> None:
    assert shorten(value) == shown
