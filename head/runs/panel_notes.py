"""The panels of fits, and what to say of genes that a request names and they are made without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from mmap_st.data import (
    AS_GIVEN,
    Counts,
    Fold,
    Panel,
    Split,
    choose_panel,
    harmonise_genes,
    missing_genes,
    normalisation_of,
)
from mmap_st.errors import NormalisationError, PanelError
from mmap_st.extract.store import FeatureStore
from mmap_st.head.runs.request import EvaluationProtocol, FitRequest


def choose_genes(
    store: FeatureStore, request: FitRequest, split: Split, counts: Mapping[str, Counts]
) -> tuple[Panel, str]:
    """The panel of a split and the normalisation of targets.

    The panel is chosen on the training slides, or on all where the protocol says so: it is then in `how`.

    Parameters
    ----------
    counts
        Of the slides of the split and no others, their genes named alike.

    Raises
    ------
    RequestError
        If either is not possible.
    """
    normalisation = _normalisation(request.protocol, normalisation_of(counts))
    chosen_on = slides_to_choose_on(request, split, counts)
    tables = {name: counts[name] for name in chosen_on}
    places = {name: store.slide(name).spot_xy() for name in chosen_on}
    exact = request.protocol.exact_panel
    panel = choose_panel(request.panel, tables, normalisation, request.gene_set, places, exact=exact)
    if not set(panel.slides) <= set(split.train):
        included = ", test included" if split.test else ""
        panel = replace(panel, how=f"{panel.how}, chosen on all slides{included}")
    return panel, normalisation


def _normalisation(protocol: EvaluationProtocol, suits: str) -> str:
    """The normalisation of the protocol, or else the one that suits the tables."""
    if protocol.normalisation is None:
        return suits
    if suits == AS_GIVEN:
        raise NormalisationError(
            f"--protocol {protocol.name} needs counts, and the tables hold log-normalised values."
        )
    return protocol.normalisation


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
