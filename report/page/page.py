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
    script = maps = resources = ""
    if slides is not None:
        resources, script, maps = _embedded(slides)
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
        maps_note="" if slides is None else _maps_note(slides),
        resources=Markup(resources),  # noqa: S704 - of Bokeh
        script=Markup(script),  # noqa: S704 - of Bokeh, which escapes what it embeds
        maps=Markup(maps),  # noqa: S704
        version=mmap_st.__version__,
        date=today().isoformat(),
    )


def _embedded(slides: PagedSlides) -> tuple[str, str, str]:
    """Bokeh itself, the script that starts it, and the element that it draws into."""
    from bokeh.document import Document
    from bokeh.embed import components
    from bokeh.events import DocumentReady
    from bokeh.resources import Resources

    from mmap_st.report.page.maps import maps_and_genes

    root, start = maps_and_genes(slides.slides, slides.columns)
    document = Document()
    document.add_root(root)
    document.js_on_event(DocumentReady, start)
    script, element = components(root)
    resources = Resources(mode="inline", components=["bokeh", "bokeh-widgets", "bokeh-tables"])
    return resources.render(), str(script), str(element)


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
