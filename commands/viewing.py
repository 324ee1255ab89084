"""The command that shows slides in a browser: view."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmap_st.commands import console
from mmap_st.commands.options import split_words


def view(
    where: Annotated[
        Path,
        typer.Argument(
            metavar="STORE|DIR", help="A folder of predictions, a run, one .h5ad file, or a feature store."
        ),
    ],
    slide: Annotated[str | None, typer.Option("--slide", help="The slide to begin with.")] = None,
    genes: Annotated[
        str | None,
        typer.Option("--genes", "--gene", help="Names or ids of those to begin with, such as ERBB2,FASN."),
    ] = None,
    cohort: Annotated[
        str | None,
        typer.Option("--cohort", help="Where images and measured values are from, if not the files."),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Of the server; default: one that is free.")
    ] = 0,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the address, and open no browser.")
    ] = False,
) -> None:
    """Show whole slides at any zoom in a browser, with expression over them; until Ctrl-C."""
    from mmap_st import workflows

    try:
        with workflows.view(
            where,
            slide=slide,
            genes=split_words(genes),
            cohort=cohort,
            port=port,
            open_browser=False if no_browser else None,
        ) as viewer:
            console.show_reasons("failed", viewer.failed)
            console.say("slides are shown on this machine alone, until Ctrl-C, at")
            console.say_now(viewer.url)
            viewer.wait()
    except KeyboardInterrupt:
        console.say("the viewer is closed")
