"""The reference of the command line, docs/cli.md.

`python -m cli.command_page > docs/cli.md` writes that page.
"""

import argparse
import sys
from collections.abc import Iterator

from cli.main import command_parser
from schemas.config import PROJECT_ROOT

PAGE = PROJECT_ROOT / "docs" / "cli.md"

_COMMON_FLAGS = ("--artifacts-dir", "--json", "--debug", "--dataset")
_HEAD = """# The command line

Generated from the parser by `python -m cli.command_page > docs/cli.md`.

`fashion-ann` is installed as `.venv/bin/fashion-ann`; each command has `--help`. Results go to stdout, progress and
errors to stderr.

| exit status | meaning |
|---|---|
| 0 | success |
| 1 | any other error, such as an unknown version |
| 2 | wrong usage: an unknown command, flag or value |
| 3 | the data breaks the contract |
| 4 | the new version was rejected |
| 5 | a stored artifact is damaged |
| 130 | interrupted by Ctrl-C |
| 143 | terminated by SIGTERM |
"""


def command_parsers() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of each command by its name, such as "train" or "quarantine list"."""
    return dict(_leaves("", command_parser()))


def arguments_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return the arguments of a command without ``--help``. argparse has no public list of them."""
    return [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]


def page() -> str:
    """Return the text of docs/cli.md."""
    parsers = command_parsers()
    common = [action for action in arguments_of(parsers["train"]) if action.option_strings[0] in _COMMON_FLAGS]
    without = [f"`{name}`" for name, parser in parsers.items() if "--dataset" not in parser.format_usage()]
    sections = [
        _HEAD,
        "## Flags of every command\n",
        _table(common),
        f"{', '.join(without[:-1])} and {without[-1]} have no `--dataset`.\n",
    ]
    for name, parser in parsers.items():
        own = [action for action in arguments_of(parser) if not {*action.option_strings} & {*_COMMON_FLAGS}]
        sections += [f"## {name}\n", f"{parser.description}\n", *([_table(own)] if own else [])]
    return "\n".join(sections)


def _leaves(prefix: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in arguments_of(parser):
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from _leaves(f"{prefix} {name}".strip(), child)
            return
    yield prefix, parser


def _table(actions: list[argparse.Action]) -> str:
    rows = [
        f"| `{_usage(action)}` | {'required; ' if action.required and action.option_strings else ''}"
        f"{(action.help or '') % vars(action)} |\n"
        for action in actions
    ]
    return "| argument | meaning |\n|---|---|\n" + "".join(rows)


def _usage(action: argparse.Action) -> str:
    value = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else str(action.metavar or "")
    if not action.option_strings:
        return f"[{value}]" if action.nargs == "?" else value
    return f"{action.option_strings[0]} {value}".strip()


if __name__ == "__main__":
    sys.stdout.write(page())
