"""Define commands, the arguments that several share, and the values that are read from them."""

import argparse
import json
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from cli.environment import absolute_path
from cli.printed_commands import runnable
from schemas.config import (
    DEFAULT_SPACE,
    MLFLOW_VARIABLE,
    BadRows,
    PromotionConfig,
    SearchSpace,
    TrainingConfig,
    mlflow_address,
)
from schemas.contract import DEFAULT_DATASET, Minima, contract_of
from schemas.errors import WrongUsage

Config = TypeVar("Config", TrainingConfig, PromotionConfig)
Run = Callable[[argparse.Namespace], None]


class Terminated(BaseException):
    """SIGTERM as an exception. Like KeyboardInterrupt it passes every handler of errors."""


@contextmanager
def stops_raised() -> Iterator[None]:
    """Raise KeyboardInterrupt or `Terminated` again where pydantic replaced one by an error that only names it.

    Its serializer does so if the signal arrives while it calls Python code.
    """
    try:
        yield
    except PydanticSerializationError as error:
        for stop in (KeyboardInterrupt, Terminated):
            if f": {stop.__name__}" in str(error):
                raise stop from error
        raise


class Argument:
    """An argument of a command, created from the arguments of `argparse.ArgumentParser.add_argument`."""

    def __init__(self, *names: str, **settings: Any) -> None:
        self.names = names
        self.settings = settings


def path_argument(text: str) -> str:
    """Return an absolute path, as the ``type`` of an argument: commands run in the checkout."""
    try:
        return absolute_path(text)
    except WrongUsage as error:
        raise argparse.ArgumentTypeError(runnable(str(error))) from error


def data_dir(purpose: str) -> Argument:
    """Return ``--data-dir``; ``purpose`` opens its help text."""
    return Argument(
        "--data-dir",
        type=path_argument,
        metavar="D",
        help=f"{purpose} (default: $FASHION_ANN_DATA_DIR, then data/ of the checkout)",
    )


def dataset_argument(text: str) -> str:
    """Return the name of a dataset whose file can be read, as the ``type`` of an argument."""
    try:
        return contract_of(text).name
    except WrongUsage as error:
        raise argparse.ArgumentTypeError(runnable(str(error))) from error


def mlflow_argument(text: str) -> str:
    """Return the address of an MLflow server as it is, as the ``type`` of an argument."""
    try:
        mlflow_address(text)
    except WrongUsage as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


DATASET = Argument(
    "--dataset",
    type=dataset_argument,
    metavar="NAME",
    default=DEFAULT_DATASET,
    help="dataset whose contract and model store are used (default: %(default)s)",
)
VERSION = Argument("version", metavar="V", help="a number, or an alias such as champion")
MLFLOW = Argument(
    "--mlflow",
    type=mlflow_argument,
    metavar="URI",
    help="MLflow server that receives versions and aliases, such as http://127.0.0.1:5000 (default: "
    f"${MLFLOW_VARIABLE}, then none); needs the extra mlflow",
)
COMMON_FLAGS = (
    Argument(
        "--artifacts-dir",
        type=path_argument,
        metavar="D",
        help="folder that runs write to (default: $FASHION_ANN_ARTIFACTS_DIR, then artifacts/ of the checkout)",
    ),
    Argument("--json", action="store_true", help="print JSON for programs"),
    Argument("--debug", action="store_true", help="print the traceback of an error"),
)


