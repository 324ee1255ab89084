"""Results to look at, and predictions for other tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from mmap_st.report import FigureOptions, RunFigures, report_results
from mmap_st.report.exports import Exported, export_predictions
from mmap_st.workflows.arguments import Names, StoreLike, open_store, words_of
from mmap_st.workflows.comparisons import Comparison, Evaluation
from mmap_st.workflows.display import show_progress, warn_left_out, warn_user
from mmap_st.workflows.head_runs import HeadRun

#: What has results: an object, or a folder.
Result: TypeAlias = HeadRun | Evaluation | Comparison | str | Path


def write_report(
    run: Result | Sequence[Result],
    out: str | Path,
    *,
    genes: Names | None = None,
    figure: str | None = None,
    store: StoreLike | None = None,
    formats: Names = "png",
    scale: str = "shared",
    spread: bool = False,
    progress: bool = True,
) -> RunFigures:
    """Write the page of results, and figures beside it, as `mmap report` does.

    Parameters
    ----------
    run
        What `fit_head`, `evaluate` or `compare` returned, its folder, a folder of predictions, or one
        of their .h5ad files. Several for ``figure="genes"``.
    out
        The page, if its name ends in ``.html``; else a folder for figures and page.
    genes
        Which to show, by name or id, or files of such. None: those that are predicted best.
    figure
        ``genes``: instead of all else, a figure of each gene, a row a slide: measured, and predicted by each
        of the runs. None: page and figures of one run.
    store
        The run's feature store: adds figures of where prototypes are. None: none.
    formats
        Of figures: ``png``, ``svg``, ``pdf``, or several.
    scale
        Colours of figures: ``shared`` by measured and predicted values, or each map's ``own``.
    spread
        Whether figures show the spread of the predictions.
    progress
        Whether to show it.

    Returns
    -------
    ``written``, the paths of page and figures; ``failed``, why slides could not be drawn; ``notes``.

    Warns
    -----
    SlidesLeftOutWarning
        If some slides could not be drawn; it gives their reasons.
    MmapWarning
        If genes are not on the panel.

    Raises
    ------
    RequestError
        If there is nothing to show, or none of the genes is on a panel.

    Examples
    --------
    >>> mm.write_report(run, folder / "report.html", progress=False).written[0].name
    'report.html'
    """
    options = FigureOptions(tuple(words_of(formats, "--format")), scale, spread)
    opened = None if store is None else open_store(store)
    wanted = None if genes is None else words_of(genes, "--genes")
    runs = [run] if isinstance(run, str | Path) or not isinstance(run, Sequence) else run
    folders = [_folder(one) for one in runs]
    with show_progress(progress) as tell:
        drawn = report_results(
            folders, Path(out), wanted, figure=figure, store=opened, options=options, tell=tell
        )
    _warn(drawn.notes, drawn.failed)
    return drawn


def export(
    run: HeadRun | Evaluation | str | Path,
    out: str | Path,
    formats: Names,
    *,
    genes: Names | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Exported:
    """Write predictions as files that other tools read: CSV, Parquet, GeoJSON for QuPath, SpatialData.

    Parameters
    ----------
    run
        What `fit_head` or `evaluate` returned, its folder, a folder of predictions, or one .h5ad of them.
    out
        Folder to write to.
    formats
        ``csv``, ``parquet``, ``geojson``, ``spatialdata``, or several.
    genes
        Which to write, by name or id, or files of such. None: all, and in GeoJSON the 20 that are predicted
        best on each slide.
    overwrite
        Replace files that are there.
    progress
        Whether to show it.

    Returns
    -------
    ``written``, the paths of the files; ``failed``, why slides could not be written; ``notes``.

    Warns
    -----
    SlidesLeftOutWarning
        If some slides could not be written; it gives their reasons.
    MmapWarning
        If genes are not on the panel.

    Raises
    ------
    RequestError
        If a format is not known, there are no predictions, none of the genes is on a panel, or a file is in
        the way.
    MissingDependencyError
        If a format needs a package that is not installed.

    Examples
    --------
    >>> [path.name for path in mm.export(run, folder / "tables", "csv", progress=False).written]
    ['B1.csv', 'B1_spread.csv', 'B1_measured.csv']
    """
    named = words_of(formats, "--format")
    wanted = None if genes is None else words_of(genes, "--genes")
    with show_progress(progress) as tell:
        done = export_predictions(_folder(run), Path(out), named, wanted, overwrite=overwrite, tell=tell)
    _warn(done.notes, done.failed)
    return done


def _folder(run: Result) -> Path:
    return Path(run) if isinstance(run, str | Path) else run.path


def _warn(notes: Sequence[str], failed: Mapping[str, str]) -> None:
    for note in notes:
        warn_user(note)
    warn_left_out(failed, {})
