"""Render the Jinja templates: HTML pages, and SVG pictures for Prefect's UI."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: Any) -> str:
    """Return a template of ``tasks/reports/templates``, filled in with ``values``."""
    return _environment().get_template(template).render(**values)


def compile_templates() -> None:
    """Compile every template, so that `render` is fast."""
    environment = _environment()
    for name in environment.list_templates():
        environment.get_template(name)


@cache
def _environment() -> "Environment":
    """Return the environment, cached because it keeps compiled templates. Compiling takes most of a page's time."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Autoescape, because file names and messages come from users.
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
