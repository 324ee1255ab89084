"""One gene, measured and by several heads, on the same slides."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest
from PIL import Image

import mmap_st as mm
from mmap_st.errors import RequestError, SlidesLeftOutWarning
from mmap_st.report.gene_figure import Predicted, gene_figure
from mmap_st.report.run_report import FigureOptions, load_map
from tests.conftest import Tiny

Mmap = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def runs(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Predictions of two heads of the same slides, the second one worse."""
    folder = tmp_path_factory.mktemp("runs")
    cohort = f"her2st:{tiny.her2st}"
    mm.predict(tiny.run, tiny.store, folder / "ridge", slides="A1,B1", cohort=cohort, progress=False)
    (folder / "other").mkdir()
    for name in ("A1", "B1"):
        table = anndata.read_h5ad(folder / "ridge" / f"{name}.h5ad")
        table.X = np.asarray(table.X)[::-1].copy()
        table.uns["mmap"]["head"] = "reversed"
        table.write_h5ad(folder / "other" / f"{name}.h5ad")
    return [folder / "ridge", folder / "other"]


def titles(
    runs: list[Path], scale: str = "shared"
) -> tuple[list[list[str]], list[list[tuple[float, float]]]]:
    """Titles and colour ends of each row of the figure of the first gene."""
    slides = ["A1", "B1"]
    predicted = [
        Predicted(run.name, run.name, {name: load_map(run / f"{name}.h5ad") for name in slides})
        for run in runs
    ]
    gene = predicted[0].slides["A1"].genes[0]
    figure = gene_figure(gene, slides, predicted, FigureOptions(scale=scale))
    axes = np.array([axis for axis in figure.axes if axis.get_label() != "<colorbar>"]).reshape(2, 4)
    ends = [[axis.collections[0].get_clim() for axis in row[1:]] for row in axes]
    return [[axis.get_title() for axis in row] for row in axes], ends


def test_a_row_is_a_slide_and_a_column_is_a_head(runs: list[Path]) -> None:
    shown, ends = titles(runs)
    assert [title.split("\n")[0] for title in shown[0]] == ["H&E", "measured", "ridge", "other"]
    for row, name in enumerate(("A1", "B1")):
        for column, run in enumerate(runs, start=2):
            table = anndata.read_h5ad(run / f"{name}.h5ad")
            pcc = np.corrcoef(table.X[:, 0], table.layers["measured"][:, 0])[0, 1]
            assert shown[row][column].endswith(f"PCC {pcc:.2f}")
        assert len(set(ends[row])) == 1  # one scale for measured and predicted
    _, own = titles(runs, "own")
    assert len(set(own[0])) > 1


def test_the_command_draws_each_gene(runs: list[Path], tmp_path: Path, mmap: Mmap) -> None:
    first, second = list(anndata.read_h5ad(runs[0] / "A1.h5ad").var_names[:2])
    words = (
        "report",
        *runs,
        "--figure",
        "genes",
        "--genes",
        f"{first},{second},NOSUCH",
        "--format",
        "png,pdf",
    )
    done = mmap(*words, "--out", tmp_path / "o")
    assert done.returncode == 0, done.stderr
    names = {f"{gene}_genes.{ending}" for gene in (first, second) for ending in ("png", "pdf")}
    assert {path.name for path in (tmp_path / "o").iterdir()} == names
    assert "NOSUCH is not on the panel" in done.stderr
    assert Image.open(tmp_path / "o" / f"{first}_genes.png").width > 1000


def test_heads_of_one_kind_are_called_by_their_folders(runs: list[Path], tmp_path: Path) -> None:
    shutil.copytree(runs[0], tmp_path / "again")
    gene = str(anndata.read_h5ad(runs[0] / "A1.h5ad").var_names[0])
    done = mm.write_report(
        [runs[0], tmp_path / "again"],
        tmp_path / "o",
        figure="genes",
        genes=gene,
        formats="svg",
        progress=False,
    )
    text = done.written[0].read_text("utf-8")
    assert ">ridge<" in text
    assert ">again<" in text


def test_slides_that_a_run_lacks_are_named(runs: list[Path], tmp_path: Path) -> None:
    shutil.copytree(runs[1], tmp_path / "one")
    (tmp_path / "one" / "A1.h5ad").unlink()
    gene = str(anndata.read_h5ad(runs[0] / "A1.h5ad").var_names[0])
    with pytest.warns(SlidesLeftOutWarning, match="A1.*not every run predicted it"):
        mm.write_report(
            [runs[0], tmp_path / "one"], tmp_path / "o", figure="genes", genes=gene, progress=False
        )
    (tmp_path / "one" / "B1.h5ad").rename(tmp_path / "one" / "Z.h5ad")
    table = anndata.read_h5ad(tmp_path / "one" / "Z.h5ad")
    table.uns["mmap"]["slide"] = "Z"
    table.write_h5ad(tmp_path / "one" / "Z.h5ad")
    with pytest.raises(RequestError, match="no slide was predicted by all of these runs"):
        mm.write_report(
            [runs[0], tmp_path / "one"], tmp_path / "o", figure="genes", genes=gene, progress=False
        )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"figure": "genes"}, "give --genes FASN"),
        ({"figure": "slides", "genes": "X"}, "--figure slides: give genes"),
        ({"figure": "genes", "genes": "NOSUCH"}, "no figure can be drawn: NOSUCH is not on the panel"),
        ({}, "several runs are shown side by side by --figure genes"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(
    options: dict[str, str], sentence: str, runs: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=sentence):
        mm.write_report(runs, tmp_path / "o", progress=False, **options)
