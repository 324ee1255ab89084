"""The panel of the HEST-Benchmark, against its text in pandas and against scanpy."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from mmap_st.data.counts import Counts, make_counts
from mmap_st.data.panel import choose_panel, hest_panel, normalised_dispersion
from mmap_st.errors import PanelError


def tables(seed: int, genes: int = 300, spots: tuple[int, ...] = (41, 60, 33)) -> dict[str, Counts]:
    """Slides with overdispersed genes of all means, each with genes of its own and in an order of its own."""
    rng = np.random.default_rng(seed)
    level = np.exp(rng.normal(-1.0, 1.6, genes))
    shape = rng.uniform(0.3, 5.0, genes)
    names = np.array([f"G{i:03d}" for i in range(genes)], object)
    names[5], names[9] = "BLANK_3", "NegControlProbe_1"
    made = {}
    for number, n in enumerate(spots):
        values = rng.poisson(rng.gamma(shape, level / shape, (n, genes)))
        order = rng.permutation(genes)[: genes - 20]
        ids = [f"{i}x{number}" for i in range(n)]
        made[f"S{number}"] = make_counts(ids, names[order].tolist(), values[:, order].astype(np.float32))
    return made


def candidates(slides: dict[str, Counts]) -> pd.DataFrame:
    """Counts of all slides, of the genes that can be chosen, by name."""
    frames = [pd.DataFrame(c.matrix.toarray(), columns=list(c.genes)) for c in slides.values()]
    kept = [set(f.columns[(f > 0).sum() >= np.ceil(0.10 * len(f))]) for f in frames]
    common = sorted(set.intersection(*kept))
    common = [g for g in common if "BLANK" not in g and "Control" not in g]
    return pd.concat([f[common] for f in frames]).astype(np.float32)


def plain_panel(slides: dict[str, Counts], number: int) -> list[str]:
    """As the documentation of scanpy's `highly_variable_genes` describes flavour "seurat"."""
    values = np.expm1(np.log1p(candidates(slides))).astype(float)
    table = pd.DataFrame(
        {"mean": np.log1p(values.mean()), "dispersion": np.log(values.var() / values.mean())}
    )
    table["bin"] = pd.cut(table["mean"], bins=20)
    groups = table.groupby("bin", observed=True)["dispersion"]
    score = (table["dispersion"] - groups.transform("mean")) / groups.transform("std")
    score[groups.transform("size") == 1] = 1.0
    score = score.round(9)  # genes of one mean and variance are equal, whatever pandas' sums were rounded to
    least = score.nlargest(number).iloc[-1]
    return score.index[score >= least][:number].tolist()


@pytest.mark.parametrize("seed", range(8))
def test_it_is_the_panel_of_the_text(seed: int) -> None:
    slides = tables(seed)
    assert len(candidates(slides).columns) > 60
    assert list(hest_panel(50, slides)) == plain_panel(slides, 50)


@pytest.mark.parametrize("seed", range(3, 6))
def test_it_is_the_panel_of_scanpy(seed: int) -> None:
    import anndata
    import scanpy

    slides = tables(seed)
    table = anndata.AnnData(candidates(slides).reset_index(drop=True).rename(index=str))
    scanpy.pp.log1p(table)
    scanpy.pp.highly_variable_genes(table, n_top_genes=50)
    assert list(hest_panel(50, slides)) == table.var_names[table.var["highly_variable"]][:50].tolist()


def test_genes_alone_in_their_bin_and_genes_that_do_not_vary() -> None:
    score = normalised_dispersion(np.array([1.0, 1.0, 1.0, 50.0]), np.array([1.0, 4.0, 0.0, 9.0]))
    np.testing.assert_allclose(score, [-np.sqrt(0.5), np.sqrt(0.5), np.nan, 1.0])
    alike = normalised_dispersion(np.full(3, 2.0), np.full(3, 2.0))
    assert np.isnan(alike).all()


def test_of_equals_the_first_by_name_are_taken() -> None:
    """Scanpy marks all that reach the last one's value, and the benchmark cuts that list by name."""
    rng = np.random.default_rng(0)
    columns = [rng.poisson(2.0, 40), rng.poisson(2.0, 40)]
    counts = np.stack([*columns, *columns], axis=1).astype(np.float32) + 1
    slides = {"S": make_counts([f"{i}" for i in range(40)], ["D", "B", "A", "C"], counts)}
    first = hest_panel(2, slides)
    assert first in (("A", "D"), ("B", "C"))
    assert hest_panel(1, slides) == (first[0],)
    assert hest_panel(3, slides) == ("A", "B", "C")


def test_it_is_a_panel_that_can_be_asked_for(tmp_path) -> None:
    slides = tables(0)
    panel = choose_panel("hest:50", slides)
    assert panel.genes == hest_panel(50, slides)
    assert panel.how == "hest:50"
    assert panel.slides == ("S0", "S1", "S2")
    with pytest.raises(
        PanelError, match=r"5000 genes are requested; only \d+ vary and are in 10% or more of the spots"
    ):
        choose_panel("hest:5000", slides)
    with pytest.raises(PanelError, match="number of genes"):
        choose_panel("hest:", slides)
    with pytest.raises(PanelError, match="leave out --gene-set union"):
        choose_panel("hest:50", slides, gene_set="union")
    with pytest.raises(PanelError, match="no training slide"):
        choose_panel("hest:50", {})
    lognorm = {name: replace(counts, values="lognorm") for name, counts in slides.items()}
    with pytest.raises(PanelError, match="hest:50 needs counts"):
        choose_panel("hest:50", lognorm)


def test_spots_that_the_table_lacks_do_not_count() -> None:
    rng = np.random.default_rng(5)
    ids = [f"{i}x0" for i in range(40)]
    counts = make_counts(ids, [f"G{i}" for i in range(30)], rng.poisson(0.3, (40, 30)))
    wider = counts.rows_of([*ids, *(f"{i}x1" for i in range(400))])
    assert hest_panel(5, {"a": wider}) == hest_panel(5, {"a": counts})
