"""Train a head."""

from __future__ import annotations

from pathlib import Path

from mmap_st.data import where_text
from mmap_st.data.readers import CohortSource
from mmap_st.extract.slides import thumbnail_of
from mmap_st.head.runs import fit_head as fit_and_write
from mmap_st.head.runs import fit_request
from mmap_st.workflows.arguments import (
    Encoders,
    Genes,
    Scales,
    Settings,
    StoreLike,
    Where,
    encoder_names,
    mpps_of,
    open_store,
    pairs_of,
    panel_text,
    read_cohort,
)
from mmap_st.workflows.display import show_progress, warn_left_out, warn_user
from mmap_st.workflows.head_runs import HeadRun


def fit_head(
    cohort: CohortSource,
    store: StoreLike,
    *,
    encoder: Encoders,
    out: str | Path,
    head: str | None = None,
    genes: Genes | None = None,
    train: Where | None = None,
    val: Where | None = None,
    test: Where | None = None,
    gene_set: str = "intersection",
    values: str | None = None,
    magnifications: Scales | None = None,
    mpp: Scales | None = None,
    protocol: str = "default",
    prototypes: str | None = None,
    settings: Settings | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: bool = True,
) -> HeadRun:
    """Train one head, predict the test slides and score them.

    Parameters
    ----------
    cohort
        A cohort (`read_cohort`), or what `read_cohort` takes.
    store
        The feature store with the slides' embeddings, or its path.
    encoder
        Name of an encoder in the store; or of several, as ``"a,b"`` or a list: the head is fitted for each,
        and the predictions are averaged with weights that are chosen within training.
    out
        Folder to write: weights, settings, metrics and predictions of the test slides.
    head
        Name of a head, or ``FILE.py:NAME``. None: the protocol's own, which is ``mmap`` by default.
    genes
        Panel: ``all``, ``hvg:250`` (greatest variance over training spots), ``mean:250``, ``svg:250``,
        ``hest:50``, a file with one gene per line, names or ids of genes, several of these such as
        ``hvg:250,ERBB2,markers.txt``, or a list of genes. Genes that are missing are left out with a
        warning. None: ``hvg:250``, or the protocol's own.
    train, val, test
        Slides of each part: ``{"slide": ["C2", "C3"]}``, ``{"patient": ["B"]}``, or as the command takes
        them: ``"slide=C2,C3"``, or a file with one slide per line. No `train`: all that the others do not
        name. No `val`: choices are made by inner folds of the training slides.
    gene_set
        Whether panels are chosen from genes that are on every training slide (``intersection``), or on any
        (``union``).
    values
        What count tables hold: ``counts``, or ``lognorm`` for values that are log-normalised on purpose.
    magnifications
        Such as ``[40, 20, 10]``: 40x is 0.25 micrometres per pixel, 20x is 0.5. None: all that are complete
        on every slide used, or the protocol's own.
    mpp
        The same in micrometres per pixel, such as ``[0.25, 0.5, 1.0]``. Give one of the two, or neither.
    protocol
        How it is evaluated: ``default``, ``legacy-mmap``, ``hest-bench`` or ``triplex``.
    prototypes
        ``kmeans``, ``none``, ``random`` or ``learned``, for heads that use prototypes.
    settings
        Settings of the head, such as ``{"alpha": 1e5}`` for ridge; `settings_of` lists them.
    seed
        Seed of all randomness.
    overwrite
        Replace a finished run in `out`.
    progress
        Whether to show it.

    Returns
    -------
    The trained head, with its metrics.

    Warns
    -----
    SlidesLeftOutWarning
        If slides were skipped or failed; it gives their reasons.
    MmapWarning
        If patients are on both sides of a split, or genes that are named are missing.

    Raises
    ------
    RequestError
        If nothing can be trained, or the request contradicts itself.

    Examples
    --------
    >>> run = mm.fit_head(
    ...     cohort, store, encoder="efficientnet-lite0", head="ridge", settings={"alpha": 1e4},
    ...     test={"patient": "B"}, genes="mean:10", out=folder / "new_run", progress=False,
    ... )
    >>> run.metrics.to_polars()["predictor"].unique().sort().to_list()
    ['head', 'mean', 'ridge']
    """
    with panel_text(genes) as panel, show_progress(progress) as tell:
        request = fit_request(
            encoder_names(encoder),
            head,
            protocol,
            pairs_of(settings),
            prototypes,
            genes=panel,
            train=_where(train),
            validation=_where(val),
            test=_where(test),
            mpps=mpps_of(magnifications, mpp),
            seed=seed,
            gene_set=gene_set,
        )
        slides = read_cohort(cohort, values=values)
        report = fit_and_write(
            slides,
            open_store(store),
            request,
            Path(out),
            tell,
            overwrite=overwrite,
            thumbnail_of=thumbnail_of,
        )
    for text in report.warnings:
        warn_user(text)
    warn_left_out(report.failed, report.skipped)
    return HeadRun(out, report)


def _where(where: Where | None) -> str | None:
    if where is None:
        return None
    return where_text(str(where) if isinstance(where, Path) else where)
