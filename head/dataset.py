"""Build the input slides of heads from a store and a cohort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from mmap_st.data import (
    Cohort,
    CohortSlide,
    Counts,
    Split,
    gene_naming,
    known_patient,
    named_by_id,
    some,
    split_of,
    targets_from_counts,
)
from mmap_st.data.readers import read_counts
from mmap_st.errors import CountsError, DamagedSlideError, HeadError, RequestError, SlideError, StoreError
from mmap_st.extract.store import (
    FeatureStore,
    StoredSlide,
    StoredTokens,
    check_encoder,
    common_magnifications,
    note_unsealed,
)
from mmap_st.extract.windows import mpp_key
from mmap_st.head.inputs import MAX_BYTES, HeadSlide, RowCache
from mmap_st.head.interface import HeadMethod
from mmap_st.head.mmap import MmapSettings
from mmap_st.progress import ProgressCallback
from mmap_st.prototypes import (
    CandidateSettings,
    select_prototypes,
    selected_count,
    stored_candidates,
    stored_embeddings,
)


@dataclass(frozen=True)
class PrototypeSettings:
    """How prototype candidates are made, and how many are selected for each spot (None: half of them)."""

    candidates: CandidateSettings
    selected: int | None = None


def prototype_settings(settings: Any, seed: int) -> PrototypeSettings | None:
    """The candidates that a head's settings call for; None where it uses no candidates of the slides."""
    if not isinstance(settings, MmapSettings) or settings.prototypes not in ("kmeans", "random"):
        return None
    candidates = CandidateSettings(
        kind=settings.prototypes,
        clusters=settings.clusters,
        # k-means is the same for every seed of a head: only candidates drawn at random vary with it.
        seed=seed if settings.prototypes == "random" else 0,
    )
    return PrototypeSettings(candidates, settings.selected)


@dataclass
class CohortCounts:
    """Counts of the slides of a cohort, in the spot order of the store.

    Attributes
    ----------
    counts
        By slide.
    skipped
        Why each slide without counts or embeddings was skipped.
    failed
        Why each slide whose counts could not be read was left out.
    """

    counts: dict[str, Counts] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def usable(self, cohort: Cohort, split: Split) -> Split:
        """The split without the slides that have no counts here."""

        def usable(names: Sequence[str]) -> tuple[str, ...]:
            return tuple(name for name in names if name in self.counts)

        train, validation, test = usable(split.train), usable(split.validation), usable(split.test)
        return split_of(cohort, train, validation, test)


def read_cohort_counts(
    cohort: Cohort,
    store: FeatureStore,
    names: Sequence[str],
    encoder: str,
    mpps: Sequence[float] | None,
    progress: ProgressCallback,
) -> CohortCounts:
    """Read the counts of every slide of `names` that is embedded; the others are skipped.

    Parameters
    ----------
    encoder
        Name of an encoder in the store, or several with commas between them: a slide must have all.
    mpps
        Magnifications, at least one of which a slide must have; None: any.
    """
    found = CohortCounts()
    encoders = encoders_of(encoder, store)
    for name in names:
        row = cohort[name]
        try:
            missing = "the cohort names no counts for it" if row.counts is None else None
            missing = missing or missing_embeddings_reason(store, name, encoders, mpps)
            if missing:
                found.skipped[name] = missing
                continue
            progress(f"reading counts of {name}")
            slide = store.slide(name)
            for one in encoders:
                slide.verify(one, mpps)
            found.counts[name] = counts_of_spots(row, slide.spot_ids())
        except SlideError as error:
            found.failed[name] = str(error)
    for one in encoders:
        note_unsealed(store, list(found.counts), one)
    return found


