"""What a store holds, line by line; and whether it can be read as it was written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import zarr

from mmap_st.errors import StoreError, counted
from mmap_st.extract.store.integrity import DIGESTS, digests_of, has_digests
from mmap_st.extract.store.magnification import Magnification
from mmap_st.extract.store.nodes import subgroup
from mmap_st.extract.store.reader import FeatureStore, store_errors
from mmap_st.extract.store.recipe import RANDOM, encode_name, enlargement, is_imported, matched_by
from mmap_st.extract.store.soundness import PROTOTYPE_ARRAYS, prototype_sets, verify_prototypes
from mmap_st.extract.store.storage import refuse_read_only
from mmap_st.extract.store.stored_slide import SPOT_ARRAYS, StoredSlide
from mmap_st.extract.store.writing import slide_lock
from mmap_st.extract.windows import mpp_key

DAMAGED = "damaged"


@dataclass(frozen=True)
class ContentLine:
    """One magnification of one encoder of one slide; a slide without any has one line.

    Attributes
    ----------
    problem
        What is damaged; empty where nothing is known to be.
    """

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
    problem: str = ""


def list_contents(store: FeatureStore, *, verify: bool = False, seal: bool = False) -> Iterator[ContentLine]:
    """List a store, slides and encoders in order of name, finest magnification first.

    Parameters
    ----------
    verify
        Read everything, and compare it with what was written where the store has check sums.
    seal
        With `verify`: add digests where an earlier version of the program wrote none.

    Raises
    ------
    StoreError
        If the store as a whole cannot be read or, with `seal`, written to.
    """
    if seal:
        refuse_read_only(store.path)
    for name in store.slides:
        try:
            slide = store.slide(name)
            if verify:
                with store_errors(store.path):
                    _verify_slide(store, slide, seal)
            spots = len(slide) if slide.has_spots() else 0
            encoders = slide.encoders()
        except StoreError as error:
            yield ContentLine(name, None, 0, None, None, state=DAMAGED, problem=str(error))
            continue
        shared = (name, slide.patient, spots, slide.source_mpp, slide.source_mpp_from)
        if not encoders:
            yield ContentLine(*shared, state="no embeddings")
        for encoder in encoders:
            try:
                yield from _lines(store, slide, encoder, shared, verify, seal)
            except StoreError as error:
                yield ContentLine(*shared, state=DAMAGED, encoder=encoder, problem=str(error))


def _verify_slide(store: FeatureStore, slide: StoredSlide, seal: bool) -> None:
    if not slide.has_spots():
        return
    slide.spot_ids(), slide.spot_xy()
    if not seal:
        return
    group = store.require_group(slide.name) if "sha256" not in slide.group.attrs else None
    if group is not None:
        with slide_lock(store.folder, encode_name(slide.name)):
            group.attrs["sha256"] = slide.sha256
    _seal(store, slide, subgroup(slide.group, "spots"), SPOT_ARRAYS)


def _lines(
    store: FeatureStore,
    slide: StoredSlide,
    encoder: str,
    shared: tuple[str, str | None, int, float | None, str | None],
    verify: bool,
    seal: bool,
) -> Iterator[ContentLine]:
    sets = _prototype_sets(slide, encoder)
    problem = ""
    if verify:
        try:
            for group in sets:
                _verify_prototypes(store, slide, group, seal)
        except StoreError as error:
            problem = str(error)
    for magnification in slide.magnifications(encoder):
        state, invalid = _state(magnification), 0
        try:
            if magnification.complete:
                if verify:
                    with store_errors(store.path):
                        magnification.verify()
                        if seal:
                            _seal(store, slide, magnification.group, magnification.arrays)
                    state += _verified(magnification.group, sealed=seal)
                invalid = magnification.invalid
        except StoreError as error:
            state, problem = DAMAGED, str(error)
        yield ContentLine(
            *shared,
            state=state,
            encoder=encoder,
            mpp=mpp_key(magnification.mpp),
            invalid=invalid,
            prototypes=len(sets),
            problem=problem,
        )
        problem = ""


def _verified(group: zarr.Group, *, sealed: bool) -> str:
    if has_digests(group):
        return ", verified"
    return ", sealed" if sealed else ", read (no check sums)"


def _verify_prototypes(store: FeatureStore, slide: StoredSlide, group: zarr.Group, seal: bool) -> None:
    if group.attrs.get("complete") is not True:
        return
    verify_prototypes(group)
    if seal:
        _seal(store, slide, group, PROTOTYPE_ARRAYS)


def _seal(store: FeatureStore, slide: StoredSlide, group: zarr.Group | None, names: tuple[str, ...]) -> None:
    """Publish digests of a group that has none."""
    if group is None or has_digests(group):
        return
    with slide_lock(store.folder, encode_name(slide.name)):
        writable = FeatureStore.open(store.folder, writable=True)
        there = writable.root[group.path]
        assert isinstance(there, zarr.Group)
        there.attrs[DIGESTS] = digests_of(there, names)


def _state(magnification: Magnification) -> str:
    if not magnification.whole:
        state = "unfinished, its arrays are missing"
    elif magnification.complete:
        state = "complete"
    else:
        state = f"unfinished, {magnification.chunks_done} of {counted(magnification.n_chunks, 'chunk')}"
    if str(magnification.recipe.get("weights_sha256")).startswith(RANDOM):
        state += ", random weights"
    if magnification.whole and magnification.tokens:
        state += f", {magnification.tokens} x {magnification.tokens} tokens"
    if is_imported(magnification.recipe):
        state += f", imported {matched_by(magnification.recipe)}"
    if (times := enlargement(magnification.recipe)) is not None:
        state += f", enlarged {times:.2g} times"
    return state


def _prototype_sets(slide: StoredSlide, encoder: str) -> list[zarr.Group]:
    group = slide.encoder_group(encoder)
    return [] if group is None else prototype_sets(group)
