"""Which features of a Xenium panel are genes; the others are controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmap_st.data.hdf5 import open_hdf5, read_item
from mmap_st.data.readers.annotated import Features, features_of
from mmap_st.data.readers.mtx import read_mtx_features
from mmap_st.data.tables import reading
from mmap_st.errors import CountsError

if TYPE_CHECKING:
    from pandas import DataFrame

#: How the names of controls begin, in lower case; versions before 2 mark them in no other way.
_CONTROLS = (
    "negcontrol", "antisense_", "blank_", "unassignedcodeword", "deprecatedcodeword", "intergenic_region",
    "genomiccontrol",
)  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """Genes that were measured.

    Attributes
    ----------
    genes
        (g,) their names.
    gene_ids
        (g,) an Ensembl id of each, or ""; None where no file has them.
    controls
        Number of features with transcripts that are no genes.
    """

    genes: tuple[str, ...]
    gene_ids: tuple[str, ...] | None
    controls: int


def read_features(matrix: Path) -> Features:
    """The genes of a matrix of cells; its values are not read.

    Raises
    ------
    CountsError
        If it cannot be read, or none of its features is a gene.
    """
    if matrix.is_dir():
        return features_of(read_mtx_features(matrix))
    with reading(matrix, "a matrix of cells", CountsError):
        return features_of(_table_of(matrix))


def panel_of(seen: Mapping[str, bool | None], measured: Features | None) -> Panel:
    """The genes among features that were seen, after those that are known to be measured.

    Parameters
    ----------
    seen
        Whether each feature is a gene, as the transcripts say; None where they do not.
    measured
        The genes of the matrix of cells, of which some may have no transcript; None where there is none.
    """
    known = () if measured is None else tuple(dict.fromkeys(measured.genes))
    among = frozenset(known)

    def is_gene(name: str, said: bool | None) -> bool:
        if said is not None:
            return said
        return name in among if measured is not None else not name.lower().startswith(_CONTROLS)

    genes = [name for name, said in seen.items() if is_gene(name, said)]
    further = sorted(set(genes) - among)
    names = (*known, *further)
    return Panel(names, None if measured is None else _ids_of(names, measured), len(seen) - len(genes))


def _ids_of(names: tuple[str, ...], measured: Features) -> tuple[str, ...] | None:
    """The id of each gene, of two genes of one name that of the first; "" for those that have none."""
    if measured.gene_ids is None:
        return None
    id_of: dict[str, str] = {}
    for name, gene_id in zip(measured.genes, measured.gene_ids, strict=True):
        id_of.setdefault(name, gene_id)
    return tuple(id_of.get(name, "") for name in names)


def _table_of(matrix: Path) -> DataFrame:
    import pandas as pd

    with open_hdf5(matrix) as file:
        features = file["matrix/features"]
        texts = {
            key: [value.decode() for value in read_item(features[key], lambda item: item[:], CountsError)]
            for key in ("name", "id", "feature_type")
        }
    return pd.DataFrame({"gene_ids": texts["id"], "feature_types": texts["feature_type"]}, texts["name"])
