"""Print commands that run where the user is: the programs of an environment are rarely on the search path."""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

from schemas.config import PROJECT_ROOT

_COMMAND = re.compile(r"(?<=`)(fashion-ann|prefect|make)( [a-z.][^`]*)(?=`)")
_SENTENCE_END = re.compile(r"(?<=[^\s.]{2}[.]) (?=[A-Z`/])")
_LONG = 400  # characters, more than three lines of a terminal
_PROGRAMS = Path(sys.executable).parent  # not resolved: the interpreter of an environment is a link
# Commands enter the checkout later. The folder may have been removed.
_CALLED_IN_CHECKOUT = os.environ.get("PWD") == str(PROJECT_ROOT)
# Flags of the running command that name its store and data. Flags that each command accepts.
_flags: dict[str, str] = {}
_accepted: dict[str, Collection[str]] = {}


def repeat_flags(accepted: Mapping[str, Collection[str]], **flags: str | None) -> None:
    """Repeat ``flags`` in each printed command that accepts them. Without them it would use another store or folder."""
    _flags.clear()
    _flags.update({f"--{name.replace('_', '-')}": value for name, value in flags.items() if value is not None})
    _accepted.clear()
    _accepted.update(accepted)


def runnable(text: str) -> str:
    """Return ``text`` with each command in backticks as the user has to type it."""
    return _COMMAND.sub(lambda found: program(found[1]) + found[2] + _repeated(*found.groups()), text)


def _repeated(name: str, arguments: str) -> str:
    words = arguments.split()
    accepted = _accepted.get(" ".join(words[:2]), _accepted.get(words[0], ())) if name == "fashion-ann" else ()
    return "".join(
        f" {flag} {shlex.quote(value)}" for flag, value in _flags.items() if flag in accepted and flag not in words
    )


def one_sentence_per_line(message: str) -> str:
    """Return a long message with a line for each sentence."""
    return _SENTENCE_END.sub("\n", message) if len(message) > _LONG else message


def program(name: str) -> str:
    """Return the words that start a program in a shell: its name if the shell finds it, else its path.

    `prefect` reads the address of the server, and `make` its targets, from the checkout: they start there.
    """
    own = _PROGRAMS / name
    found = shutil.which(name)
    words = name
    if own.exists() and (found is None or not Path(found).samefile(own)):
        inside = _CALLED_IN_CHECKOUT and own.is_relative_to(PROJECT_ROOT)
        words = shlex.quote(str(own.relative_to(PROJECT_ROOT) if inside else own))
    if name == "fashion-ann" or _CALLED_IN_CHECKOUT:
        return words
    return f"cd {shlex.quote(str(PROJECT_ROOT))} && {words}"
