"""Entry point of the command line: `fashion-ann COMMAND`. Results go to stdout, progress and errors to stderr.

Exit status: 0 success; 1 any other error; 2 wrong usage; 3 the data breaks the contract; 4 the new version was
rejected; 5 a stored artifact is damaged, unsigned or of another layout; 130 interrupted; 143 terminated.
"""

import argparse
import gc
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import NoReturn

from cli import (
    commands_data,
    commands_export,
    commands_models,
    commands_predictions,
    commands_run,
    commands_services,
)
from cli.arguments import Terminated
from cli.environment import prepare_environment
from cli.printed_commands import one_sentence_per_line, repeat_flags, runnable
from schemas.config import MLFLOW_VARIABLE, PROJECT_ROOT, mlflow_address, separate_folders
from schemas.contract import DEFAULT_DATASET
from schemas.errors import FashionAnnError
from tasks.runtime.control_characters import escaping_output

COMMANDS = (
    commands_run.commands
    | commands_predictions.commands
    | commands_data.commands
    | commands_models.commands
    | commands_export.commands
    | commands_services.commands
)
GROUP_HELP = commands_data.GROUP_HELP | commands_export.GROUP_HELP


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its status. ``arguments`` defaults to those of the process."""
    with escaping_output():
        _run(arguments)


def _run(arguments: Sequence[str] | None) -> NoReturn:
    # Imports create half a million objects that stay. Collecting every 700 allocations, the default, took a fifth of
    # the start-up time and two seconds at exit.
    gc.set_threshold(100_000)
    # Turns off the telemetry of Prefect's client, for which Prefect has no setting.
    os.environ.setdefault("DO_NOT_TRACK", "1")
    # The commands that need the folder report it with the reason.
    warnings.filterwarnings("ignore", "Failed to create the Prefect home")
    options = command_parser().parse_args(arguments)
    dataset, mlflow = getattr(options, "dataset", None), getattr(options, "mlflow", None)
    repeat_flags(
        {name: command.flags for name, command in COMMANDS.items()},
        artifacts_dir=options.artifacts_dir,
        data_dir=getattr(options, "data_dir", None),
        dataset=None if dataset == DEFAULT_DATASET else dataset,
        mlflow=None if mlflow is None else mlflow_address(mlflow),  # without a password
    )
    signal.signal(signal.SIGTERM, _terminate)
    status = 0
    try:
        if mlflow is not None:
            os.environ[MLFLOW_VARIABLE] = mlflow  # mlflow reads it, also in processes that a run starts
        for warning in prepare_environment(os.environ):
            print(f"{options.prog}: warning: {warning}", file=sys.stderr)
        # Prefect and other libraries read settings from the working directory, and settings can name code to import.
        os.chdir(PROJECT_ROOT)
        if options.writes:
            separate_folders(options.artifacts_dir, getattr(options, "data_dir", None))
        options.run(options)
    except (KeyboardInterrupt, Terminated) as stopped:
        # A second signal must not interrupt the shutdown.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        word, status = ("Terminated", 143) if isinstance(stopped, Terminated) else ("Interrupted", 130)
        print(f"{word}. {runnable(options.when_stopped)}", file=sys.stderr)
    except BrokenPipeError:
        # The reader closed the pipe early, as `head` does. Python would report it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if options.debug:
            traceback.print_exception(error)
        message, status = f"Unexpected {type(error).__name__}: {error}", 1
        if isinstance(error, FashionAnnError):
            message, status = str(error), error.exit_status
        elif isinstance(error, OSError):
            message = f"{error.filename or 'The system'}: {error.strerror or error}."
        print(f"{options.prog}: {one_sentence_per_line(runnable(message))}", file=sys.stderr)
    gc.freeze()
    sys.exit(status)


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of every command. Parsed options have ``run``, ``prog``, ``writes`` and ``when_stopped``."""
    # No abbreviations: a new flag with the same first letters would change what they mean.
    parser = argparse.ArgumentParser(
        prog="fashion-ann",
        description="From image CSVs to a validated, trained, evaluated and versioned Keras model.",
        allow_abbrev=False,
    )
    groups = {"": parser.add_subparsers(dest="command", required=True, metavar="COMMAND")}
    for words, command in COMMANDS.items():
        group, _, name = words.rpartition(" ")
        if group not in groups:
            parent = groups[""].add_parser(group, help=GROUP_HELP[group], allow_abbrev=False)
            groups[group] = parent.add_subparsers(dest="action", required=True, metavar="ACTION")
        command.add_to(
            groups[group].add_parser(name, help=command.help, description=command.description, allow_abbrev=False)
        )
    return parser


def _terminate(number: int, frame: object) -> NoReturn:
    raise Terminated


if __name__ == "__main__":
    main()
