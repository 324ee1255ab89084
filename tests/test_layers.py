"""The rules of imports: down the layers only, and into a subpackage only by the names that it gives to others."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = {"data": 1, "extract": 2, "prototypes": 3, "head": 4, "report": 5, "workflows": 6, "commands": 7}
# Other files at the root are on the top layer.
ROOT_LAYER = dict.fromkeys(
    (
        "__init__",
        "_lazy",
        "_moved",
        "errors",
        "fetching",
        "files",
        "hub",
        "memory",
        "object_stores",
        "plugins",
        "progress",
        "ray_cluster",
        "urls",
        "worker_processes",
    ),
    0,
)
TOP = 7

# What a layer must not know, beside what lies above it.
FORBIDDEN = {
    "data": {"torch", "timm", "zarr", "openslide", "faiss", "PIL"},
    "extract": {"mmap_st.data.counts", "mmap_st.data.targets", "mmap_st.data.panel", "faiss"},
    "extract/store": {"mmap_st.extract.slides", "mmap_st.extract.encoders", "torch", "openslide"},
    "prototypes": {"mmap_st.data.counts", "mmap_st.data.targets", "mmap_st.data.panel", "timm"},
    "head": {"openslide", "PIL", "mmap_st.extract.slides", "mmap_st.extract.windows.reader", "timm"},
    "report": {"mmap_st.head.mmap.training", "mmap_st.head.runs.fit", "torch", "timm"},
    "commands": {"torch", "numpy", "zarr", "polars", "timm", "PIL"},
    "cli": {"torch", "numpy", "zarr", "polars", "timm", "PIL"},
}


def modules() -> list[Path]:
    files = [*ROOT.glob("*.py"), *(p for folder in LAYERS for p in (ROOT / folder).rglob("*.py"))]
    return sorted(path for path in files if path.name != "setup.py")


def package_of(name: str) -> Path | None:
    """The folder of a package, or None for what is not one."""
    folder = ROOT.joinpath(*name.split(".")[1:])
    return folder if name.split(".")[0] == "mmap_st" and (folder / "__init__.py").is_file() else None


def is_module(name: str) -> bool:
    return ROOT.joinpath(*name.split(".")[1:]).with_suffix(".py").is_file()


@cache
def names_given(package: Path) -> dict[str, str]:
    """What a package's `__init__` gives to others, with the module of the package that each name is from."""
    stub = package / "__init__.pyi"
    if not stub.is_file():
        return {}
    return {
        alias.name: node.module or alias.name
        for node in ast.parse(stub.read_text("utf-8")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def imports(path: Path) -> set[tuple[str, str | None]]:
    """(module, name) of every import; `import a.b` has no name."""
    found: set[tuple[str, str | None]] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {(alias.name, None) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            found |= {(node.module, alias.name) for alias in node.names}
    return found


def defining_modules(path: Path) -> set[str]:
    """Every module that a file imports from, names of packages followed to where they are defined."""
    found = set()
    for module, name in imports(path):
        found.add(module)
        package = package_of(module)
        if package is not None and name is not None:
            given = names_given(package)
            found.add(f"{module}.{given.get(name, name)}")
    return found


def layer_of_file(path: Path) -> int:
    relative = path.relative_to(ROOT)
    if len(relative.parts) == 1:
        return ROOT_LAYER.get(relative.stem, TOP)
    return LAYERS[relative.parts[0]]


def layer_of_import(name: str) -> int:
    parts = name.split(".")
    if len(parts) == 1:
        return 0
    return LAYERS.get(parts[1], ROOT_LAYER.get(parts[1], 0 if not is_module(name) else TOP))


each_module = pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))


@each_module
def test_imports_go_down(path: Path) -> None:
    own = layer_of_file(path)
    for name in defining_modules(path):
        if name.split(".")[0] == "mmap_st":
            assert layer_of_import(name) <= own, f"{path.name} imports {name} from a higher layer"


@each_module
def test_layers_do_not_know_what_is_not_theirs(path: Path) -> None:
    relative = path.relative_to(ROOT)
    for place, forbidden in FORBIDDEN.items():
        if not f"{relative.with_suffix('')}/".startswith(f"{place}/"):
            continue
        for name in defining_modules(path):
            for word in forbidden:
                assert not f"{name}.".startswith(f"{word}."), f"{relative} must not know {word}"


@each_module
def test_only_what_a_subpackage_gives_is_imported_from_outside_it(path: Path) -> None:
    for module, name in imports(path):
        if module.split(".")[0] != "mmap_st" or module == "mmap_st":
            continue
        package = package_of(module)
        if package is None:
            folder = ROOT.joinpath(*module.split(".")[1:-1])
            inside = folder == ROOT or path.is_relative_to(folder)
            assert inside, f"{path.name} imports {module}; import what its package's __init__ names"
        elif not path.is_relative_to(package) and (package / "__init__.pyi").is_file():
            assert name in names_given(package), f"{module} does not give {name} to others"


@pytest.mark.parametrize(
    "stub",
    sorted(p for folder in LAYERS for p in (ROOT / folder).rglob("__init__.pyi")),
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_no_name_that_a_package_gives_is_that_of_a_module_of_it(stub: Path) -> None:
    package = stub.parent
    if package == ROOT / "commands":
        return  # its modules are what it gives
    for name in names_given(package):
        assert not (package / f"{name}.py").is_file(), f"{name} is a module of {package.name} too"
        assert not (package / name).is_dir(), f"{name} is a subpackage of {package.name} too"


def test_no_modules_import_each_other() -> None:
    graph = {}
    for path in modules():
        relative = path.relative_to(ROOT).with_suffix("")
        name = ".".join(("mmap_st", *relative.parts)).removesuffix(".__init__")
        graph[name] = {other for other in defining_modules(path) if is_module(other)}
    finished: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name in finished:
            return
        for other in graph.get(name, ()):
            visit(other, (*way, name))
        finished.add(name)

    for name in graph:
        visit(name, ())


def test_the_command_line_imports_nothing_heavy() -> None:
    code = (
        "import sys, mmap_st.cli\n"
        "heavy = {'torch', 'timm', 'numpy', 'polars', 'zarr', 'scipy', 'sklearn', 'matplotlib', 'faiss'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


def test_a_fit_imports_no_more_than_it_needs() -> None:
    """Each command, and each process of an evaluation, would start a second later."""
    code = (
        "import sys, mmap_st.workflows.comparisons, mmap_st.workflows.fitting, mmap_st.workflows.head_runs\n"
        "unneeded = {'numba', 'sklearn', 'scipy.optimize', 'scipy.signal', 'scipy.stats', 'timm', 'anndata'}\n"
        "print(sorted(unneeded & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