def encoders_of(names: str, store: FeatureStore) -> tuple[str, ...]:
    """The encoders that a request names: one, or several with commas between them.

    A name with a comma that the store has is that of one encoder.

    Raises
    ------
    RequestError
        If a name is empty, or there twice.
    """
    if "," not in names or _is_stored(names, store):
        return (names,)
    found = tuple(name.strip() for name in names.split(","))
    if not all(found):
        raise RequestError(f"--encoder {names}: a name is empty; give names with a comma between them.")
    if len(set(found)) < len(found):
        raise RequestError(f"--encoder {names}: name each encoder once.")
    return found


def _is_stored(encoder: str, store: FeatureStore) -> bool:
    """Whether a slide has something of an encoder; whoever uses a damaged slide learns that it is."""
    for name in store.slides:
        with suppress(StoreError):
            if store.slide(name).encoder_group(encoder) is not None:
                return True
    return False


def check_encoders(store: FeatureStore, encoders: Sequence[str]) -> None:
    """Refuse encoders that no slide of a store has, see `check_encoder`."""
    for encoder in encoders:
        check_encoder(store, encoder)


def magnifications_of_all(
    slides: Sequence[StoredSlide], encoders: Sequence[str], wanted: Sequence[float] | None
) -> tuple[float, ...]:
    """Magnifications that slides have for each of some encoders, finest first.

    Raises
    ------
    RequestError
        If there are none, or a wanted one is not complete.
    """
    first, *others = (common_magnifications(slides, encoder, wanted) for encoder in encoders)
    found = tuple(mpp for mpp in first if all(mpp in other for other in others))
    if not found:
        raise RequestError(
            f"no magnification is complete for all of {', '.join(encoders)} on every slide; extract what is"
            " missing, or name fewer encoders."
        )
    return found


def missing_embeddings_reason(
    store: FeatureStore, name: str, encoders: Sequence[str], mpps: Sequence[float] | None
) -> str | None:
    """Why a slide has none of the requested embeddings of some of these encoders; None if it has all."""
    reasons = (missing_embedding_reason(store, name, encoder, mpps) for encoder in encoders)
    return "; ".join(dict.fromkeys(reason for reason in reasons if reason)) or None


def missing_embedding_reason(
    store: FeatureStore, name: str, encoder: str, mpps: Sequence[float] | None
) -> str | None:
    """Why a slide has none of the requested embeddings; None if it has some."""
    if not store.has_slide(name) or not store.slide(name).has_spots():
        return "it is not in the store"
    complete = store.slide(name).complete(encoder).keys()
    if complete & set(mpps or complete):
        return None
    where = f" at {', '.join(map(mpp_key, mpps))} um/px" if mpps else ""
    return f"{encoder} is not complete on it{where}"


def with_stored_patients(cohort: Cohort, store: FeatureStore) -> Cohort:
    """Fill in the patients that the cohort leaves empty from the store."""

    def patient(row: CohortSlide) -> str | None:
        if row.patient is not None or not store.has_slide(row.slide):
            return row.patient
        try:
            return known_patient(store.slide(row.slide).patient)
        except DamagedSlideError:
            return None  # whoever uses the slide learns that it is damaged

    return replace(cohort, slides=tuple(replace(row, patient=patient(row)) for row in cohort.slides))


def row_cache(
    store: FeatureStore, names: Sequence[str], encoders: Sequence[str], mpps: Sequence[float]
) -> RowCache:
    """Memory for the embeddings of these slides; none where less than half of them would have room.

    What is read several times is read from the store then anyway, and a cohort of that size needs the memory.
    """
    size = 0
    for name in names:
        slide = store.slide(name)
        for encoder in encoders:
            complete = slide.complete(encoder)
            size += sum(4 * len(slide) * complete[mpp].width for mpp in mpps)
    return RowCache(MAX_BYTES if size <= 2 * MAX_BYTES else 0)


def counts_of_spots(row: CohortSlide, ids: tuple[str, ...]) -> Counts:
    """Counts of a slide in the order of its spots.

    Raises
    ------
    CountsError
        If the count table is of other spots.
    """
    return _counts_of(row, ids).rows_of(ids)


