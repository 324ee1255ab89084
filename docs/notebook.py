"""Run the cells of docs/api.ipynb and write what they show into it: ``python docs/notebook.py``.

No Jupyter is needed: a cell's last expression is shown as a notebook would, as text, a table or a picture.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from mmap_st.errors import MmapWarning

NOTEBOOK = Path(__file__).with_name("api.ipynb")


def read_cells(path: Path = NOTEBOOK) -> list[dict[str, Any]]:
    """Cells of a notebook."""
    cells: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["cells"]
    return cells


def run_cells(cells: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Run the cells in a folder, one after the other, and return them with their outputs."""
    names: dict[str, Any] = {"__name__": "__notebook__"}
    done = []
    number = 0
    with contextlib.chdir(folder):
        for cell in cells:
            if cell["cell_type"] == "code":
                number += 1
                shown = _run("".join(cell["source"]), names)
                cell = {**cell, "execution_count": number, "outputs": _outputs(shown, number)}
            done.append(cell)
    return done


def _run(source: str, names: dict[str, Any]) -> tuple[str, object]:
    """What a cell prints, and the value of its last expression."""
    body = ast.parse(source).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    printed = io.StringIO()
    value = None
    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("error", MmapWarning)  # a notebook that warns is not one to show
        exec(compile(ast.Module(body, []), "cell", "exec"), names)  # noqa: S102
        if last is not None:
            assert isinstance(last, ast.Expr)
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)  # noqa: S307
    return printed.getvalue(), value


def _outputs(shown: tuple[str, object], number: int) -> list[dict[str, Any]]:
    printed, value = shown
    found: list[dict[str, Any]] = []
    if printed:
        found.append({"output_type": "stream", "name": "stdout", "text": printed.splitlines(keepends=True)})
    if value is not None:
        data: dict[str, Any] = {"text/plain": repr(value).splitlines(keepends=True)}
        if hasattr(value, "_repr_png_"):
            data = {"image/png": base64.b64encode(value._repr_png_()).decode(), "text/plain": ["<Figure>"]}
        elif hasattr(value, "_repr_html_"):
            data["text/html"] = value._repr_html_().splitlines(keepends=True)
        found.append(
            {"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": data}
        )
    return found


def main() -> None:
    """Run the notebook in a temporary folder, and write it anew."""
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        notebook["cells"] = run_cells(notebook["cells"], Path(folder))
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"{NOTEBOOK}: {NOTEBOOK.stat().st_size / 1e3:.0f} kB", file=sys.stderr)


if __name__ == "__main__":
    main()
