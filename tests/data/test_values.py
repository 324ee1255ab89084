"""Tables of normalised values where counts are expected: what was seen, and what it means for targets."""

import sys
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import polars as pl
import pytest

from mmap_st.data.counts import make_counts
from mmap_st.data.readers import open_cohort, read_counts
from mmap_st.errors import CountsError, NotCountsError

sys.path.insert(0, str(Path(__file__).parent))
import layouts

IDS = [f"{i % 5 + 1}x{i // 5 + 1}" for i in range(25)]
RAW = layouts.counts(25) + 1


def written_h5ad(root: Path, values: np.ndarray) -> str:
    adata = anndata.AnnData(
        values.astype(np.float32), obs=pd.DataFrame(index=IDS), var=pd.DataFrame(index=layouts.GENES)
    )
    adata.obsm["spatial"] = 100.0 * np.array([name.split("x") for name in IDS], float)
    adata.write_h5ad(root / "S.h5ad")
    return f"h5ad:{root}"


def written_table(root: Path, values: np.ndarray) -> str:
    place = 100.0 * np.array([name.split("x") for name in IDS], float)
    pl.DataFrame({"id": IDS, "x": place[:, 0], "y": place[:, 1]}).write_csv(root / "S_spots.csv")
    columns = dict(zip(layouts.GENES, values.astype(float).T, strict=True))
    pl.DataFrame({"id": IDS, **columns}).write_csv(root / "S_counts.csv")
    return f"table:{root}"


def written_st(root: Path, values: np.ndarray) -> str:
    rows = [f"{name}\t" + "\t".join(map(str, row)) for name, row in zip(IDS, values.tolist(), strict=True)]
    (root / "S_stdata.tsv").write_text("\n".join(["\t" + "\t".join(layouts.GENES), *rows]) + "\n")
    lines = [f"{x}\t{y}\t{x}00\t{y}00" for x, y in (name.split("x") for name in IDS)]
    (root / "S_selection.tsv").write_text("\n".join(["x\ty\tpixel_x\tpixel_y", *lines]) + "\n")
    return f"st:{root}"


WRITERS = (written_h5ad, written_table, written_st)
EVERY = pytest.mark.parametrize("write", WRITERS)
Z_SCORES = (RAW - RAW.mean(axis=0)) / RAW.std(axis=0)
SCALED = np.tile([1.0, 2, 3, 4, 5, 10], (25, 1)) * 4
SHIFTED = RAW - 5  # whole numbers, some below zero


def shown(mmap: Callable[..., object], *words: object) -> tuple[int, str]:
    result = mmap(*words, COLUMNS="2000")
    return result.returncode, " ".join((result.stdout + result.stderr).split())


@EVERY
@pytest.mark.parametrize(
    ("values", "seen"),
    [
        (layouts.lognorm(RAW), "targets are the logarithm of counts per 10,000"),
        (Z_SCORES, ""),
        (SHIFTED, ""),
        (RAW + 0.5, "targets are the logarithm of counts per 10,000"),
    ],
)
def test_both_commands_say_what_was_seen(
    write: Callable[[Path, np.ndarray], str], values: np.ndarray, seen: str, mmap, tmp_path: Path
) -> None:
    source = write(tmp_path, values)
    with pytest.raises(NotCountsError) as refused:
        read_counts(open_cohort(source)["S"])
    sentence = " ".join(str(refused.value).split())
    assert seen in sentence
    assert "raw" in sentence
    status, text = shown(mmap, "cohort", source, "--out", tmp_path / "c.csv")
    assert status == 0  # they may be meant: --values lognorm
    assert sentence in text
    assert sentence in shown(mmap, "cohort", "check", tmp_path / "c.csv")[1]


def test_values_below_zero_are_named() -> None:
    with pytest.raises(NotCountsError, match=r"z-scores\), which give no targets"):
        make_counts(IDS, layouts.GENES, Z_SCORES)
    with pytest.raises(NotCountsError, match=r"z-scores\), which give no targets"):
        make_counts(IDS, layouts.GENES, Z_SCORES, kind="lognorm")


@EVERY
def test_whole_numbers_of_one_sum_are_noted(
    write: Callable[[Path, np.ndarray], str], mmap, tmp_path: Path
) -> None:
    source = write(tmp_path, SCALED)
    (note,) = read_counts(open_cohort(source)["S"]).notes
    assert "all spots have the same sum (100)" in note
    for words in (("cohort", source, "--out", tmp_path / "c.csv"), ("cohort", "check", tmp_path / "c.csv")):
        assert note in shown(mmap, *words)[1]


@pytest.mark.parametrize("values", [RAW, SCALED[:5], np.vstack([SCALED[:24], RAW[:1]])])
def test_counts_are_not_noted(values: np.ndarray) -> None:
    assert make_counts(IDS[: len(values)], layouts.GENES, values).notes == ()


@pytest.mark.parametrize(("values", "noted"), [(layouts.lognorm(RAW), False), (RAW / RAW.sum() * 1e6, True)])
def test_values_of_which_no_logarithm_was_taken(values: np.ndarray, noted: bool) -> None:
    notes = make_counts(IDS, layouts.GENES, values, kind="lognorm").notes
    assert bool(notes) == noted
    assert not noted or "no logarithm was taken" in notes[0]


def test_a_damaged_table_is_still_a_problem(mmap, tmp_path: Path) -> None:
    source = written_table(tmp_path, RAW)
    (tmp_path / "S_counts.csv").write_text("id,A\ns,many\n")
    with pytest.raises(CountsError, match="'many' is not a number"):
        read_counts(open_cohort(source)["S"])
    status, text = shown(mmap, "cohort", source, "--out", tmp_path / "c.csv")
    assert status == 1
    assert "'many' is not a number" in text


def test_negative_values_in_x_and_counts_in_a_layer(tmp_path: Path) -> None:
    written_h5ad(tmp_path, SHIFTED)
    adata = anndata.read_h5ad(tmp_path / "S.h5ad")
    adata.layers["counts"] = RAW
    adata.write_h5ad(tmp_path / "S.h5ad")
    table = read_counts(open_cohort(f"h5ad:{tmp_path}")["S"])
    np.testing.assert_array_equal(table.matrix.toarray(), RAW)
    assert table.notes[0].startswith("counts are read from layers['counts']: X holds values such as -")
