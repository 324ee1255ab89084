"""A trained head: loaded, and asked for predictions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, overload

from mmap_st.data import some
from mmap_st.data.readers import CohortSource
from mmap_st.errors import agreeing, counted, printable
from mmap_st.extract.slides import thumbnail_of
from mmap_st.head.runs import (
    METRICS,
    FitReport,
    HeadCard,
    RunMetrics,
    SavedHead,
    predictions_of,
    read_head,
    read_metrics,
)
from mmap_st.head.sharing import ModelCard, card_of_run, pack_run, pinned, run_at
from mmap_st.workflows.arguments import (
    Settings,
    StoreLike,
    open_store,
    read_cohort,
)
from mmap_st.workflows.display import show_progress, warn_left_out, warn_unlike, warn_user
from mmap_st.workflows.gene_sets import GeneSetsLike, gene_sets_of

if TYPE_CHECKING:
    import anndata


class HeadRun:
    """A trained head, in the folder that `fit_head` or ``mmap fit-head`` wrote, or in a file of `pack`.

    Parameters
    ----------
    path
        The folder or the file; or ``hf-hub:ORG/NAME`` or ``hf-hub:ORG/NAME@REVISION``, a repository of the
        Hugging Face hub with the one or the other.
    report
        What `fit_head` did; None for a head that was loaded.
    head_code, allow_changed_code
        See `load_head`.

    Attributes
    ----------
    path, report
        As given.
    saved
        The head itself.

    Examples
    --------
    >>> run = mm.load_head(run_path)
    >>> run.head, run.encoder, run.mpps
    ('ridge', 'efficientnet-lite0', (0.5, 1.0))
    >>> run.metrics.test.pcc_slide > 0
    True
    """

    def __init__(
        self,
        path: str | Path,
        report: FitReport | None = None,
        *,
        head_code: str | None = None,
        allow_changed_code: bool = False,
    ) -> None:
        self.path = pinned(Path(path))
        self.report = report
        self.saved = saved_head(self.path, head_code, allow_changed_code=allow_changed_code)

    @property
    def card(self) -> HeadCard:
        """All that is recorded with the head, as in head.json."""
        return self.saved.card

    @cached_property
    def model_card(self) -> ModelCard:
        """What the head is, what it was trained and tested on, and what it is valid for."""
        with run_at(self.path) as folder:
            return card_of_run(folder)

    @property
    def head(self) -> str:
        """Name of the head, such as ``mmap``."""
        return self.saved.method.name

    @property
    def settings(self) -> Settings:
        """Settings of the head by name."""
        return dict(self.card.settings)  # type: ignore[arg-type]

    @property
    def encoder(self) -> str:
        """Name of the encoder of the embeddings that it takes."""
        return self.saved.encoder

    @property
    def mpps(self) -> tuple[float, ...]:
        """Micrometres per pixel of the embeddings that it takes, finest first."""
        return self.saved.mpps

    @property
    def panel(self) -> tuple[str, ...]:
        """The genes that it predicts, in order."""
        return tuple(self.saved.genes)

    @cached_property
    def metrics(self) -> RunMetrics:
        """Scores on the test slides, next to those of baselines; ``.to_polars()`` is a table of slides."""
        with run_at(self.path) as folder:
            return read_metrics(folder / METRICS)

    def pack(self, out: str | Path, *, overwrite: bool = False) -> Path:
        """Write the head into one file, for others: weights, settings, scores and its card, no predictions.

        `load_head`, `predict`, ``mmap predict`` and ``mmap info`` take the file as they take the folder. The
        same head gives the same bytes.

        Parameters
        ----------
        out
            The file, such as ``head.zip``.
        overwrite
            Replace a packed head that is there.

        Returns
        -------
        The path of the file.

        Raises
        ------
        RequestError
            If the head's folder is damaged, or the file exists or cannot be written.

        Examples
        --------
        >>> packed = run.pack(folder / "head.zip")
        >>> mm.load_head(packed).panel == run.panel
        True
        """
        pack_run(self.path, Path(out), overwrite=overwrite)
        return Path(out)

    @overload
    def predict(
        self,
        store: StoreLike,
        slides: str,
        *,
        cohort: CohortSource | None = None,
        strict: bool = False,
        gene_sets: GeneSetsLike | None = None,
        progress: bool = True,
    ) -> anndata.AnnData: ...

    @overload
    def predict(
        self,
        store: StoreLike,
        slides: Sequence[str] | None = None,
        *,
        cohort: CohortSource | None = None,
        strict: bool = False,
        gene_sets: GeneSetsLike | None = None,
        progress: bool = True,
    ) -> dict[str, anndata.AnnData]: ...

    def predict(
        self,
        store: StoreLike,
        slides: str | Sequence[str] | None = None,
        *,
        cohort: CohortSource | None = None,
        strict: bool = False,
        gene_sets: GeneSetsLike | None = None,
        progress: bool = True,
    ) -> anndata.AnnData | dict[str, anndata.AnnData]:
        """Predict expression on slides of a store, in memory; `predict` writes files.

        Parameters
        ----------
        store
            The feature store with the slides' embeddings, or its path.
        slides
            Name of one slide, or several. None: all that have what the head needs.
        cohort
            Where measured values and images are from. None: neither is in the result.
        strict
            Whether slides that are unlike anything the head was trained on fail.
        gene_sets
            A .gmt file, or genes by the name of a set: ``{"tumour": ["ERBB2", "FASN"]}``. The score of each
            is ``obs["score_NAME"]``: the mean over its genes on the panel of predictions that were brought to
            mean 0 and standard deviation 1 within the slide. Sets with fewer than two such genes have none.
        progress
            Whether to show it.

        Returns
        -------
        For one name an AnnData object, else a dictionary of them by slide. ``X`` (n, g) float32 is the
        prediction on the targets' scale (``uns["mmap"]["units"]``), NaN for spots without valid embeddings;
        ``layers["spread"]`` the standard deviation of its error, and X plus and minus ``var["interval_90"]``
        times it holds the truth 9 times in 10; ``layers["measured"]`` measured values, where a cohort has
        them; ``obsm["spatial"]`` (n, 2) centres of the spots in level-0 pixels. ``var["trusted"]`` says which
        genes to trust, ``uns["mmap"]["domain"]`` whether the slide is like those of training, and
        ``obs["distance"]`` how far each spot lies from them.

        Warns
        -----
        SlidesLeftOutWarning
            If some of several slides were skipped or failed; it gives their reasons.
        UnlikeTrainingWarning
            If slides are unlike anything the head was trained on.
        MmapWarning
            If gene sets have no score, or the head was trained on a slide.

        Raises
        ------
        RequestError
            If the store does not have a slide, or none has what the head needs.
        SlideError
            If the one slide that is named cannot be predicted.

        Examples
        --------
        >>> adata = run.predict(store, "B1", progress=False)
        >>> adata.shape == (len(store["B1"]), len(run.panel))
        True
        """
        opened = open_store(store)
        rows = None if cohort is None else read_cohort(cohort)
        names = [slides] if isinstance(slides, str) else slides
        sets = gene_sets_of(gene_sets, self.card.panel)
        with show_progress(progress) as tell:
            found = predictions_of(
                self.saved,
                opened,
                names,
                rows,
                tell,
                strict=strict,
                thumbnail_of=thumbnail_of,
                gene_sets=sets,
            )
        for note in (*(sets.notes if sets else ()), *notes_of_training(self.card, found.tables)):
            warn_user(note)
        warn_unlike(found.unlike)
        if isinstance(slides, str):
            return found.only(slides)
        warn_left_out(found.failed, found.skipped)
        return found.tables

    def __repr__(self) -> str:
        at = ", ".join(f"{mpp:g}" for mpp in self.mpps)
        lines = [
            f"HeadRun {self.path}: {self.head} on {self.encoder} at {at} um/px,"
            f" {counted(len(self.panel), 'gene')}",
        ]
        if self.path.is_file() or (self.path / METRICS).is_file():
            lines += [f"  {name}: {scores!r}" for name, scores in self.metrics.predictors.items()]
        return printable("\n".join(lines), lines=True)


def notes_of_training(card: HeadCard, names: Iterable[str]) -> tuple[str, ...]:
    """What to say where slides were predicted, by name, that the head was trained on."""
    known = set(card.slides.train)
    seen = [name for name in names if name in known]
    if not seen:
        return ()
    them = agreeing(len(seen), "it", "them")
    return (
        f"the head was trained on {some(seen)}: how well it predicts {them} says nothing about new slides",
    )


def load_head(run: str | Path, *, head_code: str | None = None, allow_changed_code: bool = False) -> HeadRun:
    """Load a trained head.

    Parameters
    ----------
    run
        Folder that `fit_head` or ``mmap fit-head`` wrote, or a file of `HeadRun.pack` or ``mmap pack``; or
        ``hf-hub:ORG/NAME`` or ``hf-hub:ORG/NAME@REVISION``, a repository of the hub that holds either.
    head_code
        ``FILE.py:NAME`` of a head that is your own code: the code that a run names is never executed by
        itself. None: for built-in heads, those of installed packages, and code that ran in this process.
    allow_changed_code
        Whether `head_code` may be other code than the head was trained with.

    Returns
    -------
    What `fit_head` returned.

    Raises
    ------
    HeadError
        If there is no run or packed head, it is damaged, or of a format that this version does not know; if
        its head is code of a file, and `head_code` is not that.

    Examples
    --------
    >>> mm.load_head(run_path).panel[:1] == run.panel[:1]
    True
    """
    return HeadRun(run, head_code=head_code, allow_changed_code=allow_changed_code)


def saved_head(path: Path, head_code: str | None, *, allow_changed_code: bool) -> SavedHead:
    """The head of a run, or of a packed one; see `load_head`."""
    with run_at(path) as folder:
        return read_head(folder, head_code, allow_changed_code=allow_changed_code)
