"""Run the cells of docs/tour.ipynb without Jupyter. `python -m tests.notebook` stores their outputs in it."""

import ast
import base64
import io
import json
import os
from contextlib import redirect_stdout
from typing import Any

from schemas.config import PROJECT_ROOT

NOTEBOOK = PROJECT_ROOT / "docs" / "tour.ipynb"
_FORMATS = {"image/svg+xml": "_repr_svg_", "image/png": "_repr_png_", "text/html": "_repr_html_"}


def cells() -> list[dict[str, Any]]:
    """Return the code cells, with the outputs that are stored in the notebook."""
    return [cell for cell in json.loads(NOTEBOOK.read_bytes())["cells"] if cell["cell_type"] == "code"]


def run_cells(code: list[str]) -> list[list[dict[str, Any]]]:
    """Run cells in one namespace, and return the outputs of each in the format of notebooks."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    outputs = []
    for at, cell in enumerate(code, start=1):
        tree = ast.parse(cell)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        with redirect_stdout(io.StringIO()) as printed:
            exec(compile(tree, f"cell {at}", "exec"), namespace)  # noqa: S102  # the repository's own code
            value = None
            if isinstance(last, ast.Expr):
                code_object = compile(ast.Expression(last.value), f"cell {at}", "eval")
                value = eval(code_object, namespace)  # noqa: S307
        text = printed.getvalue()
        stream = [{"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)}] if text else []
        outputs.append(stream + ([] if value is None else [_result(value, at)]))
    return outputs


def _result(value: Any, at: int) -> dict[str, Any]:
    """Return the output of the last expression of a cell, as Jupyter displays it."""
    data: dict[str, Any] = {"text/plain": [repr(value)]}
    for kind, method in _FORMATS.items():
        if hasattr(value, method):
            drawn = getattr(value, method)()
            data[kind] = base64.b64encode(drawn).decode() if isinstance(drawn, bytes) else drawn.splitlines(True)
    return {"output_type": "execute_result", "execution_count": at, "metadata": {}, "data": data}


def main() -> None:
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "ERROR")
    notebook = json.loads(NOTEBOOK.read_bytes())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for at, (cell, outputs) in enumerate(zip(code, run_cells(["".join(cell["source"]) for cell in code]), strict=True)):
        cell.update(execution_count=at + 1, outputs=outputs)
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
