"""Start a browser, and run the pipeline on a real Prefect server. `make test-browser` installs the browser."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from cli.server_process import environment, free_port, stop_tree, wait_until_healthy
from schemas.config import PROJECT_ROOT
from tests.sample import SAMPLE

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_SERVER_SECONDS = 120
_RUN_SECONDS = 300


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _BROWSERS)), None)
    assert path is not None, "No browser: install Debian's chromium, or set CHROMIUM to a browser's path."
    with sync_playwright() as playwright:
        # Chromium's sandbox does not work for root, the user in containers. The pages are our own.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        yield browser
        browser.close()


@dataclass
class PageLog:
    """Record the console messages and the requested addresses of a page."""

    console: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture
def opened(browser: Browser) -> Iterator[Any]:
    """Return a function that opens a file, and returns the page and its log."""
    with _closing_contexts(browser) as contexts:

        def open_file(path: Path, width: int = 1280, scheme: str = "light") -> tuple[Page, PageLog]:
            context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
            contexts.append(context)
            page, log = context.new_page(), PageLog()
            page.on("console", lambda message: log.console.append(message.text))
            page.on("pageerror", lambda error: log.console.append(str(error)))
            page.on("request", lambda request: log.requests.append(request.url))
            page.goto(path.as_uri())
            return page, log

        yield open_file


@contextmanager
def _closing_contexts(browser: Browser) -> Iterator[list[Any]]:
    contexts: list[Any] = []
    yield contexts
    for context in contexts:
        context.close()


@dataclass(frozen=True)
class Run:
    """Two versions as the JSON of `fashion-ann train`, the page that compares them, and the address of the UI."""

    artifacts: Path
    versions: tuple[dict[str, Any], ...]
    comparison: Path
    ui: str

    @property
    def pages(self) -> dict[str, Path]:
        """Return the pages by name: the report of the second version, the comparison, and that of all versions."""
        version = Path(self.versions[1]["path"])
        index = version.parent.parent / "index.html"
        return {"report": version / "report.html", "comparison": self.comparison, "versions": index}


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Train twice on the sample with a Prefect server, and compare the versions."""
    folder = tmp_path_factory.mktemp("browser")
    port = free_port()
    variables = environment(
        PYTHONPATH=str(PROJECT_ROOT),
        PREFECT_HOME=str(folder / "prefect"),
        PREFECT_API_URL=f"http://127.0.0.1:{port}/api",
        FASHION_ANN_ARTIFACTS_DIR=str(folder / "artifacts"),
        FASHION_ANN_DATA_DIR=str(SAMPLE),
        DO_NOT_TRACK="1",
    )

    def command(*arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "cli.main", *arguments, "--json"],
            cwd=folder,
            env=variables,
            capture_output=True,
            text=True,
            timeout=_RUN_SECONDS,
        )
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    with (folder / "server.log").open("wb") as log:
        server = psutil.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder,
            env=variables,
            stdout=log,
            stderr=log,
        )
        try:
            fault = wait_until_healthy(f"http://127.0.0.1:{port}/api", _SERVER_SECONDS, server.poll)
            assert fault is None, (fault, (folder / "server.log").read_text(encoding="utf-8"))
            recipe = ("--epochs", "6", "--batch-size", "64", "--validation-size", "100")
            no_floor = ("--minimum-accuracy", "0", "--minimum-recall", "0")
            versions = tuple(command("train", "--seed", str(seed), *recipe, *no_floor) for seed in (0, 3))
            compared = command("compare", "1", "2")
            yield Run(folder / "artifacts", versions, Path(compared["output"]), f"http://127.0.0.1:{port}")
        finally:
            stop_tree(server.pid, 10)


@pytest.fixture(params=["report", "comparison", "versions"])
def page_file(run: Run, request: pytest.FixtureRequest) -> Path:
    return run.pages[request.param]