@dataclass(frozen=True)
class Command:
    """A command. ``arguments`` are its own ones, in groups of which at most one argument may be given.

    ``when_stopped`` is printed after an interrupt. Without ``dataset`` the command has no ``--dataset``. With
    ``writes`` it requires separate folders for data and artifacts.
    """

    run: Run
    arguments: tuple[tuple[Argument, ...], ...]
    help: str
    description: str
    dataset: bool
    writes: bool
    when_stopped: str

    @property
    def _groups(self) -> tuple[tuple[Argument, ...], ...]:
        common = (*COMMON_FLAGS, *([DATASET] if self.dataset else []))
        return (*((flag,) for flag in common), *self.arguments)

    @property
    def flags(self) -> frozenset[str]:
        """Return the names of all arguments, such as "--dataset"."""
        return frozenset(name for group in self._groups for entry in group for name in entry.names)

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Add all arguments to the parser. Parsed options have those of ``set_defaults``, too."""
        for group in self._groups:
            target = parser if len(group) == 1 else parser.add_mutually_exclusive_group()
            for entry in group:
                target.add_argument(*entry.names, **entry.settings)
        parser.set_defaults(run=self.run, prog=parser.prog, writes=self.writes, when_stopped=self.when_stopped)


class Commands(dict[str, Command]):
    """Commands by name, such as "train" or "quarantine list"."""

    def add(
        self,
        name: str,
        *arguments: Argument | tuple[Argument, ...],
        help: str,
        description: str | None = None,
        dataset: bool = True,
        writes: bool = True,
        when_stopped: str = "Nothing was changed.",
    ) -> Callable[[Run], Run]:
        """Return a decorator of the function that runs the command; a tuple of arguments excludes one another."""
        groups = tuple(entry if isinstance(entry, tuple) else (entry,) for entry in arguments)

        def register(run: Run) -> Run:
            text = description or f"{help[0].upper()}{help[1:]}."
            self[name] = Command(run, groups, help, text, dataset, writes, when_stopped)
            return run

        return register


def config_flag(key: str) -> str:
    """Return the flag of ``train`` for a key of TrainingConfig or PromotionConfig."""
    # `--policy` alone would be ambiguous among the flags of `train`.
    return "--promotion-policy" if key == "policy" else "--" + key.replace("_", "-")


def config_arguments(*models: type[TrainingConfig | PromotionConfig]) -> Iterator[Argument]:
    """Yield a flag for each key of ``models``, with its description and default."""
    for key, field in chain.from_iterable(model.model_fields.items() for model in models):
        types = get_args(field.annotation) or (field.annotation,)
        values: dict[str, Any] = {"type": float, "metavar": "X"}
        if get_origin(field.annotation) is Literal:
            values = {"choices": types}
        elif key == "hidden_units":
            values = {"type": _units, "metavar": "N"}
        elif key == "memory_budget":
            values = {"type": str, "metavar": "SIZE"}
        elif key == "minimum_robustness":
            values = {"type": _minima, "metavar": "NAME=X,.."}
        elif int in types:
            values = {"type": int, "metavar": "N"}
        text = f"{field.description} (default: {default_text(key, field.default)})"
        yield Argument(config_flag(key), dest=key, help=text.replace("%", "%%"), **values)  # argparse formats it


def default_text(key: str, default: Any) -> str:
    """Return the default of a key of TrainingConfig or PromotionConfig as text."""
    if default is None:
        return "the dataset's" if key in Minima.__dataclass_fields__ else "off"
    return str(default)


def _units(text: str) -> list[int]:
    try:
        return [int(units) for units in text.split(",")]
    except ValueError as error:
        message = f"expected a number of units, or several such as 512,256, received {text!r}"
        raise argparse.ArgumentTypeError(message) from error


def _minima(text: str) -> dict[str, float]:
    try:
        return {name: float(minimum) for name, minimum in (part.split("=") for part in text.split(","))}
    except ValueError as error:
        message = f"expected names with minima, such as blur=0.7,noise=0.8, received {text!r}"
        raise argparse.ArgumentTypeError(message) from error


def read_config(model: type[Config], options: argparse.Namespace, file: Path | None = None) -> Config:
    """Return a ``model`` of schemas/config.py from the settings of a TOML file and the given flags, which override it.

    Raises `WrongUsage`, which names the flag, or the file and its key.
    """
    flags = {key: getattr(options, key) for key in model.model_fields if getattr(options, key) is not None}
    settings = {} if file is None else _read_toml(file)
    try:
        return model.model_validate({**settings, **flags})
    except ValidationError as error:
        faults = []
        for fault in error.errors():
            key = str(fault["loc"][0])
            place = config_flag(key) if key in flags else f"{file}, {key}"
            faults.append(f"{place}: {fault['msg']}, received {fault['input']}")
        raise WrongUsage("; ".join(faults) + ".") from error


def _read_toml(file: Path, example: str = "epochs = 5") -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WrongUsage(
            f"{file}: expected a TOML file with settings of the training, such as {example} ({error!s:.200}). "
            "`fashion-ann show VERSION --config` prints one."
        ) from error


def read_space(options: argparse.Namespace, file: Path | None) -> dict[str, Any]:
    """Return the space of ``tune``: that of a TOML file or the default, without settings that a flag fixes."""
    searched = DEFAULT_SPACE if file is None else _read_toml(file, "dropout = {low = 0.0, high = 0.3}")
    space = {key: values for key, values in searched.items() if getattr(options, key, None) is None}
    checked: dict[str, Any] = read_value(SearchSpace, space, "the search space" if file is None else str(file))
    return checked


def read_value(kind: Any, value: Any, place: str) -> Any:
    """Return ``value`` as the type ``kind``. Raises `WrongUsage` with ``place``, the flag or file that it is from."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        fault = error.errors()[0]
        key = "".join(f", {part}" for part in fault["loc"] if part in (value if isinstance(value, dict) else ()))
        raise WrongUsage(f"{place}{key}: {fault['msg']}, received {fault['input']!r}.") from error


def read_bad_rows(text: str) -> BadRows:
    """Return the value of ``--bad-rows``. Raises `WrongUsage` unless it is a number of rows or a share."""
    try:
        budget: BadRows = TypeAdapter(BadRows).validate_python(text)
    except ValidationError as error:
        raise WrongUsage(
            f"--bad-rows: expected a number of rows such as 20, or a share such as 0.5%, received {text!r}."
        ) from error
    return budget


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as "1 version" or "2 versions"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def print_result(options: argparse.Namespace, result: Any, lines: Iterable[str], *, sort_keys: bool = False) -> None:
    """Print ``result`` as JSON with ``--json``, else ``lines``, one per line. JSON values may be paths."""
    if options.json:
        print(json.dumps(result, indent=2, sort_keys=sort_keys, default=os.fspath))
        return
    for line in lines:
        print(runnable(line).replace("\n", "\\n"))  # a newline in a stored text could imitate another line
