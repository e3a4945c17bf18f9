"""report.html: one file that a browser opens offline, made from the figures of one version."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas.contract import DatasetContract
from tasks.evaluate import CONFUSION_NAME, LEARNING_NAME
from tasks.store import METRICS_NAME, REPORT_NAME


def write_report(
    path: Path, version: int, stated: Mapping[str, Any], evaluated: Path, contract: DatasetContract
) -> None:
    """Write the report of a version: ``stated`` is its manifest so far, ``evaluated`` the folder of the figures."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Autoescape: file names and messages are people's input.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    pictures = {
        name: "data:image/png;base64," + base64.b64encode((evaluated / name).read_bytes()).decode("ascii")
        for name in (CONFUSION_NAME, LEARNING_NAME)
    }
    html = environment.get_template(REPORT_NAME).render(
        version=version,
        stated=stated,
        metrics=json.loads((evaluated / METRICS_NAME).read_bytes()),
        contract=contract,
        confusion=pictures[CONFUSION_NAME],
        learning=pictures[LEARNING_NAME],
    )
    path.write_text(html, encoding="utf-8")
