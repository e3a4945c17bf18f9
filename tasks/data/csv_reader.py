"""Read a CSV as arrays of rows: streamed, in constant memory, with every fault named by line and column.

docs/data.md has the accepted format, and what makes a row bad or a file unusable. A row is one line, or several if
quotes contain line ends; then it is named by the first.

Blocks of digits, commas and line ends are parsed as arrays. All other blocks are parsed line by line. pyarrow's CSV
reader accepts 0x1F as a number, names no line, and is slower.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from itertools import chain
from pathlib import Path

from schemas.contract import DatasetContract
from schemas.errors import CellProblem, DataContractError
from tasks.data.csv_blocks import MAX_LINE_BYTES, BlockParser, Rows, most_common_cause, unusable
from tasks.data.csv_cells import BOM, cell_note, column_at, parse_line
from tasks.data.csv_file import HashedFile, decompressed, file_stamp, require_unchanged
from tasks.data.csv_header import check_header, reject_other_formats
from tasks.data.quarantine import Quarantine

BLOCK_BYTES = 1 << 20  # the arrays made from one block stay within a processor's cache


@contextmanager
def open_csv(
    source: Path,
    contract: DatasetContract,
    *,
    label_optional: bool = False,
    expected_sha256: str | None = None,
    quarantine: Quarantine | None = None,
) -> Iterator["CsvRows"]:
    """Open a CSV, check its header, and yield its rows, which can be iterated over once.

    With ``label_optional`` the header may lack the label column.

    Raises `DataContractError`:

    - on entry, for a file that cannot be read or has a wrong header
    - from the iteration, for any other fault; bad rows are one only without a ``quarantine``
    - on exit, instead of these, for a file that changed or does not have the ``expected_sha256``
    """
    before = file_stamp(source)
    with HashedFile(source) as hashed, BufferedReader(hashed) as file:
        fault: DataContractError | None = None
        try:
            yield CsvRows(file, contract, label_optional=label_optional, quarantine=quarantine)
        except DataContractError as error:
            fault = error
        # A change comes first: it is the cause of other faults in a file that is still being written.
        sha256 = hashed.read_to_end()
        if expected_sha256 not in (None, sha256):
            raise DataContractError(
                f"{source} changed since it was hashed: expected sha256 {expected_sha256}, received {sha256}. "
                "Run again when nothing writes to it."
            ) from fault
        require_unchanged(source, before, sha256, fault)
        if fault is not None:
            raise fault


class CsvRows:
    """The rows of one CSV in file order, read in constant memory; created by `open_csv`.

    Iteration yields blocks, uint8 (N, len(columns)) with N at least 1, in the contract's order of columns. Every value
    is within the contract's bounds. The first column has classes in place of labels. Bad rows go to the quarantine.
    Without one, no block is yielded after the first bad row: the rest is read for more of them, and `DataContractError`
    ends the iteration.

    columns: the contract's columns, or these without the label.
    labelled: whether the first column is the label.
    reordered: a sentence for people if the file has its columns in another order, else None.
    tally: what was read so far.
    """

    def __init__(
        self,
        file: "BufferedReader[HashedFile]",
        contract: DatasetContract,
        *,
        label_optional: bool,
        quarantine: Quarantine | None,
    ) -> None:
        path = self._path = file.raw.path
        self._in_file: tuple[str, ...] = contract.columns
        self._blocks = self._whole_lines(file)
        first_block = next(self._blocks, b"").removeprefix(BOM)
        header, line_end, self._first_block = first_block.partition(b"\n")
        header = header.removesuffix(b"\r") if line_end else header
        self._in_file = check_header(path, header, contract, label_optional=label_optional)
        if not contract.has_header:
            header, self._first_block = b"", first_block
        present = set(self._in_file)
        self.columns = tuple(column for column in contract.columns if column in present)
        self.labelled = self.columns[0] == contract.label_column
        self.reordered: str | None = None
        usual = [column for column in contract.file_columns if column in present]
        if usual != list(self._in_file):
            at, name = next((at, name) for at, name in enumerate(self._in_file) if name != usual[at])
            order = f"{name} is column {at + 1}, expected {usual.index(name) + 1}"
            self.reordered = f"columns were reordered ({order})"
        self._has_quarantine = quarantine is not None
        on_bad_row = (lambda row: None) if quarantine is None else quarantine.source(header)
        self._parser = BlockParser(contract, self._in_file, path, on_bad_row)
        self.tally = self._parser.tally

    def __iter__(self) -> Iterator[Rows]:
        tally = self.tally
        order = None if self.columns == self._in_file else [self._in_file.index(column) for column in self.columns]
        for block in chain([self._first_block] if self._first_block else [], self._blocks):
            rows = self._parser.parse(block)
            if len(rows) and (self._has_quarantine or not tally.count):
                yield rows if order is None else rows[:, order]
        self._parser.finish()
        if tally.count and not self._has_quarantine:
            raise unusable(self._path, tally.problems, tally.count, most_common_cause(tally.causes))
        if not tally.rows and not tally.count:
            reason = "expected a row (the file has a header and no rows)"
            raise unusable(self._path, [CellProblem(2, self._in_file[0], "nothing", reason, self._path.name)])

    def _whole_lines(self, file: "BufferedReader[HashedFile]") -> Iterator[bytes]:
        """Yield the content in blocks of whole lines. Only the last block may lack its line end."""
        rest = b""
        line = 1

        def check_start(start: bytes) -> None:
            reject_other_formats(self._path, start, self._in_file[0])

        for chunk in decompressed(file, BLOCK_BYTES, check_start):
            cut = chunk.rfind(b"\n") + 1
            block, rest = (rest + chunk[:cut], chunk[cut:]) if cut else (b"", rest + chunk)
            # Only the first line of a block can be longer than a chunk.
            if block.find(b"\n") > MAX_LINE_BYTES:
                raise self._too_long(line, block)
            line += block.count(b"\n")
            if len(rest) > MAX_LINE_BYTES:
                raise self._too_long(line, rest)
            if block:
                yield block
        if rest:
            yield rest

    def _too_long(self, line: int, text: bytes) -> DataContractError:
        """Return the error at the cell that exceeds the limit."""
        text = text[: MAX_LINE_BYTES + 1]
        column = column_at(self._in_file, len(parse_line(text).cells) - 1)
        reason = f"expected the end of the line{cell_note(text.decode('latin-1'), 'line')}"
        return unusable(
            self._path, [CellProblem(line, column, f"more than {MAX_LINE_BYTES} bytes", reason, self._path.name)]
        )
