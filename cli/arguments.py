"""Flags that several commands share, and the values that are read from them."""

import argparse
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from schemas.contract import FASHION_MNIST, DatasetName
from schemas.errors import WrongUsage

if TYPE_CHECKING:
    from schemas.config import BadRows, PromotionConfig, TrainingConfig

    Config = TypeVar("Config", TrainingConfig, PromotionConfig)

# `add_parser` of argparse's subparsers, whose class has no public name.
AddParser = Callable[..., argparse.ArgumentParser]

# The one key whose flag carries its subject: `--policy` alone would be ambiguous among the flags of `train`.
_RENAMED_FLAGS = {"policy": "--promotion-policy"}


class Terminated(BaseException):
    """SIGTERM as an exception. Like KeyboardInterrupt it passes every handler of errors."""


def add_command(
    add_parser: AddParser,
    name: str,
    run: Callable[[argparse.Namespace], None],
    *,
    help: str,
    description: str | None = None,
    dataset: bool = True,
    when_stopped: str = "Nothing was changed.",
) -> argparse.ArgumentParser:
    """Add a command with the common flags and return its parser.

    ``run`` is called with the parsed options. ``when_stopped`` is printed after an interrupt. ``dataset=False`` leaves
    ``--dataset`` out.
    """
    # No abbreviations: a new flag with the same first letters would change what they mean.
    parser = add_parser(name, help=help, description=description or f"{help[0].upper()}{help[1:]}.", allow_abbrev=False)
    parser.add_argument(
        "--artifacts-dir",
        metavar="D",
        help="folder that runs write to (default: $FASHION_ANN_ARTIFACTS_DIR, then artifacts/ of the checkout)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON for programs")
    parser.add_argument("--debug", action="store_true", help="print the traceback of an error")
    if dataset:
        parser.add_argument(
            "--dataset",
            choices=get_args(DatasetName),
            default=FASHION_MNIST.name,
            help="dataset whose contract and model store are used (default: %(default)s)",
        )
    parser.set_defaults(run=run, when_stopped=when_stopped, prog=parser.prog)
    return parser


def add_data_dir(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Add ``--data-dir``; ``purpose`` opens its help text."""
    parser.add_argument(
        "--data-dir",
        metavar="D",
        help=f"{purpose} (default: $FASHION_ANN_DATA_DIR, then data/ of the checkout)",
    )


def config_flag(key: str) -> str:
    """Return the flag of ``train`` for a key of TrainingConfig or PromotionConfig."""
    return _RENAMED_FLAGS.get(key, "--" + key.replace("_", "-"))


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each key of TrainingConfig and PromotionConfig, with its description and default."""
    from schemas.config import PromotionConfig, TrainingConfig

    for key, field in {**TrainingConfig.model_fields, **PromotionConfig.model_fields}.items():
        types = get_args(field.annotation) or (field.annotation,)
        values: dict[str, Any] = {"type": float, "metavar": "X"}
        if key == "policy":
            values = {"choices": types}
        elif int in types:
            values = {"type": int, "metavar": "N"}
        default = "off" if field.default is None else field.default
        parser.add_argument(config_flag(key), dest=key, help=f"{field.description} (default: {default})", **values)


def read_config(model: "type[Config]", options: argparse.Namespace) -> "Config":
    """Return a ``model`` of schemas/config.py with the flags that were given. Raises `WrongUsage` naming the flags."""
    from pydantic import ValidationError

    given = {key: getattr(options, key) for key in model.model_fields if getattr(options, key) is not None}
    try:
        return model(**given)
    except ValidationError as error:
        faults = [
            f"{config_flag(str(fault['loc'][0]))}: {fault['msg']}, received {fault['input']}"
            for fault in error.errors()
        ]
        raise WrongUsage("; ".join(faults) + ".") from error


def read_bad_rows(text: str) -> "BadRows":
    """Return the value of ``--bad-rows``. Raises `WrongUsage` unless it is a number of rows or a share."""
    from pydantic import TypeAdapter, ValidationError

    from schemas.config import BadRows

    try:
        budget: BadRows = TypeAdapter(BadRows).validate_python(text)
    except ValidationError as error:
        raise WrongUsage(
            f"--bad-rows: expected a number of rows such as 20, or a share such as 0.5%, received {text!r}."
        ) from error
    return budget


def print_json(value: Any, *, sort_keys: bool = False) -> None:
    """Print ``value`` as indented JSON."""
    print(json.dumps(value, indent=2, sort_keys=sort_keys))
