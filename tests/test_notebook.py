"""The notebook of the documentation runs, and shows what it says."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "docs" / "api.ipynb"

spec = importlib.util.spec_from_file_location("docs_notebook", ROOT / "docs" / "notebook.py")
assert spec is not None
assert spec.loader is not None
docs_notebook = importlib.util.module_from_spec(spec)
spec.loader.exec_module(docs_notebook)


def kinds(cell: dict[str, object]) -> list[list[str]]:
    """What kinds of output a cell has."""
    return [sorted(output.get("data", {"stream": 0})) for output in cell["outputs"]]


def test_it_is_small_and_was_run_in_order() -> None:
    assert NOTEBOOK.stat().st_size < 500_000
    cells = [cell for cell in docs_notebook.read_cells() if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    text = NOTEBOOK.read_text("utf-8")
    assert "/tmp/" not in text
    assert text.count("image/png") >= 3


def test_its_cells_run_and_show_what_they_showed(tmp_path: Path) -> None:
    before = docs_notebook.read_cells()
    # Of 12 spots, and trained for two epochs: what kinds of output there are depends on neither.
    for long, short in {"size_um=1300": "size_um=800", '"epochs": 10': '"epochs": 2'}.items():
        (cell,) = (cell for cell in before if long in "".join(cell["source"]))
        cell["source"] = [line.replace(long, short) for line in cell["source"]]
    after = docs_notebook.run_cells(before, tmp_path)
    for old, new in zip(before, after, strict=True):
        if old["cell_type"] == "code":
            assert kinds(old) == kinds(new), "".join(old["source"])
    assert (tmp_path / "run" / "head.safetensors").is_file()
    assert (tmp_path / "straight" / "report.html").is_file()


def test_a_cell_that_warns_is_not_shown(tmp_path: Path) -> None:
    source = "import warnings\nfrom mmap_st.errors import MmapWarning\nwarnings.warn('x', MmapWarning)"
    with pytest.raises(Warning, match="x"):
        docs_notebook.run_cells([{"cell_type": "code", "source": [source]}], tmp_path)
