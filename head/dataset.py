"""From a store and a cohort to the slides that heads see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mmap_st.data.cohort import Cohort
from mmap_st.data.counts import Counts
from mmap_st.data.normalise import targets
from mmap_st.data.readers import read_counts
from mmap_st.data.splits import Split
from mmap_st.errors import SlideError
from mmap_st.extract.store import FeatureStore
from mmap_st.head.mmap import MmapSettings
from mmap_st.head.slides import HeadSlide
from mmap_st.prototypes.candidates import CandidateSettings
from mmap_st.prototypes.select import select_prototypes, selected_count
from mmap_st.prototypes.stored import read_embeddings, stored_candidates


@dataclass(frozen=True)
class PrototypeSettings:
    """Which candidates a head sees: how they are made, and how many each spot gets (None: half)."""

    candidates: CandidateSettings
    selected: int | None = None


def prototype_settings(settings: Any, seed: int) -> PrototypeSettings | None:
    """The candidates that a head's settings ask for; None where it uses none of a slide's own."""
    if not isinstance(settings, MmapSettings) or settings.prototypes not in ("kmeans", "random"):
        return None
    candidates = CandidateSettings(
        kind=settings.prototypes,
        clusters=settings.clusters,
        # k-means is the same for every seed of a head: only what is drawn at random varies with it.
        seed=seed if settings.prototypes == "random" else 0,
    )
    return PrototypeSettings(candidates, settings.selected)


@dataclass
class Measured:
    """Counts of the slides of a split, in the spot order of the store.

    Attributes
    ----------
    counts
        By slide.
    passed_over
        Why each slide that lacks something was passed over.
    failed
        Why each slide that has a fault was left out.
    """

    counts: dict[str, Counts] = field(default_factory=dict)
    passed_over: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def usable(self, split: Split) -> Split:
        """The split with the slides that can be used."""
        roles = {
            role: tuple(name for name in getattr(split, role) if name in self.counts)
            for role in ("train", "validation", "test")
        }
        return replace(split, **roles)


def measure(cohort: Cohort, store: FeatureStore, split: Split, tell: Callable[[str], None]) -> Measured:
    """Read the counts of every slide of a split that is in the store."""
    measured = Measured()
    for name in (*split.train, *split.validation, *split.test):
        row = cohort[name]
        if row.counts is None:
            measured.passed_over[name] = "the cohort names no counts for it"
        elif not store.has_slide(name):
            measured.passed_over[name] = "it is not in the store"
        else:
            tell(f"reading counts of {name}")
            try:
                measured.counts[name] = read_counts(row).rows_of(store.slide(name).spot_ids())
            except SlideError as error:
                measured.failed[name] = str(error)
    return measured


def load_slide(
    store: FeatureStore,
    name: str,
    encoder: str,
    mpps: Sequence[float],
    *,
    patient: str | None = None,
    prototypes: PrototypeSettings | None = None,
) -> HeadSlide:
    """Read one slide of a store: embeddings and, if asked, candidates (built where they are missing)."""
    stored = store.slide(name)
    embedding, valid = read_embeddings(stored, encoder, mpps)
    extra: dict[str, Any] = {}
    if prototypes is not None:
        candidates, _ = stored_candidates(store, stored, encoder, mpps, prototypes.candidates)
        count = selected_count(len(candidates.size), prototypes.selected)
        extra = {
            "centre": candidates.centre,
            "selected": select_prototypes(embedding, candidates.centre, count),
        }
    return HeadSlide(
        name=name,
        patient=patient if patient is not None else stored.patient,
        ids=stored.spot_ids(),
        xy=stored.spot_xy(),
        embedding=embedding,
        valid=valid,
        **extra,
    )


def with_targets(
    slides: Mapping[str, HeadSlide], counts: Mapping[str, Counts], genes: Sequence[str], normalisation: str
) -> dict[str, HeadSlide]:
    """The slides with their targets on a panel."""
    return {
        name: replace(slide, target=targets(counts[name], genes, normalisation))
        for name, slide in slides.items()
    }
