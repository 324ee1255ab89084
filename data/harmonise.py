"""Bringing slides whose tables name genes in two ways to one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from mmap_st.data.counts import Counts, make_counts
from mmap_st.data.genes import naming
from mmap_st.data.spots import some
from mmap_st.errors import PanelError

_ENSEMBL = "Ensembl ids"


def harmonise_genes(tables: Mapping[str, Counts]) -> dict[str, Counts]:
    """Name the genes of all slides in one way; unchanged where they are.

    Where some slides have Ensembl ids and others symbols with ids beside them, all are named by id; genes
    without an id are left out.

    Raises
    ------
    PanelError
        If a slide has symbols alone, and another ids alone.
    """
    named = {name: naming(counts.genes) for name, counts in tables.items()}
    if len(set(named.values())) < 2:
        return dict(tables)
    lacking = [n for n, counts in tables.items() if named[n] != _ENSEMBL and counts.gene_ids is None]
    if lacking:
        by_id = [name for name in tables if named[name] == _ENSEMBL]
        raise PanelError(
            f"slides {some(by_id)} name genes by Ensembl id, {some(lacking)} by symbol and without ids beside"
            " them; use slides that name them alike."
        )
    return {name: c if named[name] == _ENSEMBL else named_by_id(c) for name, c in tables.items()}


def named_by_id(counts: Counts) -> Counts:
    """The same counts, genes named by Ensembl id; those without one left out, those of one id added up."""
    assert counts.gene_ids is not None
    keep = np.array([bool(gene_id) for gene_id in counts.gene_ids])
    ids = [gene_id for gene_id in counts.gene_ids if gene_id]
    renamed = make_counts(counts.ids, ids, counts.matrix[:, np.flatnonzero(keep)], kind=counts.values)
    merged = renamed.merged_genes + counts.merged_genes
    return replace(renamed, merged_genes=merged, gene_ids=renamed.genes, known=counts.known)
