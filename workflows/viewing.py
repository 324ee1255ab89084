"""Whole slides in a browser, with expression over them."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path

from mmap_st.data.readers import CohortSource
from mmap_st.errors import RequestError
from mmap_st.extract.store import FeatureStore
from mmap_st.report.viewer import Answers, Viewer, first_slide, open_catalogue
from mmap_st.workflows.arguments import Names, StoreLike, read_cohort, words_of
from mmap_st.workflows.display import warn_left_out


def view(
    where: StoreLike,
    *,
    slide: str | None = None,
    genes: Names | None = None,
    cohort: CohortSource | None = None,
    port: int = 0,
    open_browser: bool | None = None,
) -> Viewer:
    """Show whole slides at any zoom, with expression over them, in a browser or a notebook.

    A server on this machine, which other machines cannot reach, reads tiles of the slides and values of genes
    when they are looked at. Its address holds a secret: others on this machine see nothing without it.

    Parameters
    ----------
    where
        A folder of predictions, one .h5ad file of it, the folder of a run, or a feature store or its path. Of
        a store, spots have the colours of their prototypes.
    slide
        Name of the slide to begin with. None: the first.
    genes
        Genes to begin with, by name or id: they come first among those to choose from. None: the one that the
        head predicts best.
    cohort
        Where images are from, and measured values, where the files do not have them. None: the images that
        predictions name; of a store, none.
    port
        Of the server. 0: one that is free.
    open_browser
        Whether to open a browser. None: where Python runs in a terminal, and not in a notebook.

    Returns
    -------
    The viewer, with its address ``url`` and ``close()``; a context manager, and what a notebook shows. It
    closes when Python ends.

    Warns
    -----
    SlidesLeftOutWarning
        If some slides cannot be shown; it gives their reasons.

    Raises
    ------
    RequestError
        If there is nothing to show at `where`, no such slide, no slide with any of the genes, or the port
        cannot be listened on.
    SlidesFailedError
        If none of the slides can be read; it gives their reasons.

    Examples
    --------
    >>> mm.predict(run, store, folder / "shown", cohort=cohort, progress=False).written.keys()
    dict_keys(['A1', 'B1', 'C1'])
    >>> viewer = mm.view(folder / "shown", slide="B1", open_browser=False)
    >>> viewer.url.startswith("http://127.0.0.1:")
    True
    >>> viewer.close()
    """
    if not 0 <= port <= 65_535:
        raise RequestError(f"--port {port}: give a number from 1 to 65535, or leave it out for a free port.")
    rows = None if cohort is None else read_cohort(cohort)
    words = None if genes is None else words_of(genes, "--genes")
    place = where.path if isinstance(where, FeatureStore) else where
    catalogue = open_catalogue(Path(str(place)), rows, words)
    viewer = Viewer(Answers(catalogue, first_slide(catalogue, slide)), port)
    warn_left_out(viewer.failed, {})
    if _someone_looks() if open_browser is None else open_browser:
        webbrowser.open(viewer.url)
    return viewer


def _someone_looks() -> bool:
    """Whether Python runs in a terminal, and on a screen: elsewhere a browser of text would start."""
    streams = (sys.stdin, sys.stdout)
    in_terminal = all(stream is not None and stream.isatty() for stream in streams)
    has_screen = sys.platform in ("win32", "darwin") or "DISPLAY" in os.environ
    return in_terminal and (has_screen or "WAYLAND_DISPLAY" in os.environ)
