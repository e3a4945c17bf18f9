from pathlib import Path

import pytest

from tasks.publish import publish_markdown, publish_png, publish_progress, publish_table


def test_outside_a_run_nothing_is_published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("an artifact was made outside a run")

    for kind in ("image", "markdown", "progress", "table"):
        monkeypatch.setattr(f"tasks.publish.create_{kind}_artifact", refuse)
    publish_table("key", [{"a": 1}], "")
    publish_markdown("key", "text", "")
    publish_png("key", tmp_path / "none.png", "")
    publish_progress("key", "")(0.5)
