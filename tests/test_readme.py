"""The README tells the truth: its commands are run here, on real sections, in its order."""

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest

from mmap_st.data.cohort import read_cohort
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.head.interface import parse_settings
from mmap_st.head.registry import head_method
from mmap_st.head.runs.fit import fit_head
from mmap_st.head.runs.request import FitRequest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


def test_every_make_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = {word for line in commands() if line.startswith("make ") for word in line.split()[1:]}
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


def test_every_file_that_is_named_exists() -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_every_test_that_the_docs_name_exists() -> None:
    named = {
        name
        for page in (ROOT / "docs").glob("*.md")
        for name in re.findall(r"`(tests/\S+\.py)`", page.read_text())
    }
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


@pytest.fixture(scope="module")
def workplace(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sections that the README speaks of, and no others."""
    folder = tmp_path_factory.mktemp("readme")
    source = shared / "data" / "her2st"
    for name in ("B4", "C2", "C3", "C4"):
        for path in source.rglob(f"{name}*"):
            link = folder / "her2st" / path.relative_to(source)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    (folder / "panel_785.txt").symlink_to(shared / "data" / "mmap_features" / "panel_785.txt")
    return folder


def test_the_commands_run_in_order_and_give_what_is_printed(
    workplace: Path, mmap: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    lines = [line for line in commands() if line.startswith("mmap ")]
    assert len(lines) >= 6
    for line in lines:
        words = shlex.split(line)[1:]
        if words[0] == "evaluate":
            words += ["--set", "epochs=2"]  # the figures that are printed are those of the fit before it
        shown = mmap(*words, cwd=workplace)
        assert shown.returncode == 0, f"{line}\n{shown.stdout}\n{shown.stderr}"
    assert (workplace / "out" / "report" / "C4_maps.png").is_file()
    printed = re.search(r"^│ mmap .*$", README, flags=re.M)
    assert printed is not None
    shown = [float(cell) for cell in printed[0].split("│")[2:8] if "%" not in cell]
    metrics = json.loads((workplace / "out" / "mmap" / "metrics.json").read_text())["test"]
    keys = ("pcc_slide", "pcc_slide_hvg50", "pcc_pooled", "mse", "mae")
    # Another CPU rounds otherwise, and training carries that on.
    assert shown == pytest.approx([metrics[key] for key in keys], abs=0.015)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/security.md"])
def test_tests_and_files_that_are_named_exist(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)`", text)
    linked = re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text)
    assert [path for path in named if not (ROOT / path).is_file()] == []
    assert [path for path in linked if not (ROOT / document).parent.joinpath(path).exists()] == []


def test_each_promise_of_the_readme_names_its_tests() -> None:
    promises = re.findall(r"^- \*\*(.+?)\.?\*\*", README, flags=re.M)
    listed = (ROOT / "CONTRIBUTING.md").read_text("utf-8").lower()
    assert len(promises) >= 7
    assert [promise for promise in promises if f"| {promise.lower()}" not in listed] == []


#: What the API promises, as it was asked for: README has each of these statements, in this order.
EXAMPLE = """
import mmap_st as mm
cohort = mm.read_cohort("her2st:her2st")                  # or a CSV, Parquet, polars or pandas frame
store = mm.embed(cohort, "features.zarr", encoder="efficientnet-lite0", magnifications=[40, 20, 10, 5])
run = mm.fit_head(cohort, store, encoder="efficientnet-lite0",
                  train={"slide": ["C2", "C3"]}, test={"slide": ["C4"]}, out="run")
run.metrics                                               # typed; .to_polars()
adata = run.predict(store, "B4")                          # AnnData, as mmap predict writes it
mm.pl.genes(adata, ["FASN", "IGLC3"])                     # a matplotlib figure; also pl.prototypes, pl.comparison
result = mm.compare(cohort, store, encoders=["efficientnet-lite0"], heads=["mmap", "ridge"], out="cmp")
result.table
"""
CHECKS = """
assert store.report.unchanged == ["B4", "C2", "C3", "C4"], store.report
assert run.metrics.to_polars().filter(predictor="head", slide="C4").height == 1
assert result.table["head"].to_list() == ["mmap", "ridge"]
adata.write_h5ad("B4.h5ad")
"""


def test_the_python_code_runs_as_written(workplace: Path) -> None:
    """As a script without a main guard, in a process of its own, as a user pastes it.

    Its sections are real, and embedded by the README's commands: `embed` finds them complete.
    """
    (block,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    statements = iter(ast.unparse(statement) for statement in ast.parse(block).body)
    for expected in ast.parse(EXAMPLE).body:
        assert ast.unparse(expected) in statements, ast.unparse(expected)
    folder = workplace / "example"
    folder.mkdir()
    for name in ("her2st", "out/features.zarr", "out/features.zarr.locks"):
        (folder / Path(name).name).symlink_to(workplace / name)
    (folder / "script.py").write_text(block + CHECKS)
    done = subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, cwd=folder, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "gene FASN is not among the 250 predicted" in done.stderr
    by_command = anndata.read_h5ad(workplace / "out" / "predictions" / "B4.h5ad")
    # Two fits, in two processes: their matrix products may differ in the last digits of float32.
    np.testing.assert_allclose(anndata.read_h5ad(folder / "B4.h5ad").X, by_command.X, rtol=0, atol=1e-5)


REFERENCE = {  # train, test: per-slide PCC, its hvg50, MSE, MAE of ridge at 1e5 on all four magnifications
    ("slide=C2,C3", "slide=C4"): (0.1390, 0.3671, 0.2390, 0.3749),
    ("slide=C2,C3,C4", "slide=B4"): (0.1048, 0.1360, 0.7262, 0.5725),
    ("slide=B4", "slide=C2,C3,C4"): (0.0712, 0.0526, 0.4669, 0.4616),
}


@pytest.mark.parametrize("roles", REFERENCE)
def test_ridge_reproduces_the_reference_figures(workplace: Path, roles: tuple[str, str]) -> None:
    """On the embeddings that the README's commands made."""
    store = FeatureStore.open(workplace / "out" / "features.zarr")
    cohort = read_cohort(workplace / "out" / "her2st.csv")
    method = head_method("ridge")
    request = FitRequest(
        "efficientnet-lite0",
        method,
        parse_settings(method, ["alpha=1e5"]),
        genes=str(workplace / "panel_785.txt"),
        train=roles[0],
        test=roles[1],
        baselines=roles[1] == "slide=C4",
    )
    report = fit_head(cohort, store, request, workplace / "out" / f"reference {roles[0]}")
    test = report.metrics.test
    found = [test.value(key) for key in ("pcc_slide", "pcc_slide_hvg50", "mse", "mae")]
    assert found == pytest.approx(REFERENCE[roles], abs=0.003)
    if roles[1] == "slide=C4":  # ridge at its own strength comes near the best, 0.1390
        assert report.metrics.baseline_ridge.pcc_slide > 0.1390 - 0.015
