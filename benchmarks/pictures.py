"""Take the pictures in README.md and docs/ from a real run: `make pictures`.

Trains as `fashion-ann train` does, in a temporary folder. Takes the terminal view during training, and screenshots of
the report in chromium.
"""

import argparse
import io
import os
import re
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright
from rich.console import Console

from cli.embedded_server import run_flow
from cli.terminal import LiveView, Progress
from schemas.config import PROJECT_ROOT, TrainingConfig, data_folder
from schemas.references import ModelVersion
from tasks.runtime.events import Event, TrainingProgress

IMAGES = PROJECT_ROOT / "docs" / "images"


class _Snapshot(Progress):
    """A terminal view that keeps its picture at two thirds of the training."""

    picture: str | None = None

    def on_log(self, message: str) -> None:
        super().on_log(message.replace(f"{PROJECT_ROOT}/", ""))

    def on_event(self, event: Event) -> None:
        super().on_event(event)
        if self.picture is None and isinstance(event, TrainingProgress) and event.done > event.epochs * 2 / 3:
            self.picture = _svg(self)


def _svg(progress: Progress) -> str:
    """Return the live view as an SVG without web fonts."""
    console = Console(record=True, file=io.StringIO(), width=100, force_terminal=True)
    console.print("$ make run", style="bold", highlight=False)
    console.print(LiveView(progress, Path("artifacts/logs/train.log")))
    return re.sub(r"@font-face \{.*?\}", "", console.export_svg(title="fashion-ann train"), flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description=__doc__)
    parser.add_argument("--data-dir", metavar="D", help="folder of the CSVs, as for `train`")
    parser.add_argument("--epochs", type=int, default=TrainingConfig().epochs)
    options = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    progress = _Snapshot()
    with tempfile.TemporaryDirectory() as scratch:
        parameters = {
            "data_dir": data_folder(options.data_dir),
            "artifacts_dir": Path(scratch),
            "training": TrainingConfig(epochs=options.epochs),
        }
        version = run_flow("train_fashion_mnist", parameters, ModelVersion, progress, quiet=True)
        browser = os.environ.get("CHROMIUM") or shutil.which("chromium")
        with sync_playwright() as playwright:
            chromium = playwright.chromium.launch(
                executable_path=browser, args=["--no-sandbox"] if os.geteuid() == 0 else []
            )
            page = chromium.new_page(viewport={"width": 1180, "height": 1000}, color_scheme="light")
            page.goto((version.path / "report.html").as_uri())
            page.screenshot(path=IMAGES / "report.png")
            page.locator("#errors").screenshot(path=IMAGES / "mistakes.png")
            page.set_content(progress.picture or "")
            page.locator("svg").first.screenshot(path=IMAGES / "run.png")
            chromium.close()
    print(f"{IMAGES}: report.png, mistakes.png and run.png, from a run with test accuracy {version.test_accuracy:.4f}")


if __name__ == "__main__":
    main()
