"""Table of all forms of a CSV, good and bad, with the verdict that ingest must reach."""

import gzip
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from schemas.contract import FASHION_MNIST

# Images of 2 x 2 pixels. A test split may consist of bad rows only.
TINY = replace(
    FASHION_MNIST,
    name="tiny",
    height=2,
    width=2,
    minimum_rows={"train": 3, "test": 0},
    published={split: replace(FASHION_MNIST.published[split], rows=3) for split in ("train", "test")},
)
# A dataset file requires rows of both splits.
REGISTERED = replace(TINY, minimum_rows={"train": 3, "test": 1})
HEADER = b"label,pixel1,pixel2,pixel3,pixel4\n"
ROWS = [[9, 0, 10, 100, 255], [0, 1, 20, 200, 0], [5, 7, 77, 177, 250]]
BODY = b"9,0,10,100,255\n0,1,20,200,0\n5,7,77,177,250\n"
GOOD = HEADER + BODY

# accepted: the Parquet has ROWS. bad row: one row is quarantined, or the file is rejected because of it. rejected: with
# any budget.
Verdict = Literal["accepted", "bad row", "rejected"]


@dataclass(frozen=True)
class Case:
    """A form of a CSV and the expected outcome.

    content: the bytes, or a function that creates something at a path.
    line: 0 if the error is about no line.
    value: start of the received value.
    words: part of the message.
    """

    name: str
    content: bytes | Callable[[Path], object]
    verdict: Verdict
    line: int = 0
    column: str = ""
    value: str = ""
    words: str = ""


def accepted(name: str, content: bytes) -> Case:
    return Case(name, content, "accepted")


def bad_cell(name: str, cell: bytes, value: str, words: str = "expected an integer 0..255") -> Case:
    """Return a case with ``cell`` for pixel3 in line 3."""
    return Case(name, GOOD.replace(b"200", cell), "bad row", 3, "pixel3", value, words)


def bad_row(name: str, content: bytes, line: int, column: str, value: str, words: str = "expected 5 values") -> Case:
    return Case(name, content, "bad row", line, column, value, words)


def bad_header(name: str, content: bytes, column: str, value: str, words: str) -> Case:
    return Case(name, content, "rejected", 1, column, value, words)


def rejected(name: str, content: bytes | Callable[[Path], object], words: str, line: int = 0, column: str = "") -> Case:
    return Case(name, content, "rejected", line, column, words=words)


def swapped(first: int, second: int, content: bytes = GOOD) -> bytes:
    """Return ``content`` with two columns exchanged."""
    lines = [line.split(b",") for line in content.splitlines()]
    for cells in lines:
        cells[first], cells[second] = cells[second], cells[first]
    return b"".join(b",".join(cells) + b"\n" for cells in lines)


def quoted(content: bytes) -> bytes:
    return b"".join(b'"' + line.replace(b",", b'","') + b'"\n' for line in content.splitlines())


