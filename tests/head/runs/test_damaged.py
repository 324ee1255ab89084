"""A run is what was written, or one sentence says that it is not."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmap_st.errors import HeadError
from mmap_st.files import sha256_of_file
from mmap_st.head.runs import read_head
from mmap_st.head.runs.saved_head import read_card


@pytest.fixture
def run(tiny: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.run, tmp_path / "run"))


def edit(run: Path, path: tuple[str, ...], value: object, *, of_before: bool) -> None:
    file = run / "head.json"
    content = json.loads(file.read_text())
    if of_before:
        content.pop("sha256")
        content.pop("weights_sha256")
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    file.write_text(json.dumps(content))


def test_a_run_says_what_it_is_of(run: Path) -> None:
    card = read_card(run)
    assert card.weights_sha256 == sha256_of_file(run / "head.safetensors")
    assert read_head(run).card == card


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("seed",), "x"), (("seed",), -1), (("seed",), True), (("shape",), {"genes": 3}), (("shape", "genes"), -1),
        (("shape", "width"), 0), (("shape", "genes"), 10**12), (("shape",), None),
        (("magnifications",), []), (("magnifications",), [1.0, 0.5]), (("magnifications",), [-0.5, 1.0]),
        (("magnifications",), ["a", "b"]), (("magnifications",), [0.5, 1e400]), (("panel", "genes"), []),
        (("panel", "genes"), "FASN"), (("panel", "gene_ids"), ["a"]), (("panel",), []), (("encoder",), {}),
        (("encoder", "encoder"), "uni"), (("settings",), {"alpha": "much"}), (("settings",), {"beta": 1}),
        (("settings",), []), (("normalisation",), None), (("normalisation", "targets"), 3),
        (("normalisation", "targets"), ""), (("normalisation", "targets"), "log2"),
        (("slides",), {}), (("tokens",), -3), (("format_version",), 99), (("format_version",), "1"),
        (("head",), "no such head"), (("head",), None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("of_before", [False, True])
def test_what_contradicts_itself_is_refused(run: Path, path: Any, value: object, of_before: bool) -> None:
    edit(run, path, value, of_before=of_before)
    with pytest.raises(HeadError) as caught:
        read_head(run)
    assert str(run) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("of_before", [False, True])
def test_a_gene_named_twice_is_refused(run: Path, of_before: bool) -> None:
    genes = list(read_card(run).panel.genes)
    edit(run, ("panel", "genes"), [*genes[:-1], genes[0]], of_before=of_before)
    with pytest.raises(HeadError, match=r"head\.json"):
        read_head(run)


def test_genes_in_another_order_are_refused(run: Path) -> None:
    edit(run, ("panel", "genes"), list(read_card(run).panel.genes)[::-1], of_before=False)
    with pytest.raises(HeadError, match="is not the one that was written"):
        read_head(run)


def test_weights_of_another_run_are_refused(run: Path) -> None:
    tensors = load_file(run / "head.safetensors")
    save_file({key: value + 1 for key, value in tensors.items()}, run / "head.safetensors")
    with pytest.raises(HeadError, match="is not the one that head"):
        read_head(run)


BESIDE = ("spread.factor", "spread_by_distance", "trust.pcc", "trust.trusted", "domain.mean", "domain.axes",
          "domain.spread", "domain.beside", "domain.slides", "domain.spots")  # fmt: skip
#: Runs of before do not have it.
MAY_BE_MISSING = "spread_by_distance"


@pytest.mark.parametrize(
    ("beside", "how"),
    [
        (beside, how)
        for beside in BESIDE
        for how in ("missing", "shorter", "of two dimensions")
        if (beside, how) != (MAY_BE_MISSING, "missing")
    ],
)
def test_what_is_saved_beside_a_head_must_fit_it(run: Path, beside: str, how: str) -> None:
    edit(run, ("seed",), 7, of_before=True)
    tensors = load_file(run / "head.safetensors")
    if how == "missing":
        tensors.pop(beside)
    elif how == "shorter":
        tensors[beside] = tensors[beside][:0].copy()
    else:
        tensors[beside] = tensors[beside][None].copy()
    save_file(tensors, run / "head.safetensors")
    with pytest.raises(HeadError, match="is damaged and cannot be loaded"):
        read_head(run)


@pytest.mark.parametrize("how", ["missing", "of another shape", "none", "of another width"])
def test_tensors_that_do_not_fit_are_refused_in_runs_of_before(
    tiny: Any, run: Path, tmp_path: Path, mmap: Any, how: str
) -> None:
    edit(run, ("shape", "width") if "width" in how else ("seed",), 7, of_before=True)
    tensors = load_file(run / "head.safetensors")
    name = max(tensors, key=lambda key: tensors[key].size)
    if how == "missing":
        tensors.pop(name)
    elif how == "none":
        tensors = {"a": np.zeros(1)}
    elif how == "of another shape":
        tensors[name] = tensors[name].ravel()[:-1].copy()
    save_file(tensors, run / "head.safetensors")
    shown = mmap("predict", run, tiny.store, "--out", tmp_path / "out")
    assert shown.returncode in (1, 2)
    assert "damaged" in shown.stderr + shown.stdout or "dimensions" in shown.stdout + shown.stderr
    assert "Traceback" not in shown.stderr
    assert not list(tmp_path.glob("out/*.h5ad"))


def test_what_the_program_is_does_not_count(run: Path) -> None:
    """A run may be marked as another version's, and its own head be found under another name."""
    edit(run, ("package_version",), "99", of_before=False)
    assert read_head(run).genes
