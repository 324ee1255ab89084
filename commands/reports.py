"""Commands that show predictions, and hand them to other tools: report, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmap_st.commands import console
from mmap_st.commands.options import split_words


def report(
    run: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="A run, predictions (their folder, or one .h5ad); several for --figure.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="A page (its name ends in .html), or a folder for figures and page.")
    ],
    genes: Annotated[
        str | None,
        typer.Option(help="Names or ids such as ERBB2,FASN, or a file of them; default: the best predicted."),
    ] = None,
    figure: Annotated[
        str | None,
        typer.Option(help="genes: a figure of each of --genes instead, measured and predicted by every RUN."),
    ] = None,
    store: Annotated[
        Path | None, typer.Option("--store", help="The run's feature store: adds prototype maps.")
    ] = None,
    formats: Annotated[str, typer.Option("--format", help="Of figures: png, svg, pdf, or several.")] = "png",
    scale: Annotated[
        str,
        typer.Option(help="Colours of figures: shared by measured and predicted values, or each map's own."),
    ] = "shared",
    spread: Annotated[
        bool, typer.Option("--spread", help="Add maps of the predictions' spread to the figures.")
    ] = False,
) -> None:
    """Show results: a page to click through, and figures of measured next to predicted maps."""
    from mmap_st.extract.store import FeatureStore
    from mmap_st.report import FigureOptions, report_results
    from mmap_st.workflows import show_progress

    options = FigureOptions(tuple(split_words(formats.lower()) or ()), scale, spread)
    opened = None if store is None else FeatureStore(store)
    with show_progress() as progress:
        drawn = report_results(
            run, out, split_words(genes), figure=figure, store=opened, options=options, tell=progress
        )
    for text in drawn.notes:
        console.warn(text)
    console.show_reasons("failed", drawn.failed)
    console.show_paths(drawn.written)
    raise typer.Exit(1 if drawn.failed else 0)


def export(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run, or predictions: their folder, or one .h5ad.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")],
    formats: Annotated[
        str,
        typer.Option("--format", help="csv, parquet, geojson (for QuPath), spatialdata, or several."),
    ],
    genes: Annotated[
        str | None,
        typer.Option(
            help="Names or ids such as ERBB2,FASN, or a file of them; default: all, and the 20 that are"
            " predicted best in GeoJSON."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
) -> None:
    """Write predictions as files that other tools read: tables, GeoJSON, SpatialData."""
    from mmap_st.report.exports import export_predictions
    from mmap_st.workflows import show_progress

    words = split_words(formats.lower()) or ()
    with show_progress() as progress:
        done = export_predictions(run, out, words, split_words(genes), overwrite=overwrite, tell=progress)
    for text in done.notes:
        console.warn(text)
    console.show_reasons("failed", done.failed)
    console.show_paths(done.written)
    raise typer.Exit(1 if done.failed else 0)