def _counts_of(row: CohortSlide, ids: tuple[str, ...]) -> Counts:
    counts = read_counts(row)
    if not set(ids) & set(counts.ids):
        raise CountsError(
            f"no spot of the store (such as {some(ids)}) is in {row.counts} (such as {some(counts.ids)});"
            " check that they belong together."
        )
    return counts


def counts_on_panel(row: CohortSlide, ids: tuple[str, ...], panel: Sequence[str]) -> Counts:
    """Counts of a slide in the order of its spots, genes named as those of a trained head's panel are.

    Raises
    ------
    CountsError
        If the count table is of other spots, or has none of the genes.
    """
    counts = _counts_of(row, ids).in_order(ids)
    if gene_naming(panel) != gene_naming(counts.genes) and counts.gene_ids is not None:
        counts = named_by_id(counts)
    if not set(panel) & set(counts.genes):
        raise CountsError(
            f"{row.counts} has none of the head's genes (such as {some(panel)}), but {some(counts.genes)};"
            " check that genes are named alike, or leave the counts out to predict the slide without measured"
            " values."
        )
    return counts


def check_tokens(
    slides: Sequence[StoredSlide], encoder: str, mpps: Sequence[float], method: HeadMethod
) -> int:
    """Refuse slides without the tokens that a head needs, and slides whose grids differ.

    Returns
    -------
    Side g of the grids; 0 if the head does not use tokens.

    Raises
    ------
    HeadError
        If a slide cannot be used; it names the first, and what to do.
    """
    if not method.tokens:
        return 0
    side = 0
    for slide in slides:
        for mpp in mpps:
            found = slide.complete(encoder)[mpp].tokens
            what = f"tokens of {encoder} at {mpp_key(mpp)} um/px"
            if not found:
                raise HeadError(
                    f"the head {method.name} needs {what}, and slide {slide.name} has none; run"
                    f" `mmap extract ... --encoder {encoder} --tokens 4` into a new store, or into this one"
                    " with --overwrite."
                )
            side = side or found
            if found != side:
                raise HeadError(
                    f"slide {slide.name} has {found} x {found} {what}, and slide {slides[0].name} has"
                    f" {side} x {side}; extract them alike, with --overwrite."
                )
    return side


def load_slide(
    store: FeatureStore,
    name: str,
    encoder: str,
    mpps: Sequence[float],
    *,
    patient: str | None = None,
    prototypes: PrototypeSettings | None = None,
    tokens: bool = False,
    cache: RowCache | None = None,
) -> HeadSlide:
    """Load one slide of a store; its embeddings and tokens are read when they are indexed.

    Parameters
    ----------
    patient
        None: that of the store.
    prototypes
        Candidates to load, built if the store does not have them; None: none.
    tokens
        Whether to load the grids of tokens.
    cache
        Holds the rows that are read, for all slides of a fit; None: rows are read each time.
    """
    stored = store.slide(name)
    rows, valid = stored_embeddings(stored, encoder, mpps)
    embedding = rows if cache is None else cache.of(rows)
    extra: dict[str, Any] = {}
    if prototypes is not None:
        candidates, _ = stored_candidates(store, stored, encoder, mpps, prototypes.candidates, embedding)
        count = selected_count(len(candidates.size), prototypes.selected)
        extra = {
            "centre": candidates.centre,
            "selected": select_prototypes(embedding, candidates.centre, count),
        }
    if tokens:
        complete = stored.complete(encoder)
        grids = StoredTokens([complete[mpp] for mpp in mpps])
        extra["tokens"] = grids if cache is None else cache.of(grids)
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
    """Add to each slide its targets on a panel and, of counts, the library sizes of its spots."""
    return {
        name: replace(
            slide,
            target=targets_from_counts(counts[name], genes, normalisation, slide.xy),
            library=counts[name].library if counts[name].values == "counts" else None,
        )
        for name, slide in slides.items()
    }
