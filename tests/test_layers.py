"""The rule of the layers: a file imports only from its own layer's folder or from lower layers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {"data": 1, "extract": 2, "prototypes": 3, "head": 4, "report": 5, "workflows": 6, "commands": 7}
# Other files at the root are on the top layer.
ROOT_LAYER = {"__init__": 0, "errors": 0, "files": 0, "plugins": 0, "progress": 0}
TOP = 7

# What a layer must not know, beside what lies above it.
FORBIDDEN = {
    "data": {"torch", "timm", "zarr", "openslide", "faiss", "PIL"},
    "extract": {"mmap_st.data.counts", "mmap_st.data.targets", "mmap_st.data.panel", "faiss"},
    "prototypes": {"mmap_st.data.counts", "mmap_st.data.targets", "mmap_st.data.panel", "timm"},
    "head": {"openslide", "PIL", "mmap_st.extract.slides.slide", "mmap_st.extract.windows.reader", "timm"},
    "report": {"mmap_st.head.mmap.training", "mmap_st.head.runs.fit", "torch", "timm"},
    "commands": {"torch", "numpy", "zarr", "polars", "timm", "PIL"},
    "cli": {"torch", "numpy", "zarr", "polars", "timm", "PIL"},
}


def modules() -> list[Path]:
    files = [*ROOT.glob("*.py"), *(p for folder in LAYERS for p in (ROOT / folder).rglob("*.py"))]
    return sorted(files)


def layer_of_file(path: Path) -> int:
    relative = path.relative_to(ROOT)
    if len(relative.parts) == 1:
        return ROOT_LAYER.get(relative.stem, TOP)
    return LAYERS[relative.parts[0]]


def layer_of_import(name: str) -> int:
    parts = name.split(".")
    if len(parts) == 1:
        return 0
    return LAYERS.get(parts[1], ROOT_LAYER.get(parts[1], TOP))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            found.add(node.module)
            if node.module == "mmap_st":
                found |= {f"mmap_st.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    own = layer_of_file(path)
    for name in imports(path):
        if name.split(".")[0] == "mmap_st":
            assert layer_of_import(name) <= own, f"{path.name} imports {name} from a higher layer"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_layers_do_not_know_what_is_not_theirs(path: Path) -> None:
    relative = path.relative_to(ROOT)
    forbidden = FORBIDDEN.get(relative.parts[0].removesuffix(".py"), set())
    for name in imports(path):
        for word in forbidden:
            assert not f"{name}.".startswith(f"{word}."), f"{relative} must not know {word}"


def test_the_command_line_imports_nothing_heavy() -> None:
    code = (
        "import sys, mmap_st.cli\n"
        "heavy = {'torch', 'timm', 'numpy', 'polars', 'zarr', 'scipy', 'sklearn', 'matplotlib', 'faiss'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
