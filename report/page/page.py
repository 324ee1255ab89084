"""One page of results that opens anywhere: no network, no other file, nothing to install."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import mmap_st
from mmap_st.errors import counted, printable
from mmap_st.files import write_text, writing
from mmap_st.report.page.slide_layers import SlideLayers
from mmap_st.report.summary import Summary

#: Most values of all layers of all slides on a page: it then stays below 15 MB, with 2 MB for what draws it.
MOST_VALUES = 16_000_000


_HOW_TO_READ = (
    "Colours end at the 1st and 99th percentile of the values. The spread is the standard deviation of the"
    " error that a prediction is expected to have. PCC here: correlation with measured values on this slide;"
    " cv PCC: on slides that fits did not see; ceiling: what a perfect predictor would reach."
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


def write_page(path: Path, title: str, summaries: Sequence[Summary], slides: PagedSlides | None) -> Path:
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

    Raises
    ------
    WriteError
        If the file cannot be written.
    """
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, page_of(title, summaries, slides))
    return path


def page_of(
    title: str,
    summaries: Sequence[Summary],
    slides: PagedSlides | None,
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
    embedded = Embedded() if slides is None else _embedded(slides)
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
        parts=[(part.title, part.note, Markup(part.element)) for part in embedded.parts],  # noqa: S704
        resources=Markup(embedded.resources),  # noqa: S704 - of Bokeh
        script=Markup(embedded.script),  # noqa: S704 - of Bokeh, which escapes what it embeds
        version=mmap_st.__version__,
        date=today().isoformat(),
    )


@dataclass(frozen=True)
class Part:
    """A part of the page that Bokeh draws: its title, what to know of it, and the element that it is in."""

    title: str
    note: str
    element: str


@dataclass(frozen=True)
class Embedded:
    """Bokeh itself, the script that starts it, and what it draws."""

    resources: str = ""
    script: str = ""
    parts: tuple[Part, ...] = ()


def _embedded(slides: PagedSlides) -> Embedded:
    from bokeh.document import Document
    from bokeh.embed import components
    from bokeh.events import DocumentReady
    from bokeh.resources import Resources

    from mmap_st.report.page.maps import maps_and_genes
    from mmap_st.report.page.prototypes import note_of, prototypes_part
    from mmap_st.report.page.stage import new_stage

    stage = new_stage([slide.name for slide in slides.slides])
    titles = [("Maps", _maps_note(slides))]
    made = [maps_and_genes(stage, slides.slides, slides.columns)]
    prototypes = prototypes_part(stage, slides.slides)
    if prototypes is not None:
        titles.append(("Prototypes", note_of(slides.slides)))
        made.append(prototypes)
    document = Document()
    for root, start in made:
        document.add_root(root)
        document.js_on_event(DocumentReady, start)
    script, elements = components(tuple(root for root, _ in made))
    resources = Resources(mode="inline", components=["bokeh", "bokeh-widgets", "bokeh-tables"])
    parts = (Part(*title, str(element)) for title, element in zip(titles, elements, strict=True))
    return Embedded(resources.render(), str(script), tuple(parts))


def _maps_note(slides: PagedSlides) -> str:
    genes = counted(len(slides.slides[0].genes), "gene")
    left = (
        f" {slides.left_out} more have no room on this page; name them with --genes."
        if slides.left_out
        else ""
    )
    return (
        f"{counted(len(slides.slides), 'slide')}, {genes}.{left} Choose a gene in the table or by its name;"
        f" maps zoom and move together. {_HOW_TO_READ}"
    )
