"""The rows of the benchmark table by name, in the order in which they are measured."""

from collections.abc import Callable, Iterator, Mapping

from benchmarks import command_rows, data_rows, training_rows
from benchmarks.bench import Bench
from benchmarks.measure import Row

ROWS: Mapping[str, Callable[[Bench], Iterator[Row]]] = {
    "ingest": data_rows.ingest_row,
    "both": data_rows.both_row,
    "validate": data_rows.validate_row,
    "tenfold": data_rows.tenfold_rows,
    "epoch": training_rows.epoch_row,
    "gemm": training_rows.gemm_row,
    "command": command_rows.command_rows,
    "seeds": training_rows.seeds_row,
    "start": command_rows.start_rows,
    "commands": command_rows.commands_rows,
    "predict": command_rows.predict_rows,
}
