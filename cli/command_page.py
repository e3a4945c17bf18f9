"""The reference of the command line, docs/cli.md.

`python -m cli.command_page > docs/cli.md` writes that page.
"""

import sys
from collections.abc import Iterable

from cli.arguments import COMMON_FLAGS, DATASET, Argument
from cli.main import COMMANDS
from schemas.config import PROJECT_ROOT

PAGE = PROJECT_ROOT / "docs" / "cli.md"

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
| 5 | a stored artifact is damaged, unsigned or of another layout |
| 130 | interrupted by Ctrl-C |
| 143 | terminated by SIGTERM |
"""


def page() -> str:
    """Return the text of docs/cli.md."""
    without = [f"`{name}`" for name, command in COMMANDS.items() if not command.dataset]
    sections = [
        _HEAD,
        "## Flags of every command\n",
        _table((*COMMON_FLAGS, DATASET)),
        f"{', '.join(without[:-1])} and {without[-1]} have no `--dataset`.\n",
    ]
    for name, command in COMMANDS.items():
        sections += [f"## {name}\n", f"{command.description}\n"]
        if command.arguments:
            sections.append(_table(argument for group in command.arguments for argument in group))
    return "\n".join(sections)


def _table(arguments: Iterable[Argument]) -> str:
    return "| argument | meaning |\n|---|---|\n" + "".join(map(_row, arguments))


def _row(argument: Argument) -> str:
    name, settings = argument.names[0], argument.settings
    value = "{" + ",".join(settings["choices"]) + "}" if "choices" in settings else settings.get("metavar", "")
    if name.startswith("--"):
        value = f"{name} {value}".strip()
    elif settings.get("nargs") == "?":
        value = f"[{value}]"
    required = "required; " if settings.get("required") else ""
    return f"| `{value}` | {required}{settings['help'] % settings} |\n"


if __name__ == "__main__":
    sys.stdout.write(page())
