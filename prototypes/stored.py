"""Candidates in the feature store: built once for a set of magnifications and settings, then read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from mmap_st.errors import RemoteError, SlideError, SlideLockedError, StoreError, printable
from mmap_st.extract.store import (
    COMPRESSORS,
    DIGESTS,
    PROTOTYPE_ARRAYS,
    Embeddings,
    FeatureStore,
    Publication,
    StoredEmbeddings,
    StoredSlide,
    check_encoder,
    common_magnifications,
    digests_of,
    encode_name,
    lost_slides,
    read_array,
    refuse_read_only,
    slide_lock,
    staying,
    store_errors,
    subgroup,
)
from mmap_st.extract.windows import mpp_key
from mmap_st.files import sha256_of_json
from mmap_st.progress import ProgressCallback
from mmap_st.prototypes.candidates import (
    MAX_SPOTS,
    Candidates,
    CandidateSettings,
    build_candidates,
    device_of_kmeans,
)
from mmap_st.urls import Url

_LOG = logging.getLogger(__name__)
_GROUP = "prototypes"
_KEY_LENGTH = 12
_ALGORITHM_VERSION = 1
_WAIT_S = 10.0
#: Of a store that is only read, candidates that are kept in memory: one slide's take about a megabyte.
_MOST_KEPT = 64
_kept: WeakKeyDictionary[FeatureStore, dict[tuple[str, str, str], Candidates]] = WeakKeyDictionary()


def stored_embeddings(
    slide: StoredSlide, encoder: str, mpps: Sequence[float]
) -> tuple[StoredEmbeddings, NDArray[np.bool_]]:
    """Return a slide's embeddings at `mpps`, read when they are indexed, and which spots are valid.

    Returns
    -------
    (n, M, d) float32 embeddings, and (n,) bool: whether all windows of a spot could be read.

    Raises
    ------
    StoreError
        If a magnification is not complete.
    """
    complete = slide.complete(encoder)
    missing = [mpp_key(mpp) for mpp in mpps if mpp not in complete]
    if missing:
        raise StoreError(f"slide {slide.name}: {encoder} is not complete at {', '.join(missing)} um/px.")
    valid = np.logical_and.reduce([complete[mpp].valid() for mpp in mpps])
    return StoredEmbeddings([complete[mpp] for mpp in mpps]), valid


def candidate_key(
    slide: StoredSlide, encoder: str, mpps: Sequence[float], settings: CandidateSettings
) -> tuple[str, dict[str, Any]]:
    """Return the key of a set of candidates in the store, and the settings that are hashed in it."""
    complete = slide.complete(encoder)
    full = {
        **asdict(settings),
        "algorithm_version": _ALGORITHM_VERSION,
        "embeddings": {mpp_key(mpp): complete[mpp].recipe_sha256 for mpp in mpps},
    }
    if len(complete[mpps[0]].valid()) > MAX_SPOTS:  # the keys of smaller slides do not change
        full["most_spots"] = MAX_SPOTS
    return sha256_of_json(full)[:_KEY_LENGTH], full


def stored_candidates(
    store: FeatureStore,
    slide: StoredSlide,
    encoder: str,
    mpps: Sequence[float],
    settings: CandidateSettings,
    embedding: Embeddings | None = None,
) -> tuple[Candidates, bool]:
    """Read a slide's candidates; build and store them if the store does not have them.

    Those that a store lacks which cannot be written to are built for as long as the store is open.

    Parameters
    ----------
    embedding
        (n, M, d) of the slide at `mpps`, to build from; None: those of the store.

    Returns
    -------
    The candidates, and whether they were built by this call.
    """
    key, full = candidate_key(slide, encoder, mpps, settings)
    found = _read(slide, encoder, key) or _kept.get(store, {}).get((slide.name, encoder, key))
    if found is not None:
        return found, False
    stored, valid = stored_embeddings(slide, encoder, mpps)
    if not valid.any():
        raise StoreError(
            f"slide {slide.name} has no spot with a valid embedding of {encoder}; extract it again, or leave"
            " it out."
        )
    candidates = build_candidates(stored if embedding is None else embedding, valid, settings)
    if isinstance(store.path, Url):
        _publish(store, slide.name, encoder, key, full, candidates)
        return candidates, True
    if store.packed:
        _keep(store, (slide.name, encoder, key), candidates)
        return candidates, True
    writable = FeatureStore.open(store.path, writable=True)
    # Another run may be building the same candidates: wait for it, and read what it wrote.
    try:
        with slide_lock(store.folder, encode_name(slide.name), wait_s=_WAIT_S):
            found = _read(writable.slide(slide.name), encoder, key)
            if found is not None:
                return found, False
            with store_errors(store.path):
                _write(writable, slide.name, encoder, key, full, candidates)
    except SlideLockedError as error:
        # By a long extraction of another encoder, for example. They are built again when next needed.
        _LOG.warning("slide %s: prototypes are used without being stored; %s", printable(slide.name), error)
    return candidates, True


def _publish(
    store: FeatureStore, slide: str, encoder: str, key: str, full: Mapping[str, Any], candidates: Candidates
) -> None:
    """Publish candidates to a store in a bucket; where it refuses that, keep them."""
    assert isinstance(store.path, Url)

    def write(local: FeatureStore) -> str:
        return _write(local, slide, encoder, key, full, candidates)

    try:
        Publication.of(store.path, None).publish_group(slide, write)
    except (RemoteError, SlideLockedError) as error:
        _LOG.info("slide %s: prototypes are not published; %s", printable(slide), error)
        _keep(store, (slide, encoder, key), candidates)
    else:
        store.refresh(slide)


def _keep(store: FeatureStore, place: tuple[str, str, str], candidates: Candidates) -> None:
    """Keep candidates that cannot be stored; the first of a store that cannot is said."""
    if store not in _kept:
        lacks = "without the prototypes that are needed, which every run builds again"
        if store.packed:
            lacks = f"packed {lacks}; `mmap prototypes` before `mmap pack` stores them"
        else:
            lacks = f"published {lacks}"
        _LOG.warning("%s is %s", printable(str(store.path)), printable(lacks))
    kept = _kept.setdefault(store, {})
    if len(kept) < _MOST_KEPT:
        kept[place] = candidates


def candidates_in(slide: StoredSlide) -> dict[str, Candidates]:
    """All candidates that a slide has in its store, by what they are of, such as ``uni at 0.5, 1 um/px``.

    Nothing is built; what is damaged is left out, and logged.
    """
    found: dict[str, Candidates] = {}
    for encoder in slide.undamaged_encoders():
        parent = slide.encoder_group(encoder)
        group = None if parent is None else subgroup(parent, _GROUP)
        for key in sorted(() if group is None else group.group_keys()):
            candidates = _read(slide, encoder, key)
            if group is not None and candidates is not None:
                title = f"{encoder}{_made_from(group[key].attrs.get('settings'))}"
                again = sum(name == title or name.startswith(f"{title} (") for name in found)
                found[f"{title} ({again + 1})" if again else title] = candidates
    return found


def _made_from(settings: object) -> str:
    """The magnifications of candidates, and their kind where it is not the usual."""
    if not isinstance(settings, Mapping) or not isinstance(settings.get("embeddings"), Mapping):
        return ""
    mpps = ", ".join(sorted((f"{float(mpp):g}" for mpp in settings["embeddings"]), key=float))
    kind = settings.get("kind", "kmeans")
    return f" at {mpps} um/px" + ("" if kind == "kmeans" else f", {kind}")


@dataclass
class BuildReport:
    """What was built.

    Attributes
    ----------
    built
        By slide, the number K of its candidates and whether this run built them.
    skipped
        Number of slides without embeddings of the encoder.
    failed
        Why each slide that failed did.
    """

    built: dict[str, tuple[int, bool]] = field(default_factory=dict)
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def build_all(
    store: FeatureStore,
    encoder: str,
    mpps: Sequence[float] | None,
    settings: CandidateSettings,
    progress: ProgressCallback = lambda text: None,
) -> BuildReport:
    """Build the candidates of every slide that has embeddings of the encoder.

    Without `mpps`, the magnifications are those that are complete on all of these slides.
    """
    if store.packed:
        refuse_read_only(store.path)
    check_encoder(store, encoder)
    report, embedded = BuildReport(), []
    for name in store.slides:
        try:
            slide = store.slide(name)
            if slide.complete(encoder):
                embedded.append(slide)
            else:
                report.skipped += 1
        except StoreError as error:
            report.failed[name] = str(error)
    chosen = common_magnifications(embedded, encoder, mpps)
    for slide in embedded:
        progress(f"prototypes of {slide.name}")
        try:
            with staying(store.path, [slide.name], encoder, chosen):
                candidates, new = stored_candidates(store, slide, encoder, chosen, settings)
        except (SlideError, StoreError) as error:
            report.failed[slide.name] = str(error)
        else:
            report.built[slide.name] = (len(candidates.size), new)
    lost = lost_slides(store.path, report.built, encoder, chosen)
    report.failed |= lost
    report.built = {name: built for name, built in report.built.items() if name not in lost}
    return report


def _read(slide: StoredSlide, encoder: str, key: str) -> Candidates | None:
    """Candidates of the store; None where there are none, or what is there is damaged."""
    parent = slide.encoder_group(encoder)
    try:
        group = subgroup(parent, f"{_GROUP}/{key}") if parent is not None else None
        if group is None or group.attrs.get("complete") is not True:
            return None
        found = Candidates(**{name: read_array(group, name) for name in PROTOTYPE_ARRAYS})
    except StoreError as error:
        _LOG.warning("slide %s: prototypes are built again; %s", printable(slide.name), error)
        return None
    k, n = len(found.size), len(slide)
    shapes = (found.centre.shape[:1], found.medoid.shape, found.label.shape)
    if shapes != ((k,), (k,), (n,)) or found.label.max(initial=-1) >= k or found.medoid.max(initial=-1) >= n:
        _LOG.warning(
            "slide %s: prototypes are built again; those of the store are damaged", printable(slide.name)
        )
        return None
    return found


def _write(
    store: FeatureStore,
    slide: str,
    encoder: str,
    key: str,
    settings: Mapping[str, Any],
    candidates: Candidates,
) -> str:
    """Write candidates; returns the path of their group."""
    parent = store.require_group(slide, encode_name(encoder), _GROUP)
    group = parent.create_group(key, overwrite=True)
    for name in PROTOTYPE_ARRAYS:
        group.create_array(name, data=getattr(candidates, name), compressors=COMPRESSORS)
    published: dict[str, Any] = {DIGESTS: digests_of(group, PROTOTYPE_ARRAYS), "complete": True}
    group.update_attributes({"settings": dict(settings), "made_by": device_of_kmeans(), **published})
    return f"{encode_name(slide)}/{group.path}"
