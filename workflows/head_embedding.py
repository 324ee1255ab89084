"""Slides straight to predictions: embed them as a trained head's own slides were embedded."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmap_st.data import Cohort, CohortSlide
from mmap_st.data.readers import (
    IMAGE_SUFFIXES,
    READERS,
    CohortSource,
    is_slide_folder,
    open_cohort,
    read_spots,
    stem_of,
)
from mmap_st.errors import (
    EncoderError,
    RecipeMismatchError,
    RequestError,
    SlidesFailedError,
    agreeing,
    counted,
    printable,
)
from mmap_st.extract.encoders import EncoderSpec
from mmap_st.extract.engine import (
    EncoderRequest,
    ExtractOptions,
    ExtractReport,
    check_encoder,
    extract_cohort,
)
from mmap_st.extract.slides import GridRequest, known_mpps, parse_grid
from mmap_st.extract.store import RANDOM, FeatureStore, differences, is_imported, is_packed_store, is_store
from mmap_st.head.runs import HeadCard, SavedHead, nominal_pitch
from mmap_st.object_stores import check_obstore
from mmap_st.urls import Url, url_of
from mmap_st.workflows.arguments import Encoders, check_store_out, encoders_by_name, read_cohort, spec_of
from mmap_st.workflows.cohort_scale import MPP_RANGE, SAME_MPP, image_mpp
from mmap_st.workflows.display import show_progress
from mmap_st.workflows.embedding import stop_on_signals

_LOG = logging.getLogger(__name__)
_TABLES = (".csv", ".parquet")


@dataclass(frozen=True)
class EmbeddingOptions:
    """How slides are embedded for a head; what is not given is as `embed` chooses it.

    Attributes
    ----------
    spots
        Grid of slides that have no spots; None: square, as far apart as the head's training spots were.
    encoder
        The head's encoders, where they are your own files: ``FILE.py:FUNCTION``.
    weights
        Of the head's encoder, where it has one only.
    source_mpp
        Micrometres per pixel of slides that do not state it; the others keep theirs.
    """

    spots: str | None = None
    encoder: Encoders | None = None
    weights: str | Path | None = None
    source_mpp: float | None = None
    trust_remote_code: bool = False
    device: str = "auto"
    precision: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    unchecked: bool = False
    enlarge: bool = False

    def given(self) -> list[str]:
        """Names of the options that are not their defaults."""
        defaults = vars(EmbeddingOptions())
        return [name for name, value in vars(self).items() if value != defaults[name]]


def cohort_of_slides(source: CohortSource | FeatureStore) -> Cohort | None:
    """The slides that a source names; None where it is a feature store.

    Parameters
    ----------
    source
        A slide, a folder of slides, a cohort in any form, or a feature store. A folder that is a Zarr group
        is a store, unless it is an image (OME-Zarr); any other holds images.

    Raises
    ------
    RequestError
        If there is no such file or folder.
    CohortError
        If it holds no slides, or a row cannot be used.
    """
    if isinstance(source, FeatureStore):
        return None
    if not isinstance(source, str | Path):
        return read_cohort(source)
    if (url := url_of(source)) is not None:
        return _slides_at(url)
    text, path = str(source), Path(source)
    if text.partition(":")[0] in READERS and ":" in text:
        return read_cohort(text)
    if not path.exists():
        raise RequestError(
            f"{text} is not a feature store, a slide, a folder of slides or a cohort: it does not exist."
        )
    if path.suffix.lower() in _TABLES and path.is_file():
        return read_cohort(path)
    if is_packed_store(path):
        return None
    if path.is_dir() and any((path / name).exists() for name in ("zarr.json", ".zgroup")):
        return open_cohort(f"images:{path}") if is_slide_folder(path) else None
    return open_cohort(f"images:{path}")


def _slides_at(url: Url) -> Cohort | None:
    """The slides of a URL: those of a cohort file, or one image; None where it is a feature store."""
    if is_store(url):
        return None
    if Path(url.name).suffix.lower() in _TABLES:
        return read_cohort(str(url))
    name = stem_of(url.name, (*IMAGE_SUFFIXES, ".ome.tif", ".ome.tiff"))
    if name is None:
        raise RequestError(
            f"{url} is no feature store, and does not have the name of a slide or of a cohort file; name one"
            " of these, or write a cohort file with the URLs of slides."
        )
    check_obstore(url)
    return Cohort((CohortSlide(name, image=url),), str(url))


def embed_for_head(
    saved: SavedHead, slides: Cohort, store: Path, options: EmbeddingOptions, *, progress: bool = True
) -> list[ExtractReport]:
    """Embed slides with the encoders, weights and magnifications that a head was trained on.

    Parameters
    ----------
    saved
        The head.
    slides
        What to embed. Slides without spots get a grid on their tissue.
    store
        Feature store that the embeddings go to; made where there is none. What it has is not done again.

    Returns
    -------
    What was done, for each encoder.

    Raises
    ------
    RequestError
        If nothing can be done: an encoder cannot be had, or is not the one of the head.
    StoppedError
        If Ctrl-C or SIGTERM stopped it; what is finished is saved, and the same call resumes from there.
    """
    cards = saved.card.by_encoder
    if options.weights is not None and len(cards) > 1:
        raise RequestError(
            f"--weights is for a head of one encoder, and this one has {saved.encoder}; name the weights of"
            " each in the configuration (`mmap encoders`)."
        )
    own = encoders_by_name(options.encoder)
    if others := sorted(own.keys() - {card.encoder_name for card in cards}):
        raise RequestError(
            f"--encoder {printable(others[0])}: the head was trained on {printable(saved.encoder)}; leave"
            " --encoder out, or give that one."
        )
    specs = [_spec_of(card, own) for card in cards]
    slides = _with_mpp(slides, options.source_mpp)
    grid = _grid_of(saved, slides, options.spots)
    check_store_out(store)
    requests = [_request(card, spec, options) for card, spec in zip(cards, specs, strict=True)]
    how = ExtractOptions(
        options.batch_size, options.workers, unchecked=options.unchecked, enlarge=options.enlarge
    )
    # Hours may lie between the first encoder and the next, whose weights may not be there.
    for request in requests[1:]:
        check_encoder(request, how)
    reports = []
    for card, request in zip(cards, requests, strict=True):
        with show_progress(progress) as display, stop_on_signals() as stop:
            display(f"preparing {request.spec.name}")
            reports.append(
                extract_cohort(
                    slides, store, request, card.magnifications, how, display, grid=grid, stop=stop
                )
            )
    return reports


def _request(card: HeadCard, spec: EncoderSpec, options: EmbeddingOptions) -> EncoderRequest:
    return EncoderRequest(
        spec,
        None if options.weights is None else Path(options.weights),
        str(card.encoder["weights_sha256"]).startswith(RANDOM),
        options.device,
        options.precision,
        tokens=card.tokens,
        trust_remote_code=options.trust_remote_code,
        expected=dict(card.encoder),
    )


def embedded_slides(reports: Sequence[ExtractReport]) -> list[str]:
    """Slides that are complete with every encoder, sorted by name.

    Raises
    ------
    SlidesFailedError
        If there are none since they failed.
    """
    failed, skipped = failures_of(reports), skipped_slides(reports)
    done = [name for name in _all_slides(reports) if name not in failed and name not in skipped]
    if not done and failed:
        raise SlidesFailedError(failed)
    return done


def failures_of(reports: Sequence[ExtractReport]) -> dict[str, str]:
    """Slides that some encoder could not embed, with the first reason."""
    return {name: reason for report in reversed(reports) for name, reason in report.failed.items()}


def skipped_slides(reports: Sequence[ExtractReport]) -> dict[str, str]:
    """Slides that the cohort says too little of, with the reason."""
    names = dict.fromkeys(name for report in reports for name in report.skipped_slides)
    return dict.fromkeys(names, "the cohort names no image, or no spots, for it")


def _all_slides(reports: Sequence[ExtractReport]) -> list[str]:
    return sorted({name for report in reports for name in (*report.done, *report.unchanged)})


def refuse_embedding_options(options: EmbeddingOptions, embeddings: str | Path | None) -> None:
    """Refuse options that say how slides are embedded where a feature store is given.

    Raises
    ------
    RequestError
        Naming them.
    """
    given = options.given() + (["embeddings"] if embeddings is not None else [])
    if given:
        flags = {"embeddings": "--store"}
        named = ", ".join(flags.get(name, f"--{name.replace('_', '-')}") for name in given)
        raise RequestError(
            f"{named}: for slides that are still to be embedded, and this is a feature store; leave"
            f" {agreeing(len(given), 'it', 'them')} out."
        )


def _spec_of(card: HeadCard, own: Mapping[str, EncoderSpec]) -> EncoderSpec:
    """The encoder that a head was trained with, found as `embed` finds one.

    Raises
    ------
    RequestError
        If it cannot be had, or is built, fed or pooled otherwise today.
    """
    name = card.encoder_name
    if is_imported(card.encoder):
        raise RequestError(
            f"the head was trained on embeddings imported as {name}, which cannot be made here; embed the"
            " slides where those were made, `mmap import` them, and predict from that store."
        )
    try:
        spec = own[name] if name in own else spec_of(name)
    except EncoderError as error:
        raise RequestError(
            f"the head's encoder {printable(name)} is not known here ({str(error).rstrip('.')}); install the"
            " package that brings it, or give --encoder FILE.py:FUNCTION."
        ) from error
    recorded = card.encoder["encoder"]
    assert isinstance(recorded, Mapping)
    side = recorded.get("input_px")
    if isinstance(side, int) and side != spec.input_px:
        spec = spec.with_input(side)
    different = differences(recorded, spec.recipe())
    if different:
        raise RecipeMismatchError(
            f"{name} is not the encoder that the head was trained with ({'; '.join(different)}); use the"
            " version that the head was trained with, or fit the head again."
        )
    return spec


def _with_mpp(slides: Cohort, mpp: float | None) -> Cohort:
    """Slides with this scale where neither their rows nor their files state one.

    Raises
    ------
    RequestError
        If it is no scale.
    """
    if mpp is None:
        return slides
    least, most = MPP_RANGE
    if not least <= mpp <= most:
        raise RequestError(f"--source-mpp {mpp:g}: give micrometres per pixel from {least:g} to {most:,g}.")
    return replace(slides, slides=tuple(_row_with_mpp(row, mpp) for row in slides.slides))


def _row_with_mpp(row: CohortSlide, mpp: float) -> CohortSlide:
    if row.mpp is not None:
        return row
    try:
        spots = None if row.spots is None else read_spots(row)
        known = [one for one in known_mpps(row, image_mpp(row), spots) if one.plausible]
    except Exception:  # noqa: BLE001 - whatever it is, the slide fails by it where it is embedded
        known = []
    if not known:
        return replace(row, mpp=mpp)
    if abs(known[0].mpp / mpp - 1) > SAME_MPP:
        _LOG.warning(
            "%s keeps its um/px, %s; --source-mpp %g was not taken.",
            printable(row.slide),
            printable(known[0].shown),
            float(mpp),
        )
    return row


def _grid_of(saved: SavedHead, slides: Cohort, spots: str | None) -> GridRequest | None:
    """The grid of slides that have no spots; None where all have some."""
    if spots is not None:
        return parse_grid(spots)
    bare = [row.slide for row in slides.slides if row.image is not None and row.spots is None]
    if not bare:
        return None
    pitches = [
        card.training_slides.pitch_um
        for card in saved.card.by_encoder
        if card.training_slides is not None and card.training_slides.pitch_um is not None
    ]
    if not pitches:
        raise RequestError(
            f"{counted(len(bare), 'slide has', 'slides have')} no spots (such as {bare[0]}), and the head"
            " does not say how far apart its training spots were; give --spots grid:100, that distance in um."
        )
    return GridRequest("square", float(f"{nominal_pitch(pitches[0]):.3g}"))
