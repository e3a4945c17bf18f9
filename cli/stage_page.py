"""The table of the stages, docs/stages.md.

`python -m cli.stage_page > docs/stages.md` writes that page.
"""

import sys

from schemas.config import PROJECT_ROOT
from tasks.runtime.stages import STAGES, Stage

PAGE = PROJECT_ROOT / "docs" / "stages.md"

_HEAD = """# The stages

Generated from tasks/runtime/stages.py by `python -m cli.stage_page > docs/stages.md`.

The stages in the order of the pipeline. A stage with an output writes it to [artifacts/](../artifacts/README.md), and
reuses it if nothing has changed. The core modules decide the output, so their code is part of the cache key
([how a stage works](design.md#how-a-stage-works)). [Extending](extending.md#add-a-stage) describes how to add one.

| stage | runs | purpose | output | fails with | core modules |
|---|---|---|---|---|---|
"""


def page() -> str:
    """Return the text of docs/stages.md."""
    return _HEAD + "".join(map(_row, STAGES))


def _row(stage: Stage) -> str:
    runs = "per shard" if stage.per_shard else "per split" if stage.per_split else "once"
    output = "" if stage.folder is None else f"`{stage.folder}/`"
    core = ", ".join(f"`{module}`" for module in stage.core)
    return f"| {' | '.join((stage.name, runs, stage.purpose, output, stage.failure, core))} |\n"


if __name__ == "__main__":
    sys.stdout.write(page())