def zipped(content: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("fashion-mnist_train.csv", content)
    return packed.getvalue()


def unreadable(path: Path) -> None:
    """Create a file that opens but cannot be read, not even by root."""
    path.symlink_to("/proc/self/mem")


QUOTED = quoted(GOOD)
PIXEL_0 = b"label,pixel0,pixel1,pixel2,pixel3\n" + BODY
CRLF = GOOD.replace(b"\n", b"\r\n")
LABEL_LAST = b"".join(b",".join([*cells[1:], cells[0]]) + b"\n" for cells in (x.split(b",") for x in GOOD.splitlines()))
LOGIN_PAGE = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head>\n<body>label,pixel1</body></html>\n"
GZIP = gzip.compress(GOOD)
_MIB = 1 << 20

CASES = [
    # --- accepted ---
    accepted("plain", GOOD),
    accepted("no newline at the end", GOOD[:-1]),
    accepted("crlf", CRLF),
    accepted("crlf, none at the end", CRLF[:-2]),
    accepted("lf and crlf mixed", HEADER + BODY.replace(b"\n", b"\r\n", 1)),
    accepted("byte order mark", b"\xef\xbb\xbf" + GOOD),
    accepted("byte order mark and crlf", b"\xef\xbb\xbf" + CRLF),
    accepted("quoted everywhere", QUOTED),
    accepted("byte order mark and quotes", b"\xef\xbb\xbf" + QUOTED),
    accepted("one cell quoted", GOOD.replace(b"177", b'"177"')),
    accepted("first and last cells quoted", GOOD.replace(b"9,0,10,100,255", b'"9","0",10,100,"255"')),
    accepted("spaces", GOOD.replace(b",", b" , ")),
    accepted("spaces and quotes", GOOD.replace(b"177", b' " 177 " ')),
    accepted("leading zeros", GOOD.replace(b",7,", b",007,").replace(b"1,20", b"0001,020")),
    accepted("thousands of leading zeros", GOOD.replace(b"7,77", b"0" * 6000 + b"7,77")),
    accepted("blank lines at the end", GOOD + b"\n \n\r\n"),
    accepted("label last", LABEL_LAST),
    accepted("two columns exchanged", swapped(1, 4)),
    accepted("label last, quoted, crlf", quoted(LABEL_LAST).replace(b"\n", b"\r\n")),
    accepted("gzip", GZIP),
    accepted("gzip in two members", gzip.compress(HEADER) + gzip.compress(BODY)),
    accepted("gzip, label last", gzip.compress(LABEL_LAST)),
    # --- a bad cell ---
    bad_cell("256", b"256", "256"),
    bad_cell("300", b"300", "300"),
    bad_cell("negative", b"-1", "-1"),
    bad_cell("minus zero", b"-0", "-0"),
    bad_cell("plus", b"+5", "+5"),
    bad_cell("fraction", b"12.5", "12.5"),
    bad_cell("fraction of nothing", b"3.0", "3.0"),
    bad_cell("point at the end", b"3.", "3."),
    bad_cell("exponent", b"1e2", "'1e2'"),
    bad_cell("capital exponent", b"2E1", "'2E1'"),
    bad_cell("hexadecimal", b"0x1F", "'0x1F'"),
    bad_cell("underscore", b"1_0", "'1_0'"),
    bad_cell("thousands separator", b'"1,000"', "'1,000'"),
    bad_cell("int64's largest", b"9223372036854775807", "9223372036854775807"),
    bad_cell("past int64", b"9223372036854775808", "9223372036854775808"),
    bad_cell("past int64, 256 more than 2 ** 64", b"18446744073709551872", "18446744073709551872"),
    bad_cell("below int64", b"-9223372036854775809", "-9223372036854775809"),
    bad_cell("5,000 digits", b"9" * 5000, "9" * 38 + ".."),
    bad_cell("text", b"abc", "'abc'"),
    bad_cell("not a number", b"NaN", "'NaN'"),
    bad_cell("infinity", b"inf", "'inf'"),
    bad_cell("true", b"true", "'true'"),
    bad_cell("empty", b"", "''"),
    bad_cell("empty in quotes", b'""', "''"),
    bad_cell("space alone", b" ", "' '"),
    bad_cell("space inside", b"1 2", "'1 2'"),
    bad_cell("tab", b"\t5", "'\\t5'"),
    bad_cell("wide digit", "\uff11".encode(), "'\uff11'"),
    bad_cell("superscript", "\u00b2".encode(), "'\u00b2'"),
    bad_cell("not utf-8", b"\xff7", "'\\\\xff7'"),
    bad_cell("nul", b"1\x00", "'1\\x00'", "expected an integer 0..255 (the cell holds a NUL byte)"),
    bad_cell("nul alone", b"\x00", "'\\x00'", "NUL"),
    bad_cell("carriage return", b"1\r", "'1\\r'", "255 (the cell holds a lone carriage return, which ends no line"),
    bad_cell("carriage return in quotes", b'"1\r"', "'1\\r'", "a lone carriage return, which ends no line"),
    bad_cell("line end in quotes", b'"200\n"', "'200\\n'", "255 (the cell holds a line end: its quotes close in a"),
    bad_cell("crlf in quotes", b'"\r\n200"', "'\\r\\n200'", "the cell holds a line end"),
    bad_cell("blank lines in quotes", b'"\n\n \n"', "'\\n\\n \\n'", "the cell holds a line end"),
    bad_cell("a row in quotes", b'"\n1,2,3,4,5\n"', "'\\n1,2,3,4,5\\n'", "the cell holds a line end"),
    bad_cell("line end behind doubled quotes", b'"1""\n"', "'1\"\\n'", "the cell holds a line end"),
    bad_cell("text after quotes with a comma", b'"1,2"3', "'\"1,2\"3'"),
    bad_cell("text after quotes with a line end", b'"1\n2"3', "'\"1\\n2\"3'"),
    bad_cell("quote within a cell", b'2"', "'2\"'"),
    bad_cell("quote inside", b'1"2', "'1\"2'"),
    bad_cell("text after quotes", b'"1"2', "'\"1\"2'"),
    bad_cell("quotes within quotes", b'"1""2"', "'1\"2'"),
    bad_cell("comma and quotes within quotes", b'"2,"""', "'2,\"'"),
    bad_cell("comma in quotes", b'"1,2"', "'1,2'"),
    bad_cell("zeros before too much", b"0000256", "0000256"),
    bad_cell("field beyond csv's limit", b'"' + b"x" * 140_000 + b'"', "'" + "x" * 37 + ".."),
    bad_row("label 10", GOOD.replace(b"5,7,", b"10,7,"), 4, "label", "10", "an integer 0..9"),
    bad_row("label 10, label last", LABEL_LAST.replace(b",5\n", b",10\n"), 4, "label", "10", "an integer 0..9"),
    bad_row("pixel 10 where the label was", swapped(0, 4, GOOD.replace(b"250", b"256")), 4, "pixel4", "256", "0..255"),
    bad_row("empty first cell", GOOD.replace(b"9,0,", b",0,"), 2, "label", "''", "an integer 0..9"),
    bad_row("empty last cell", GOOD.replace(b"255", b""), 2, "pixel4", "''", "an integer 0..255"),
    # --- a bad row ---
    bad_row("short row", GOOD.replace(b",200,0", b""), 3, "pixel3", "3 values"),
    bad_row("short row, label last", LABEL_LAST.replace(b"20,200,0,0", b"20,200,0"), 3, "label", "4 values"),
    bad_row("long row", GOOD.replace(b"200", b"200,1,2"), 3, "6", "7 values"),
    bad_row("comma at the end of a row", GOOD.replace(b"200,0", b"200,0,"), 3, "6", "6 values"),
    bad_row("two rows on a line", GOOD.replace(b"255\n", b"255,"), 2, "6", "10 values"),
    bad_row("cut off", GOOD[:-9], 4, "pixel3", "3 values", "the file was probably cut off"),
    bad_row("cut off after a comma", GOOD[:-4], 4, "pixel4", "''", "an integer 0..255"),
    bad_row("cut off, crlf", CRLF[:-10], 4, "pixel3", "3 values", "the file was probably cut off"),
    bad_row("blank line", HEADER + BODY.replace(b"\n", b"\n\n", 1), 3, "label", "a blank line"),
    bad_row("blank first row", HEADER + b"\r\n" + BODY, 2, "label", "a blank line"),
    bad_row("carriage return at the end", GOOD[:-1] + b"\r", 4, "pixel4", "'250\\r'", "an integer 0..255"),
    bad_row("line of nuls at the end", GOOD + b"\x00" * 40, 5, "pixel1", "1 values"),
    bad_row("text behind the rows", GOOD + b"60000 rows\n", 5, "pixel1", "1 values"),
    bad_row("comment", HEADER + b"# images\n" + BODY, 2, "pixel1", "1 values"),
    bad_row(
        "two rows and their line end in quotes",
        HEADER + b'9,0,10,100,"255\n0,1,20,200,0\n5,7,77,177,250"\n' + BODY[15:],
        *(2, "pixel4", "'255\\n0,1,20,200,0\\n5,7,77,177,250'"),
        "the cell holds a line end",
    ),
    bad_row("line end in quotes, short", GOOD.replace(b"1,20", b'"1,\n20"'), 3, "pixel4", "4 values", "1 line ends"),
    bad_row("line end in quotes, long", GOOD.replace(b"200,0", b'"2\n\n",0,0'), 3, "6", "6 values", "2 line ends"),
    bad_row(
        "line end in quotes, label last", LABEL_LAST.replace(b"255,9", b'255,"9\n"'), 2, "label", "'9\\n'", "a line end"
    ),
    bad_row(
        "carriage return for a line end",
        GOOD.replace(b"255\n", b"255\r"),
        *(2, "pixel4", "'255\\r0'"),
        "expected 5 values in a row (the cell holds a lone carriage return, which ends no line",
    ),
    bad_row("carriage return and short", GOOD.replace(b"20,200,0", b"2\r0"), 3, "pixel2", "'2\\r0'", "a lone carriage"),
    bad_row("two carriage returns and LF", GOOD.replace(b"0\n5", b"0\r\r\n5"), 3, "pixel4", "'0\\r'", "a lone"),
    bad_row(
        *("comma in quotes behind a lone return", GOOD.replace(b"10,100,255", b'\r"1,2",3')),
        *(2, "pixel2", "'\\r\"1,2\"'", "expected 5 values in a row (the cell holds a lone carriage return"),
    ),
    bad_row("line of one carriage return", HEADER + b"\r\r\n" + BODY, 2, "label", "'\\r'", "a lone carriage return"),
    bad_row(
        "quotes behind a lone return", GOOD.replace(b"200,", b'2\r"00\n",'), 3, "pixel3", "'2\\r\"00\\n\"'", "line end"
    ),
    # --- a bad header ---
    bad_header("lone carriage returns", GOOD.replace(b"\n", b"\r"), "pixel4", "'pixel4\\r9'", "a lone carriage return"),
    bad_header("line end in quotes", GOOD.replace(b"pixel2", b'"pixel2\n"'), "pixel2", "'\"pixel2'", "is left open"),
    bad_header("quote open in it", GOOD.replace(b"pixel2", b'"pixel2'), "pixel2", "'\"pixel2,", "a quote is left open"),
    bad_header("semicolons", GOOD.replace(b",", b";"), "label", "'label;pixel1;", "separated by semicolons"),
    bad_header("tabs", GOOD.replace(b",", b"\t"), "label", "'label\\tpixel1", "separated by tabs"),
    bad_header("no header", BODY, "label", "9", "the header is missing"),
    bad_header("blank header", b"\n" + GOOD, "label", "''", "missing: 'label'"),
    bad_header("wrong name", GOOD.replace(b"label", b"Label"), "label", "'Label'", "unexpected: 'Label'"),
    bad_header("misspelt pixel", GOOD.replace(b"pixel3", b"pixle3"), "pixel3", "'pixle3'", "unexpected: 'pixle3'"),
    bad_header("twice", GOOD.replace(b"pixel2", b"pixel1"), "pixel1", "columns 2 and 3", "missing: 'pixel2'"),
    bad_header("twice and all there", GOOD.replace(b"pixel4\n", b"pixel4,label\n"), "label", "columns 1 and 6", "once"),
    bad_header("missing column", GOOD.replace(b"pixel3,", b""), "pixel3", "nothing", "missing: 'pixel3'"),
    bad_header("missing label", GOOD.replace(b"label,", b""), "label", "nothing", "missing: 'label'"),
    bad_header("missing in another order", b"pixel4,label,pixel1,pixel3\n" + BODY, "pixel2", "nothing", "'pixel2'"),
    bad_header("missing last columns", b"label,pixel1\n" + BODY, "pixel2", "nothing", "'pixel2' and 2 more"),
    bad_header("extra column", GOOD.replace(b"pixel4\n", b"pixel4,pixel5\n"), "6", "'pixel5'", "unexpected: 'pixel5'"),
    bad_header("index of pandas", GOOD.replace(b"label", b",label"), "1", "''", "index of a pandas DataFrame: save"),
    bad_header("pixels from 0", PIXEL_0, "pixel4", "nothing", 'file with columns = "pixel0.."'),
    bad_header("comma at its end", GOOD.replace(b"pixel4\n", b"pixel4,\n"), "6", "''", "unexpected: ''"),
    bad_header("nul in it", GOOD.replace(b"pixel2", b"pixel\x00"), "pixel2", "'pixel\\x00'", "missing: 'pixel2'"),
    bad_header("comment above it", b"# images\n" + GOOD, "label", "'# images'", "missing: 'label'"),
    bad_header("json", b'[{"label": 9, "pixel1": 0}]\n', "label", "'[{", "missing: 'label'"),
    bad_header("binary", bytes(range(128, 256)) + bytes(range(128)), "label", "'", "binary"),
    bad_header("idx", b"\0\0\x08\x03\0\0\xea\x60\0\0\0\x1c\0\0\0\x1c" + b"\0" * 99, "label", "'", "binary"),
    bad_header("nothing but nuls", b"\0" * 4096, "label", "'", "binary"),
    # --- rejected as a whole ---
    rejected("empty", b"", "is empty", 1, "label"),
    rejected("byte order mark alone", b"\xef\xbb\xbf", "missing: 'label'", 1, "label"),
    rejected("header alone", HEADER, "a header and no rows", 2, "label"),
    rejected("header alone, cut", HEADER[:-1], "a header and no rows", 2, "label"),
    rejected("header and blank lines", HEADER + b"\n \n", "a header and no rows", 2, "label"),
    rejected("header alone, label last", LABEL_LAST.partition(b"\n")[0], "a header and no rows", 2, "pixel1"),
    rejected("quote left open", GOOD.replace(b"200", b'"200'), "closed before the file ends", 3, "pixel3"),
    rejected("quote left open in the last cell", GOOD[:-4] + b'"250\n', "closed before the file ends", 4, "pixel4"),
    rejected("quote left open behind others", GOOD.replace(b"1,20", b'"1\n","20'), "closed before the", 4, "pixel2"),
    rejected("quote left open beyond the columns", GOOD[:-1] + b',"\n', "closed before the file ends", 4, "6"),
    rejected("quote left open, doubled", GOOD.replace(b"200,", b'"200"",'), "closed before the file ends", 3, "pixel3"),
    rejected("quote left open for 1.1 MiB", HEADER + b'9,0,"' + BODY * 26_000, "closed within 1048576", 2, "pixel2"),
    rejected("a line of 1 MiB in quotes", GOOD + b'1,"2,' + b"4" * _MIB + b'"\n', "1048576 bytes", 5, "pixel1"),
    rejected("zip", zipped(GOOD), "a zip archive or a spreadsheet"),
    rejected("zip of nothing", b"PK\x05\x06" + b"\0" * 18, "an empty zip archive"),
    rejected("old spreadsheet", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 99, "a spreadsheet"),
    rejected("parquet", b"PAR1....", "is not a CSV but Parquet"),
    rejected("login page", LOGIN_PAGE, "a web page"),
    rejected("login page after blank lines", b"\r\n\r\n " + LOGIN_PAGE, "a web page"),
    rejected("xml", b'<?xml version="1.0"?>\n<Error/>\n', "a web page or XML"),
    rejected("utf-16", GOOD.decode().encode("utf-16"), "UTF-16"),
    rejected("utf-16, big-endian", b"\xfe\xff" + GOOD.decode().encode("utf-16-be"), "UTF-16"),
    rejected("utf-16, little-endian without a mark", GOOD.decode().encode("utf-16-le"), "UTF-16"),
    rejected("utf-16, big-endian without a mark", GOOD.decode().encode("utf-16-be"), "UTF-16"),
    rejected("utf-32", GOOD.decode().encode("utf-32"), "UTF-32"),
    rejected("bzip2", b"BZh91AY&SY" + b"\x80" * 40, "another kind than gzip"),
    rejected("zstd", b"\x28\xb5\x2f\xfd" + b"\x80" * 40, "another kind than gzip"),
    rejected("gzip within gzip", gzip.compress(GZIP), "gzip within gzip"),
    rejected("gzip of nothing", gzip.compress(b""), "is empty", 1, "label"),
    rejected("gzip cut off", GZIP[:-12], "ends too early"),
    rejected("gzip magic alone", b"\x1f\x8b", "ends too early"),
    rejected("gzip with a wrong checksum", GZIP[:-8] + b"\0" * 8, "damaged gzip"),
    rejected("gzip with garbage inside", GZIP[:10] + b"\xff" * 40, "damaged gzip"),
    rejected("gzip with garbage behind", GZIP + b"garbage", "damaged gzip"),
    rejected("a line of 1 MiB", GOOD + b"1,2,3" + b"4" * _MIB + b"\n", "more than 1048576 bytes", 5, "pixel2"),
    rejected("a line of 1.1 MiB of values", GOOD + b"1," * 580_000, "more than 1048576 bytes", 5, "6"),
    rejected("a line of 1.1 MiB of nuls", GOOD + b"\0" * 1_160_000, "NUL", 5, "label"),
    rejected("a header of 1 MiB", b"x" * _MIB + GOOD, "more than 1048576 bytes", 1, "label"),
    rejected("1.1 MiB with lone carriage returns", (GOOD * 15_000).replace(b"\n", b"\r"), "a lone carriage", 1, "6"),
    rejected("a folder", Path.mkdir, "cannot be read (Is a directory)"),
    rejected("nothing there", lambda path: None, "cannot be read (No such file"),
    rejected("a link to nothing", lambda path: path.symlink_to("nowhere"), "cannot be read (No such file"),
    rejected("a file that cannot be read", unreadable, "cannot be read (Input/output error)"),
]  # fmt: skip
