"""One gene, measured and by several heads, on the same slides: the third figure of the MMAP paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mmap_st.errors import MmapError, RequestError, counted
from mmap_st.extract.store import encode_name
from mmap_st.files import check_folder_out, file_name
from mmap_st.head.runs import MEASURED, UNS
from mmap_st.head.scoring import pearson_per_gene
from mmap_st.progress import ProgressCallback
from mmap_st.report.figure import (
    FONT,
    frame,
    new_figure,
    plain,
    relative_height,
    save_figure,
    scale_bar,
    wrapped,
)
from mmap_st.report.gene_choice import GeneChoice
from mmap_st.report.maps import OWN_SCALE, SCALES, SlideMap, draw_spots, ends_of
from mmap_st.report.run_report import (
    FigureOptions,
    RunFigures,
    known_cards,
    map_of,
    prediction_files,
    read_table,
)

_PANEL_IN, _BAR_IN, _TITLE_IN = 1.75, 0.42, 0.24


@dataclass(frozen=True)
class Predicted:
    """The slides that one run predicted.

    Attributes
    ----------
    title
        What the run is called in a figure.
    head
        Name of its head.
    slides
        By name.
    """

    title: str
    head: str
    slides: dict[str, SlideMap]


def draw_gene_figures(
    runs: Sequence[Path],
    out: Path,
    genes: Sequence[str] | None,
    *,
    options: FigureOptions,
    tell: ProgressCallback = lambda text: None,
) -> RunFigures:
    """Draw a figure of each gene: a row a slide, with the H&E, measured values, and a map of each run.

    Parameters
    ----------
    runs
        Folders of `mmap fit-head`, `mmap evaluate` or `mmap predict`, in the order of the figure's columns.
    out
        Folder for the figures, ``GENE_genes.png``.
    genes
        By name or id, or files of such.
    options
        How figures are drawn.
    tell
        Called with what is being done.

    Returns
    -------
    What was drawn. A slide that not all runs predicted, or that is damaged, is named there, and the others
    are drawn.

    Raises
    ------
    RequestError
        If no genes are named, the runs have no slide in common, or none of the genes is on every panel.
    """
    check_folder_out(out)
    if genes is None:
        raise RequestError("--figure genes draws genes that are named; give --genes FASN, say.")
    figures = RunFigures()
    predicted = _titled([_read(run, figures, tell) for run in runs])
    names = [name for name in predicted[0].slides if all(name in one.slides for one in predicted)]
    for one in predicted:
        for name in one.slides:
            if name not in names:
                figures.failed.setdefault(name, "not every run predicted it")
    if not names:
        raise RequestError(f"{', '.join(map(str, runs))}: no slide was predicted by all of these runs.")
    choice = GeneChoice(genes, [card for run in runs for card in known_cards(run)])
    found = [
        choice.of_slide(name, slide.genes, slide.gene_ids)
        for one in predicted
        for name, slide in one.slides.items()
        if name in names
    ]
    figures.notes += choice.notes
    if not any(found):
        raise RequestError(f"no figure can be drawn: {'; '.join(figures.notes)}.")
    for gene in dict.fromkeys(gene for genes_of_slide in found for gene in genes_of_slide):
        tell(f"drawing {gene}")
        figure = gene_figure(gene, names, predicted, options)
        for ending in options.formats:
            path = out / file_name(encode_name(gene), f"_genes.{ending}")
            figures.written.append(save_figure(figure, path))
    return figures


def _read(run: Path, figures: RunFigures, tell: ProgressCallback) -> Predicted:
    slides: dict[str, SlideMap] = {}
    head = run.name
    files = prediction_files(run)
    for place, file in enumerate(files, start=1):
        tell(f"reading {run.name}/{file.stem} ({place} of {counted(len(files), 'slide')})")
        try:
            table = read_table(file)
        except MmapError as error:
            figures.failed[file.stem] = str(error)
            continue
        slide = map_of(table)
        slides[slide.name] = slide
        head = str(table.uns[UNS].get("head", head))
    return Predicted(run.resolve().name, head, slides)


def _titled(predicted: Sequence[Predicted]) -> list[Predicted]:
    """Call each run by its head where these differ, else by its folder."""
    heads = [one.head for one in predicted]
    titles = heads if len(set(heads)) == len(heads) else [one.title for one in predicted]
    if len(set(titles)) < len(titles) or MEASURED in titles:
        titles = [f"{number}: {title}" for number, title in enumerate(titles, start=1)]
    return [replace(one, title=title) for one, title in zip(predicted, titles, strict=True)]


def _values(slide: SlideMap, gene: str, title: str) -> NDArray[np.float32] | None:
    """(n,) what a map shows; None where the slide was not measured, or the gene is not on its panel."""
    layer = slide.measured if title == MEASURED else slide.predicted
    return None if layer is None or gene not in slide.genes else layer[:, slide.genes.index(gene)]


def gene_figure(
    gene: str, slides: Sequence[str], predicted: Sequence[Predicted], options: FigureOptions
) -> Figure:
    """One gene on some slides, see `draw_gene_figures`."""
    first = [predicted[0].slides[name] for name in slides]
    measured = any(slide.measured is not None for slide in first)
    pictures = any(slide.background is not None for slide in first)
    columns = pictures + measured + len(predicted)
    shares = (relative_height(slide.xy, slide.background) for slide in first)
    heights = [share * (_PANEL_IN - _BAR_IN) + _TITLE_IN for share in shares]
    heights[0] += _TITLE_IN / 2  # for the names of the columns
    figure = new_figure(_PANEL_IN * columns + 0.3, sum(heights) + 0.35)
    grid = figure.subplots(len(first), columns, squeeze=False, height_ratios=heights)
    for row, (name, slide) in enumerate(zip(slides, first, strict=True)):
        maps = {MEASURED: slide} if measured else {}
        maps |= {one.title: one.slides[name] for one in predicted}
        values = {title: _values(of, gene, title) for title, of in maps.items()}
        together = ends_of([of for of in values.values() if of is not None])
        if pictures:
            frame(grid[row][0], slide.xy, slide.background, faded=False)
        for column, (title, of) in enumerate(values.items(), start=int(pictures)):
            axes = grid[row][column]
            if of is None:
                axes.set_axis_off()
                continue
            ends = ends_of([of]) if options.scale == OWN_SCALE else together
            draw_spots(figure, axes, maps[title], of, ends, "expression" if column == columns - 1 else "")
            truth = values.get(MEASURED)
            said = [title] if row == 0 else []
            if title != MEASURED and truth is not None:
                score = pearson_per_gene(of[:, None], truth[:, None])[0]
                said.append("PCC undefined" if np.isnan(score) else f"PCC {score:.2f}")
            axes.set_title("\n".join(map(plain, said)), fontsize=FONT)
        grid[row][0].set_ylabel(plain(name), fontsize=FONT)
        scale_bar(grid[row][0], slide.mpp, slide.xy)
    if pictures:
        grid[0][0].set_title("H&E", fontsize=FONT)
    words = f"{gene}: {first[0].units}; {SCALES[options.scale]}"
    figure.suptitle(wrapped(words, figure.get_figwidth()), fontsize=FONT, color="0.3")
    return figure
