"""Columns of a matrix: which of them are genes, and their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mmap_st.data.counts import is_ensembl
from mmap_st.data.spots import some
from mmap_st.errors import CountsError

if TYPE_CHECKING:
    from pandas import DataFrame

_GENE_ID_COLUMNS = ("gene_ids", "gene_id", "ensembl_id", "ensembl", "ENSEMBL")
_TYPE_COLUMNS = ("feature_types", "feature_type")
_GENES = frozenset({"gene expression", "gene", "genes", "gex", "rna"})
_UNKNOWN = frozenset({"", "nan", "none", "na", "<na>"})


@dataclass(frozen=True)
class Features:
    """The genes of a matrix.

    Attributes
    ----------
    genes, gene_ids
        Names of the genes, and an Ensembl id for each if the file has them ("" for a gene without).
    columns
        (columns of the matrix,) which of them are genes.
    note
        What was left out; "" where every column is a gene.
    """

    genes: tuple[str, ...]
    gene_ids: tuple[str, ...] | None
    columns: NDArray[np.bool_]
    note: str = ""


def features_of(var: DataFrame) -> Features:
    """The genes of a table of features, such as ``var``.

    Antibodies, guides and control probes are told by the column ``feature_types`` of 10x; a feature whose
    type is missing, as after a concatenation, counts as a gene.

    Raises
    ------
    CountsError
        If none of the features is a gene.
    """
    is_gene, note = _genes_among(var)
    kept = var[is_gene]
    names = tuple(str(name) for name in kept.index)
    column = next((c for c in _GENE_ID_COLUMNS if c in kept.columns), None)
    if column is None:
        return Features(names, None, is_gene, note)
    # After a concatenation missing ids are NaN; and some columns of this name hold NCBI's numbers.
    ids = tuple(text if is_ensembl(text) else "" for text in (str(v).strip() for v in kept[column]))
    return Features(names, ids if any(ids) else None, is_gene, note)


def _genes_among(var: DataFrame) -> tuple[NDArray[np.bool_], str]:
    every = np.ones(len(var), np.bool_)
    column = next((c for c in _TYPE_COLUMNS if c in var.columns), None)
    if column is None:
        return every, ""
    types = [str(value).strip() for value in var[column]]
    known = {word for word in types if word.lower() not in _UNKNOWN}
    others = sorted(word for word in known if word.lower() not in _GENES)
    # Words of another vocabulary ("protein_coding") are no reason to leave anything out.
    captured = [word for word in others if word.lower().endswith(" capture")]
    if len(others) == len(known):
        others = captured
    if not others:
        return every, ""
    is_gene = np.array([word not in others for word in types], np.bool_)
    if not is_gene.any():
        raise CountsError(f"none of its features is a gene: {column} is {some(others)}; give gene counts.")
    left_out = int((~is_gene).sum())
    return is_gene, f"features that are not genes ({some(others)}), left out: {left_out}"
