"""Names of genes: symbols and Ensembl ids."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# ENSG00000000003.15, ENSMUSG00000064372.1, ENSG00000002586.20_PAR_Y.
_ENSEMBL = re.compile(r"(ENS[A-Z]{0,4}[EGTP]\d{11})(\.\d+)?(_PAR_Y)?")


def canonical_gene(name: str) -> str:
    """Without blanks around it and, if it is an Ensembl id, without its version; else as it is."""
    name = name.strip()
    match = _ENSEMBL.fullmatch(name)
    return match[1] if match else name


def is_ensembl(name: str) -> bool:
    """Whether a name is an Ensembl id."""
    return _ENSEMBL.fullmatch(name) is not None


def naming(genes: Iterable[str]) -> str:
    """What most of the names are: ``Ensembl ids`` or ``symbols``."""
    names = list(genes)
    ensembl = sum(map(is_ensembl, names))
    return "Ensembl ids" if ensembl > len(names) / 2 else "symbols"


def in_common(tables: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Genes that every table has, in the order of the first."""
    if not tables:
        return ()
    shared = set(tables[0]).intersection(*tables[1:])
    return tuple(gene for gene in tables[0] if gene in shared)


def in_any(tables: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Genes that any table has, in order of first occurrence."""
    return tuple(dict.fromkeys(gene for table in tables for gene in table))
