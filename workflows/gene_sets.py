"""Gene sets as users give them, on the panel of a head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from mmap_st.errors import PanelError
from mmap_st.head.runs import PanelCard
from mmap_st.head.scoring import GeneSets, gene_sets_on_panel

#: A .gmt file, or genes by the name of a set.
GeneSetsLike: TypeAlias = str | Path | Mapping[str, Sequence[str]]


def gene_sets_of(gene_sets: GeneSetsLike | None, panel: PanelCard) -> GeneSets | None:
    """The sets on a panel.

    Raises
    ------
    PanelError
        If they cannot be read, or none has enough genes.
    """
    if gene_sets is None:
        return None
    given = Path(gene_sets) if isinstance(gene_sets, str | Path) else gene_sets
    if not isinstance(given, Path):
        _check_names(given)
    return gene_sets_on_panel(given, panel.genes, panel.gene_ids)


def _check_names(sets: Mapping[str, Sequence[str]]) -> None:
    """Refuse what is no mapping from names of sets to lists of names of genes."""
    if not isinstance(sets, Mapping):
        raise PanelError(f"gene_sets is {type(sets).__name__}: give a .gmt file, or lists of genes by name.")
    for name, genes in sets.items():
        if not isinstance(name, str):
            raise PanelError(f"gene_sets: {name!r} is no name of a set; names are text.")
        if isinstance(genes, str) or not isinstance(genes, Iterable):
            raise PanelError(f"gene_sets: the genes of {name} are no list; give a list of names.")
        wrong = [gene for gene in genes if not isinstance(gene, str)]
        if wrong:
            raise PanelError(f"gene_sets: {wrong[0]!r} in {name} is no name of a gene; names are text.")
