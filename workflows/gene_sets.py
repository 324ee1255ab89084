"""Gene sets as users give them, on the panel of a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

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
    return gene_sets_on_panel(given, panel.genes, panel.gene_ids)
