"""Scores of gene sets: how far a spot's predictions of a set's genes lie above those of its slide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmap_st.data import GeneNames, some
from mmap_st.data.tables import duplicates, open_text, reading
from mmap_st.errors import PanelError, agreeing, counted
from mmap_st.files import refuse_special
from mmap_st.head.scoring.running import RunningMoments

if TYPE_CHECKING:
    import anndata

Floats = NDArray[np.float32]

#: Before the name of a set, in ``obs``.
SCORE = "score_"
# An .h5ad file keeps the names of its columns in a header of 64 KB, 16 bytes each.
_MOST_SETS = 4000
# The mean of one gene is that gene.
_FEWEST_GENES = 2
# Predictions that differ less than float32 tells apart do not vary.
_NO_SPREAD = 1e-6


@dataclass(frozen=True)
class GeneSets:
    """Gene sets on a panel.

    Attributes
    ----------
    columns
        Places on the panel of the genes of each set, by name.
    notes
        What to say of sets that have too few genes there.
    """

    columns: Mapping[str, NDArray[np.int64]]
    notes: tuple[str, ...] = ()

    def add_scores(self, table: anndata.AnnData) -> None:
        """Add ``obs["score_NAME"]`` for each set to the prediction of a slide; NaN at spots without one.

        The score is the mean over the set's genes of what was predicted, each gene brought to mean 0 and
        standard deviation 1 over the slide's valid spots. A gene that does not vary there counts 0.
        """
        import pandas as pd

        predicted = np.asarray(table.X, np.float32)
        valid = np.isfinite(predicted).all(axis=1)
        scores = {f"{SCORE}{name}": np.full(len(predicted), np.nan, np.float32) for name in self.columns}
        for score, columns in zip(scores.values(), self.columns.values(), strict=True):
            if valid.any():
                score[valid] = z_scores(predicted[np.ix_(valid, columns)]).mean(axis=1)
        # All at once: one by one, thousands of columns take long.
        table.obs = pd.concat([table.obs, pd.DataFrame(scores, index=table.obs.index)], axis=1)

    @property
    def used(self) -> NDArray[np.int64]:
        """Places on the panel of the genes of all sets, ascending."""
        return np.unique(np.concatenate(list(self.columns.values())))

    def scores_of_block(self, predicted: NDArray[np.float32], moments: RunningMoments) -> dict[str, Floats]:
        """(k,) float32 scores of some spots by column of ``obs``, as `add_scores` gives them.

        Parameters
        ----------
        predicted
            (k, G).
        moments
            Of the genes that are `used`, over all valid spots of the slide.
        """
        valid = np.isfinite(predicted).all(axis=1)
        used = self.used
        spread = moments.spread
        centred = predicted[np.ix_(valid, used)] - moments.mean
        varies = spread > _NO_SPREAD * moments.largest
        scaled = np.divide(centred, spread, out=np.zeros_like(centred), where=varies)
        found = {f"{SCORE}{name}": np.full(len(predicted), np.nan, np.float32) for name in self.columns}
        for score, columns in zip(found.values(), self.columns.values(), strict=True):
            score[valid] = scaled[:, np.searchsorted(used, columns)].mean(axis=1)
        return found


def z_scores(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n, g) each column with mean 0 and standard deviation 1; 0 where it does not vary."""
    centred = values - values.mean(axis=0, dtype=np.float64)
    spread = centred.std(axis=0)
    varies = spread > _NO_SPREAD * np.abs(values).max(axis=0)
    found: NDArray[np.float64] = np.divide(centred, spread, out=np.zeros_like(centred), where=varies)
    return found


def gene_sets_on_panel(
    sets: Path | Mapping[str, Sequence[str]], genes: Sequence[str], gene_ids: Sequence[str] | None = None
) -> GeneSets:
    """Find the genes of sets on a panel.

    Parameters
    ----------
    sets
        A .gmt file, or genes by the name of a set: names or ids.
    genes, gene_ids
        The panel, with an id for each gene, or "".

    Raises
    ------
    PanelError
        If the file cannot be read, no set has two genes on the panel, or more have than a file can hold.
    """
    named = read_gmt(sets) if isinstance(sets, Path) else _checked(sets, "gene_sets")
    known = GeneNames.of_panel(genes, gene_ids)
    place = {gene: index for index, gene in enumerate(genes)}
    found = {
        name: np.array(sorted({place[g] for word in words if (g := known.find(word)) is not None}), np.int64)
        for name, words in named.items()
    }
    few = [name for name, columns in found.items() if len(columns) < _FEWEST_GENES]
    has = agreeing(len(few), "has", "have")
    told = (
        f"{len(few)} of {counted(len(named), 'gene set')} {has} fewer than {_FEWEST_GENES} genes on the panel"
    )
    if len(few) == len(named):
        raise PanelError(
            f"--gene-sets: {told}, so that there is nothing to score; check the gene names, or fit a head"
            " whose --genes names them."
        )
    kept = {name: columns for name, columns in found.items() if len(columns) >= _FEWEST_GENES}
    if len(kept) > _MOST_SETS:
        raise PanelError(
            f"--gene-sets: {len(kept):,} gene sets would be scored, and an .h5ad file holds the scores of"
            f" {_MOST_SETS:,} at most; give fewer."
        )
    return GeneSets(kept, (f"{told} and no score: {some(few)}",) if few else ())


def read_gmt(path: Path) -> dict[str, tuple[str, ...]]:
    """Genes by the name of their set, from a .gmt file: name, description and genes, with tabs between them.

    Raises
    ------
    PanelError
        If it is no such file, or names a set twice.
    """
    refuse_special(path, PanelError, "--gene-sets")
    if not path.is_file():
        raise PanelError(f"--gene-sets {path}: no such file; give a .gmt file.")
    with reading(path, "text", PanelError), open_text(path, PanelError) as text:
        lines = text.read().splitlines()
    names, sets = [], {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, *others = (cell.strip() for cell in line.split("\t"))
        if not name or not others:
            raise PanelError(
                f"{path}, line {number}: a gene set is its name, a description and its genes, with tabs"
                " between them."
            )
        names.append(name)
        sets[name] = tuple(gene for gene in others[1:] if gene)
    if duplicates(names):
        raise PanelError(f"{path} names gene sets more than once: {some(duplicates(names))}; rename one.")
    return _checked(sets, str(path))


def _checked(sets: Mapping[str, Sequence[str]], source: str) -> dict[str, tuple[str, ...]]:
    """Sets by names that a column can have."""
    if not sets:
        raise PanelError(f"{source} has no gene sets.")
    wrong = [name for name, genes in sets.items() if isinstance(genes, str)]
    if wrong:
        raise PanelError(f"{source}: the genes of {wrong[0]} are a text; give a list of names.")
    # In a file's path within HDF5, a slash makes a group.
    columns = {name: name.replace("/", "_") for name in sets}
    if duplicates(list(columns.values())):
        same = [name for name, column in columns.items() if column in duplicates(list(columns.values()))]
        raise PanelError(f"{source}: gene sets would have one column: {some(same)}; rename one.")
    unusable = [name for name, column in columns.items() if not column or not column.isprintable()]
    if unusable:
        raise PanelError(f"{source}: {unusable[0]!r} cannot be the name of a column; rename the gene set.")
    return {columns[name]: tuple(genes) for name, genes in sets.items()}
