"""What is in a store, line by line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mmap_st.extract.store.magnification import Magnification
from mmap_st.extract.store.reader import FeatureStore
from mmap_st.extract.store.recipe import RANDOM, is_imported
from mmap_st.extract.store.stored_slide import StoredSlide, subgroup
from mmap_st.extract.windows import mpp_key


@dataclass(frozen=True)
class ContentLine:
    """One magnification of one encoder of one slide; a slide without any has one line."""

    slide: str
    patient: str | None
    spots: int
    source_mpp: float | None
    source_mpp_from: str | None
    state: str
    encoder: str | None = None
    mpp: str | None = None
    invalid: int = 0
    prototypes: int = 0


def list_contents(store: FeatureStore) -> Iterator[ContentLine]:
    """List a store, slides and encoders in order of name, finest magnification first."""
    for name in store.slides:
        slide = store.slide(name)
        spots = len(slide.spot_ids()) if slide.has_spots() else 0
        shared = (name, slide.patient, spots, slide.source_mpp, slide.source_mpp_from)
        encoders = slide.encoders()
        if not encoders:
            yield ContentLine(*shared, state="no embeddings")
        for encoder in encoders:
            for magnification in slide.magnifications(encoder):
                state = _state(magnification)
                if str(magnification.recipe["weights_sha256"]).startswith(RANDOM):
                    state += ", random weights"
                if magnification.whole and magnification.tokens:
                    state += f", {magnification.tokens} x {magnification.tokens} tokens"
                if is_imported(magnification.recipe):
                    state += f", imported {magnification.recipe['features']['matched']}"
                yield ContentLine(
                    *shared,
                    state=state,
                    encoder=encoder,
                    mpp=mpp_key(magnification.mpp),
                    invalid=int((~magnification.valid()).sum()) if state.startswith("complete") else 0,
                    prototypes=_prototype_sets(slide, encoder),
                )


def _state(magnification: Magnification) -> str:
    if not magnification.whole:
        return "unfinished, its arrays are missing"
    if magnification.complete:
        return "complete"
    return f"unfinished, {magnification.chunks_done} of {magnification.n_chunks} chunks"


def _prototype_sets(slide: StoredSlide, encoder: str) -> int:
    group = slide.encoder_group(encoder)
    sets = subgroup(group, "prototypes") if group is not None else None
    return 0 if sets is None else len(list(sets.group_keys()))
