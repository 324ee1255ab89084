"""Write predictions of slides: of those of a feature store, or straight from their images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mmap_st.data.readers import CohortSource
from mmap_st.errors import RequestError, SlideError
from mmap_st.extract.slides import thumbnail_of
from mmap_st.extract.store import FeatureStore
from mmap_st.head.runs import PredictReport, check_prediction_folder, predict_slides
from mmap_st.head.sharing import pinned
from mmap_st.report import PAGE, draw_page, fits_in_memory
from mmap_st.workflows.arguments import Encoders, Names, StoreLike, open_store, read_cohort, words_of
from mmap_st.workflows.display import show_progress, warn_left_out, warn_unlike, warn_user
from mmap_st.workflows.gene_sets import GeneSetsLike, gene_sets_of
from mmap_st.workflows.head_embedding import (
    EmbeddingOptions,
    cohort_of_slides,
    embed_for_head,
    embedded_slides,
    failures_of,
    refuse_embedding_options,
    skipped_slides,
)
from mmap_st.workflows.head_runs import HeadRun, notes_of_training, saved_head

if TYPE_CHECKING:
    from mmap_st.extract.engine import ExtractReport

#: Where slides are embedded that are predicted straight, in the folder of the predictions.
FEATURES = "features.zarr"


def predict(
    run: HeadRun | str | Path,
    store: StoreLike | CohortSource,
    out: str | Path,
    *,
    slides: Names | None = None,
    cohort: CohortSource | None = None,
    overwrite: bool = False,
    strict: bool = False,
    head_code: str | None = None,
    allow_changed_code: bool = False,
    embeddings: str | Path | None = None,
    spots: str | None = None,
    encoder: Encoders | None = None,
    weights: str | Path | None = None,
    source_mpp: float | None = None,
    trust_remote_code: bool = False,
    device: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    unchecked: bool = False,
    enlarge: bool = False,
    gene_sets: GeneSetsLike | None = None,
    page: bool | None = None,
    progress: bool = True,
) -> PredictReport:
    """Predict expression of slides, sequenced or not, and write one .h5ad file per slide.

    Parameters
    ----------
    run
        A trained head, its folder, or its packed file.
    store
        The feature store with the slides' embeddings, or its path. Or slides that are not embedded yet: an
        image, a folder of images, or a cohort as `read_cohort` takes it. They are embedded first, as the
        head's own slides were, into `embeddings`; those that have no spots get a grid on their tissue.
    out
        Folder to write to.
    slides
        Names. None: all that have what the head needs.
    cohort
        Where measured values and images are from. None: the cohort that `store` is; of a feature store,
        neither is in the files.
    overwrite
        Replace predictions of another head in `out`.
    strict
        Whether slides that are unlike anything the head was trained on fail.
    head_code, allow_changed_code
        See `load_head`; not with a head that is loaded.
    embeddings
        The feature store that slides are embedded into; what it has is not done again. None:
        ``features.zarr`` in `out`.
    spots
        For slides without spots: ``grid:100`` or ``hex:100`` lays spots 100 micrometres apart on the tissue.
        None: square, as far apart as the head's training spots were.
    encoder
        The head's encoder where it is your own code: ``FILE.py:FUNCTION``; of several, a list. None: by the
        name that the head knows it by.
    weights
        File or folder of the encoder's weights. None: found as `embed` finds them; they are refused where
        they are not those that the head was trained with.
    source_mpp
        Micrometres per pixel of slides that do not state it.
    trust_remote_code, device, precision, batch_size, workers, unchecked, enlarge
        See `embed`.
    gene_sets
        Gene sets that spots are scored by, see `HeadRun.predict`.
    page
        Whether to write the page of all predictions in `out` too, ``report.html``, as `write_report` does.
        None: where slides are given and not a store, unless there are too many for a page.
    progress
        Whether to show it.

    Returns
    -------
    ``written``, the path of each slide's file; ``skipped`` and ``failed``, the reasons of the others;
    ``unlike`` and ``far``, how slides that were predicted differ from the training tissue; ``scores`` and
    ``coverage`` of slides that have measured values; ``page``, its path. `HeadRun.predict` says what is in
    a file.

    Warns
    -----
    SlidesLeftOutWarning
        If some slides were skipped or failed; it gives their reasons.
    UnlikeTrainingWarning
        If slides are unlike anything the head was trained on.
    MmapWarning
        If gene sets have no score, the head was trained on a slide, or no page can be written.

    Raises
    ------
    RequestError
        If a slide is not there, none has what the head needs, `out` holds predictions of another head, or
        slides cannot be embedded as the head's own were.
    SlidesFailedError
        If slides were to be embedded and none could be; it gives their reasons.
    StoppedError
        If Ctrl-C or SIGTERM stopped the embedding; what is finished is saved, and the same call resumes.

    Examples
    --------
    >>> mm.predict(run, store, folder / "predictions", slides=["B1"], progress=False).written["B1"].name
    'B1.h5ad'

    Slides that are not embedded yet, with their measured values beside the predictions:

    >>> report = mm.predict(run, cohort, folder / "straight", slides=["B1"], progress=False)
    >>> report.scores["B1"].pcc > 0
    True
    """
    names = None if slides is None else words_of(slides, "--slides")
    options = EmbeddingOptions(
        spots, encoder, weights, source_mpp, trust_remote_code, device, precision, batch_size, workers,
        unchecked, enlarge,
    )  # fmt: skip
    given = None if isinstance(store, FeatureStore) else cohort_of_slides(store)
    rows = given if cohort is None else read_cohort(cohort)
    if given is None:
        refuse_embedding_options(options, embeddings)
        opened = open_store(store)  # type: ignore[arg-type]
    if isinstance(run, HeadRun):
        saved = run.saved
    else:
        saved = saved_head(pinned(Path(run)), head_code, allow_changed_code=allow_changed_code)
    sets = gene_sets_of(gene_sets, saved.card.panel)
    extractions: list[ExtractReport] = []
    if given is not None:
        where = Path(out) / FEATURES if embeddings is None else Path(embeddings)
        if where.resolve() == Path(out).resolve():
            raise RequestError(f"--store {where} is --out, the folder of the predictions; name another.")
        given = given if names is None else given.only(names)
        check_prediction_folder(Path(out), saved.sha256, given.names, overwrite=overwrite)
        extractions = embed_for_head(saved, given, where, options, progress=progress)
        opened, names = FeatureStore(where), embedded_slides(extractions)
    with show_progress(progress) as tell:
        report = predict_slides(
            saved,
            opened,
            Path(out),
            names,
            tell,
            cohort=rows,
            overwrite=overwrite,
            strict=strict,
            thumbnail_of=thumbnail_of,
            gene_sets=sets,
        )
    report.extractions = extractions
    report.failed = failures_of(extractions) | report.failed
    report.skipped = skipped_slides(extractions) | report.skipped
    report.notes = (*report.notes, *notes_of_training(saved.card, report.written))
    if report.written and (page or (page is None and given is not None and fits_in_memory(Path(out)))):
        _write_page(report, Path(out), progress=progress)
    for note in report.notes:
        warn_user(note)
    warn_unlike(report.unlike)
    warn_left_out(report.failed, report.skipped)
    return report


def _write_page(report: PredictReport, out: Path, *, progress: bool) -> None:
    """Write the page of a folder of predictions; where that cannot be done, a note says so."""
    try:
        with show_progress(progress) as tell:
            drawn = draw_page(out, out / PAGE, tell=tell)
    except (RequestError, SlideError) as error:
        report.notes += (f"no page is written: {error}",)
        return
    report.page = out / PAGE
    report.notes += tuple(f"{name} is not on the page: {why}" for name, why in drawn.failed.items())
