"""What to say of genes that a request names and the panels of its fits are made without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from mmap_st.data import Counts, Fold, Split, harmonise_genes, missing_genes
from mmap_st.errors import PanelError
from mmap_st.head.runs.request import FitRequest


def slides_to_choose_on(request: FitRequest, split: Split, names: Iterable[str]) -> tuple[str, ...]:
    """The slides that a panel is chosen on: those of training, or all `names` where the protocol says so."""
    return tuple(names) if request.protocol.panel_on_all_slides else split.train


def notes_on_genes(request: FitRequest, split: Split, counts: Mapping[str, Counts]) -> list[str]:
    """Say which genes are missing on the training slides of a split.

    Parameters
    ----------
    counts
        Of every slide of the split, as they were read; others are not looked at.

    Raises
    ------
    RequestError
        If no panel can be made.
    """
    names = (*split.train, *split.validation, *split.test)
    tables = harmonise_genes({name: counts[name] for name in names})
    chosen_on = slides_to_choose_on(request, split, tables)
    return missing_genes(request.panel, {name: tables[name] for name in chosen_on}, request.gene_set)


def notes_on_folds(request: FitRequest, folds: Sequence[Fold], counts: Mapping[str, Counts]) -> list[str]:
    """Say it of every fold: once where folds agree, else with the names of the folds."""
    folds_of: dict[str, list[str]] = {}
    for fold in folds:
        try:
            notes = notes_on_genes(request, fold.split, counts)
        except PanelError:  # of which the fit of this fold will tell
            continue
        for note in notes:
            folds_of.setdefault(note, []).append(fold.name)
    return [
        note if len(names) == len(folds) else f"fold {', '.join(names)}: {note}"
        for note, names in folds_of.items()
    ]
