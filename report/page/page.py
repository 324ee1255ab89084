"""One page of results that opens anywhere: no network, no other file, nothing to install."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import mmap_st
from mmap_st.errors import counted, printable
from mmap_st.files import write_text, writing
from mmap_st.head.scoring import Scores
from mmap_st.report.page.slide_layers import SlideLayers
from mmap_st.report.summary import Summary

if TYPE_CHECKING:
    from bokeh.models.callbacks import CustomJS
    from bokeh.models.ui import UIElement

#: Most values of all layers of all slides on a page: it then stays below 15 MB, with 2 MB for what draws it.
MOST_VALUES = 16_000_000


_HOW_TO_READ = (
    "Colours end at the 1st and 99th percentile of the values. The spread is the standard deviation of the"
    " error that a prediction is expected to have. "
)
_OF_MEASURED = "PCC here: correlation with measured values on this slide; "
_OF_GENES = "cv PCC: on slides that fits did not see; ceiling: what a perfect predictor would reach."
_PATIENTS_NOTE = (
    "A dot is a patient: the mean over the slides of that patient, or one slide where nobody knows whose it"
    " is. A diamond is the mean over slides, its bar the 95% interval over patients where there are enough."
)
_CURVES_NOTE = (
    "What the head chose by, on training slides alone: its score on spots that a fit did not see, for each"
    " value that was tried. A line is a fit."
)


@dataclass(frozen=True)
class PagedSlides:
    """The slides of a page, and its table of genes.

    Attributes
    ----------
    slides
        With the same genes in the same order.
    columns
        Of the table of genes, by name: values (g,) of each.
    left_out
        Genes that the page has no room for.
    """

    slides: tuple[SlideLayers, ...]
    columns: Mapping[str, Sequence[object]]
    left_out: int = 0


@dataclass(frozen=True)
class Charts:
    """What the charts of a page show.

    Attributes
    ----------
    scores
        Of each predictor, by what it is called; the first is drawn at the top.
    histories
        Validation scores of each fit, by what it is called: what was tried in each row, in order.
    """

    scores: Mapping[str, Scores] = field(default_factory=dict)
    histories: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)


def write_page(
    path: Path,
    title: str,
    summaries: Sequence[Summary],
    slides: PagedSlides | None,
    charts: Charts | None = None,
) -> Path:
    """Write a page of results.

    Parameters
    ----------
    path
        Such as ``report.html``.
    title
        Of the page.
    summaries
        Results in words and as tables; the first says what this is about.
    slides
        To be shown as maps; None: no maps.
    charts
        Of scores; None: none.

    Raises
    ------
    WriteError
        If the file cannot be written.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, page_of(title, summaries, slides, charts))
    return path


def page_of(
    title: str,
    summaries: Sequence[Summary],
    slides: PagedSlides | None,
    charts: Charts | None = None,
    *,
    today: Callable[[], datetime.date] = datetime.date.today,
) -> str:
    """The page as text, see `write_page`."""
    from jinja2 import Environment
    from markupsafe import Markup

    def own(name: str) -> str:
        return files("mmap_st.report.page").joinpath(name).read_text("utf-8")

    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        own("page.html")
    )
    parts = _parts(slides, charts)
    embedded = _embedded(parts) if parts else Embedded()
    shown = [
        Summary(
            of.about,
            of.title,
            tuple(map(printable, of.columns)),
            tuple(tuple(map(printable, row)) for row in of.rows),
            tuple(map(printable, of.notes)),
        )
        for of in summaries
    ]
    return template.render(
        title=printable(title),
        css=Markup(own("page.css")),  # noqa: S704 - a file of this package
        summaries=shown,
        parts=[(title, note, Markup(element)) for (title, note), element in embedded.parts],  # noqa: S704
        resources=Markup(embedded.resources),  # noqa: S704 - of Bokeh
        script=Markup(embedded.script),  # noqa: S704 - of Bokeh, which escapes what it embeds
        version=mmap_st.__version__,
        date=today().isoformat(),
    )


@dataclass(frozen=True)
class Part:
    """A part of the page that Bokeh draws.

    Attributes
    ----------
    title, note
        What it is called, and what to know of it.
    root
        What is drawn.
    start
        Called once the page is ready.
    """

    title: str
    note: str
    root: UIElement
    start: CustomJS


@dataclass(frozen=True)
class Embedded:
    """Bokeh itself, the script that starts it, and for each part its title, note and element."""

    resources: str = ""
    script: str = ""
    parts: tuple[tuple[tuple[str, str], str], ...] = ()


def _parts(slides: PagedSlides | None, charts: Charts | None) -> list[Part]:
    """Everything that Bokeh draws, from the top of the page to its bottom."""
    from mmap_st.report.page.charts import curves_chart, patients_chart
    from mmap_st.report.page.maps import maps_and_genes
    from mmap_st.report.page.prototypes import note_of, prototypes_part
    from mmap_st.report.page.stage import new_stage

    found = []
    if charts is not None and (patients := patients_chart(charts.scores)) is not None:
        found.append(Part("Patients", _PATIENTS_NOTE, *patients))
    if slides is not None:
        stage = new_stage([slide.name for slide in slides.slides])
        found.append(Part("Maps", _maps_note(slides), *maps_and_genes(stage, slides.slides, slides.columns)))
        if (prototypes := prototypes_part(stage, slides.slides)) is not None:
            found.append(Part("Prototypes", note_of(slides.slides), *prototypes))
    if charts is not None and (curves := curves_chart(charts.histories)) is not None:
        found.append(Part("Validation", _CURVES_NOTE, *curves))
    return found


def _embedded(parts: Sequence[Part]) -> Embedded:
    from bokeh.document import Document
    from bokeh.embed import components
    from bokeh.events import DocumentReady
    from bokeh.resources import Resources

    document = Document()
    for part in parts:
        document.add_root(part.root)
        document.js_on_event(DocumentReady, part.start)
    script, elements = components(tuple(part.root for part in parts))
    resources = Resources(mode="inline", components=["bokeh", "bokeh-widgets", "bokeh-tables"])
    titles = [(part.title, part.note) for part in parts]
    return Embedded(resources.render(), str(script), tuple(zip(titles, map(str, elements), strict=True)))


def _maps_note(slides: PagedSlides) -> str:
    genes = counted(len(slides.slides[0].genes), "gene")
    left = (
        f" {slides.left_out} more have no room on this page; name them with --genes."
        if slides.left_out
        else ""
    )
    measured = any(slide.measured is not None for slide in slides.slides)
    return (
        f"{counted(len(slides.slides), 'slide')}, {genes}.{left} Choose a gene in the table or by its name;"
        f" maps zoom and move together. {_HOW_TO_READ}{_OF_MEASURED if measured else ''}{_OF_GENES}"
    )
