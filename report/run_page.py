"""The page of a run, of a cross-validation, of a comparison or of a folder of predictions."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
from numpy.typing import NDArray

from mmap_st.errors import RequestError, agreeing, counted, first_line, of_one_slide, printable
from mmap_st.extract.store import FeatureStore
from mmap_st.files import check_file_out
from mmap_st.head.evaluation import COMPARE_JSON, read_comparison, read_evaluation
from mmap_st.head.runs import HEAD_JSON, INTERVAL, MEASURED, METRICS, SPREAD, histories_of, read_metrics
from mmap_st.head.scoring import Scores, pearson_per_gene, slide_metrics
from mmap_st.progress import ProgressCallback
from mmap_st.report.gene_choice import GeneChoice
from mmap_st.report.gene_figure import draw_gene_figures
from mmap_st.report.page import MOST_VALUES, Charts, PagedSlides, SlideLayers, write_page
from mmap_st.report.prediction_layers import layers_of
from mmap_st.report.run_report import (
    DEFAULT_FIGURES,
    FigureOptions,
    RunFigures,
    draw_run,
    known_cards,
    prediction_files,
    read_table,
)
from mmap_st.report.summary import (
    Summary,
    named_predictors,
    number,
    summary_of_comparison,
    summary_of_evaluation,
    summary_of_folds,
    summary_of_run,
)

if TYPE_CHECKING:
    import anndata

Array = NDArray[np.float32]
_LOG = logging.getLogger(__name__)

#: The page in a folder of figures.
PAGE = "report.html"
_PAGES = (".html", ".htm")
# Values of all layers that are read for a page that nobody asked for: 800 MB.
_MOST_READ = 200_000_000
#: The figure that shows several runs.
GENES_FIGURE = "genes"
#: Most spots of all slides on a page; of larger slides every second is shown, or every third...
_MOST_SPOTS = 50_000
# Most pictures of prototypes on a page and of one slide, of some 5 KB each.
_MOST_WINDOWS, _MOST_OF_SLIDE = 400, 60
#: Columns of ``var`` that the table of genes shows, and what it calls them.
_COLUMNS = {"ceiling": "ceiling", "cv_pcc": "cv PCC", "trusted": "trusted"}


def report_results(
    runs: Sequence[Path],
    out: Path,
    genes: Sequence[str] | None = None,
    *,
    figure: str | None = None,
    store: FeatureStore | None = None,
    options: FigureOptions = DEFAULT_FIGURES,
    tell: ProgressCallback = lambda text: None,
) -> RunFigures:
    """Write the page of results, and the figures beside it where `out` is a folder.

    Parameters
    ----------
    runs
        Folder of `mmap fit-head`, `mmap evaluate` or `mmap compare`, or one of .h5ad files of `mmap predict`;
        several for a figure that shows them side by side.
    out
        The page, if its name ends in ``.html``; else a folder for figures and page.
    genes
        Which to show, by name or id, or files of such; None: those that are predicted best.
    figure
        ``genes``: only what `draw_gene_figures` draws. None: page and figures of one run.
    store
        The feature store of the run: adds figures of where prototypes are. None: none.
    options
        How figures are drawn.
    tell
        Called with what is being done.

    Returns
    -------
    What was written. A slide that cannot be shown does not stop the others; its reason is there.

    Raises
    ------
    RequestError
        If there is nothing to show, or none of the genes is on a panel.
    """
    if figure is not None:
        if figure != GENES_FIGURE:
            raise RequestError(f"--figure {figure}: give {GENES_FIGURE}, or leave it out.")
        if store is not None:
            raise RequestError(f"--figure {GENES_FIGURE} draws no prototypes; leave --store out.")
        return draw_gene_figures(runs, out, genes, options=options, tell=tell)
    if len(runs) != 1:
        raise RequestError("several runs are shown side by side by --figure genes; else name one.")
    (run,) = runs
    if out.suffix.lower() in _PAGES and not out.is_dir():
        if store is not None:
            raise RequestError(f"--store adds figures, which a page does not hold; name a folder, not {out}.")
        if options != DEFAULT_FIGURES:
            raise RequestError(
                "--format, --scale and --spread are of figures, which a page does not hold; name a folder,"
                f" not {out}."
            )
        return draw_page(run, out, genes, tell=tell)
    figures = RunFigures()
    if not (run / COMPARE_JSON).is_file():
        figures = draw_run(run, out, genes, store=store, options=options, tell=tell)
    page = draw_page(run, out / PAGE, genes, tell=tell)
    return RunFigures([*figures.written, *page.written], figures.failed | page.failed, page.notes)


def fits_in_memory(run: Path) -> bool:
    """Whether a folder of predictions is small enough to be read whole for a page, which nobody asked for."""
    values = 0
    for file in prediction_files(run):
        try:
            with h5py.File(file) as opened:
                values += int(np.prod(opened["X"].shape)) * (1 + len(opened["layers"]))
        except (OSError, KeyError, AttributeError) as error:
            _LOG.info("%s is not counted: %s", printable(str(file)), first_line(error))
    return values <= _MOST_READ


def draw_page(
    run: Path,
    out: Path,
    genes: Sequence[str] | None = None,
    *,
    tell: ProgressCallback = lambda text: None,
) -> RunFigures:
    """Write the page of results of a folder.

    Parameters
    ----------
    run
        Folder of `mmap fit-head`, `mmap evaluate` or `mmap compare`, or one of .h5ad files of `mmap predict`.
    out
        The page.
    genes
        Which to show, see `report_results`; None: all that there is room for, those that correlate best with
        measured values first.
    tell
        Called with what is being read.

    Returns
    -------
    What was written. A slide that cannot be shown does not stop the others; its reason is there.

    Raises
    ------
    RequestError
        If there is nothing to show, or none of the genes is on a panel.
    """
    check_file_out(out)
    found = RunFigures()
    summaries, scores = _scored(run)
    slides = None
    listed = SlideList()
    if not (run / COMPARE_JSON).is_file():
        choice = None if genes is None else GeneChoice(genes, known_cards(run))
        slides = _slides(prediction_files(run), choice, found, listed, tell)
    elif genes:
        raise RequestError(f"{run} is a comparison, which has no maps; leave --genes out.")
    if slides is None and not summaries:
        return found
    what = "comparison" if (run / COMPARE_JSON).is_file() else "predicted gene expression"
    title = f"{run.resolve().name}: {what}"
    if slides is not None:
        summaries.append(listed.summary())
    if found.failed:
        reasons = tuple(found.failed.items())
        summaries.append(Summary("", "slides that are not shown", ("slide", "reason"), reasons))
    charts = Charts(scores, histories_of(run))
    found.written.append(write_page(out, title, summaries, slides, charts))
    return found


@dataclass
class SlideList:
    """What a page says of its slides.

    Attributes
    ----------
    rows
        Of each: name, spots, scores, whether it is like those of training; no scores where nothing was
        measured.
    notes
        What of them the maps do not show.
    """

    rows: list[tuple[str, str, list[str], str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, slide: SlideLayers, table: anndata.AnnData) -> None:
        """Add a slide, scored on all genes and spots of its prediction, whichever of them are shown."""
        self.rows.append((slide.name, f"{len(table):,}", _scores_of(table), slide.verdict or "not known"))
        if len(slide.xy) < len(table):
            self.notes.append(f"{slide.name}: maps show {len(slide.xy):,} of {counted(len(table), 'spot')}")

    def summary(self) -> Summary:
        """How each slide was predicted, and whether it is like those of training."""
        scores = ("PCC", "MSE", "MAE", "in 90% intervals") if any(row[2] for row in self.rows) else ()
        rows = tuple(
            (name, spots, *(own or [""] * 4 if scores else ()), verdict)
            for name, spots, own, verdict in self.rows
        )
        columns = ("slide", "spots", *scores, "compared with training tissue")
        return Summary("", "slides", columns, rows, tuple(self.notes))


def _scores_of(table: anndata.AnnData) -> list[str]:
    """PCC, MSE, MAE and coverage of a slide; nothing where it has no measured values."""
    if MEASURED not in table.layers:
        return []
    predicted, measured = np.asarray(table.X, np.float32), np.asarray(table.layers[MEASURED], np.float32)
    known = np.isfinite(measured) & np.isfinite(predicted)
    if not known.any():
        return []
    of = slide_metrics(predicted, measured)
    reach = _reach_of(table)
    covered = "" if reach is None else f"{(np.abs(predicted - measured) <= reach)[known].mean():.1%}"
    return [number(of.pcc), number(of.mse), number(of.mae), covered]


def _scored(run: Path) -> tuple[list[Summary], dict[str, Scores]]:
    """What is known of a run in words and as tables, and its scores by predictor.

    Nothing of a folder of predictions alone.
    """
    if (run / COMPARE_JSON).is_file():
        result = read_comparison(run / COMPARE_JSON)
        scores = {row.key: row.scores for row in result.rows if row.scores is not None}
        return [summary_of_comparison(result)], scores
    if not (run / METRICS).is_file():
        return [], {}
    heads = [card.head for card in known_cards(run)] or ["head"]
    if (run / HEAD_JSON).is_file():
        metrics = read_metrics(run / METRICS)
        return [summary_of_run(metrics, heads[0])], named_predictors(metrics.predictors, heads[0])
    evaluation = read_evaluation(run / METRICS)
    tables = [summary_of_evaluation(evaluation, heads[0]), summary_of_folds(evaluation)]
    return tables, named_predictors(evaluation.predictors, heads[0])


def _slides(
    files: Sequence[Path],
    choice: GeneChoice | None,
    found: RunFigures,
    listed: SlideList,
    tell: ProgressCallback,
) -> PagedSlides | None:
    slides: list[SlideLayers] = []
    wanted: list[Sequence[str]] = []
    columns: dict[str, dict[str, list[object]]] = {}
    windows = min(_MOST_OF_SLIDE, _MOST_WINDOWS // len(files))
    for place, file in enumerate(files, start=1):
        tell(f"reading {file.stem} ({place} of {counted(len(files), 'slide')})")
        try:
            table = read_table(file)
            slide = layers_of(table, max(1, _MOST_SPOTS // len(files)), windows)
            if any(slide.name == other.name for other in slides):
                slide = replace(slide, name=f"{slide.name} ({file.name})")
            own = slide.genes if choice is None else choice.of_slide(slide.name, slide.genes, slide.gene_ids)
            listed.add(slide, table)
            slides.append(slide)
            wanted.append(own)
        except RequestError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is that slide's
            found.failed[file.stem] = str(of_one_slide(error))
            continue
        for column in _COLUMNS:
            if column in table.var:
                for gene, value in zip(map(str, table.var_names), table.var[column].tolist(), strict=True):
                    columns.setdefault(column, {}).setdefault(gene, []).append(value)
    if not slides:
        return None
    chosen = list(dict.fromkeys(gene for own in wanted for gene in own))
    if choice is not None:
        found.notes += choice.notes
    if not chosen:
        raise RequestError(f"no page can be written: {'; '.join(found.notes)}.")
    attention = sum(slide.prototypes.weights.size for slide in slides if slide.prototypes is not None)
    values = sum(len(slide.xy) * slide.n_layers for slide in slides)
    room = max(1, (MOST_VALUES - attention) // values)
    ranked = _by_correlation([slide.only(chosen) for slide in slides], chosen)
    kept = (ranked if choice is None else chosen)[:room]
    listed.notes += _notes_of_genes(slides, kept, columns)
    shown = {
        _COLUMNS[column]: [_cell(values.get(gene, [])) for gene in kept] for column, values in columns.items()
    }
    return PagedSlides(tuple(slide.only(kept) for slide in slides), shown, len(chosen) - len(kept))


def _notes_of_genes(
    slides: Sequence[SlideLayers],
    genes: Sequence[str],
    columns: dict[str, dict[str, list[object]]],
) -> list[str]:
    """What to say where slides were predicted by several heads, as those of folds are."""
    notes = []
    apart = sum(any(gene not in slide.genes for slide in slides) for gene in genes)
    if apart:
        notes.append(
            f"{apart} of {counted(len(genes), 'gene')} {agreeing(apart, 'is', 'are')} not on the panel of"
            f" every slide: {agreeing(apart, 'its', 'their')} maps are empty on the others"
        )
    if any(len(set(map(repr, values))) > 1 for of_genes in columns.values() for values in of_genes.values()):
        notes.append(
            "slides were predicted by several heads: ceiling and cv PCC are means over slides, and a gene is"
            " trusted where every head trusts it"
        )
    return notes


def _cell(values: Sequence[object]) -> object:
    """What the table of genes shows of the values that the slides' heads have of a gene."""
    if values and all(isinstance(value, bool) for value in values):
        return "yes" if all(values) else "no"
    known = [value for value in values if isinstance(value, float) and value == value]
    return sum(known) / len(known) if known else float("nan")


def _by_correlation(slides: Sequence[SlideLayers], genes: Sequence[str]) -> list[str]:
    """Genes by their mean correlation with measured values; without any, by how much predictions vary."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of genes that a slide has no values of
        scores = [
            np.nan_to_num(np.nanstd(slide.predicted, axis=0))
            if slide.measured is None
            else np.nan_to_num(pearson_per_gene(slide.predicted, slide.measured), nan=-1.0)
            for slide in slides
            if slide.measured is not None or all(other.measured is None for other in slides)
        ]
    order = np.argsort(-np.mean(scores, axis=0), kind="stable")
    return [genes[i] for i in order]


def _reach_of(table: anndata.AnnData) -> Array | None:
    """(n, g) half of the width of the 90% intervals; None where the head gave none."""
    if SPREAD not in table.layers or INTERVAL not in table.var:
        return None
    factors = table.var[INTERVAL].to_numpy(np.float32)
    reach: Array = np.asarray(table.layers[SPREAD], np.float32) * factors
    return reach
