"""Entry point of the command line: `fashion-ann COMMAND`. Results go to stdout, progress and errors to stderr.

Exit status: 0 success; 1 any other error; 2 wrong usage; 3 the data breaks the contract; 4 the new version was
rejected; 5 a stored artifact is damaged; 130 interrupted; 143 terminated.
"""

import argparse
import gc
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from cli.arguments import Terminated
from cli.commands_data import add_data_commands
from cli.commands_models import add_model_commands
from cli.commands_run import add_run_commands
from cli.commands_services import add_service_commands
from schemas.errors import FashionAnnError

_OBJECTS_BETWEEN_COLLECTIONS = 100_000


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its status. ``arguments`` defaults to those of the process."""
    # Imports create half a million objects that stay. Collecting every 700 allocations, the default, took a fifth of
    # the start-up time and two seconds at exit.
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
    # Turns off the telemetry of Prefect's client, for which Prefect has no setting.
    os.environ.setdefault("DO_NOT_TRACK", "1")
    options = command_parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        options.run(options)
    except (KeyboardInterrupt, Terminated) as stopped:
        # A second signal must not interrupt the shutdown.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        word, status = ("Terminated", 143) if isinstance(stopped, Terminated) else ("Interrupted", 130)
        print(f"{word}. {options.when_stopped}", file=sys.stderr)
    except BrokenPipeError:
        # The reader closed the pipe early, as `head` does. Python would report it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 0
    except FashionAnnError as error:
        status = _report_error(options, error, str(error), error.exit_status)
    except OSError as error:
        status = _report_error(options, error, f"{error.filename or 'The system'}: {error.strerror or error}.", 1)
    except Exception as error:
        status = _report_error(options, error, f"Unexpected {type(error).__name__}: {error}", 1)
    else:
        status = 0
    gc.freeze()
    sys.exit(status)


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of every command. Parsed options have ``run``, ``prog`` and ``when_stopped``."""
    parser = argparse.ArgumentParser(
        prog="fashion-ann",
        description="From image CSVs to a validated, trained, evaluated and versioned Keras model.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_run_commands(commands.add_parser)
    add_data_commands(commands.add_parser)
    add_model_commands(commands.add_parser)
    add_service_commands(commands.add_parser)
    return parser


def _terminate(number: int, frame: object) -> NoReturn:
    raise Terminated


def _report_error(options: argparse.Namespace, error: Exception, message: str, status: int) -> int:
    if options.debug:
        traceback.print_exception(error)
    print(f"{options.prog}: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
