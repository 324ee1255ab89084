"""Figures for notebooks: expression maps, prototype maps and comparisons."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmap_st.errors import MmapWarning, RequestError, did_you_mean, printable
from mmap_st.extract.slides import thumbnail_of
from mmap_st.extract.store import FeatureStore
from mmap_st.head.evaluation import COMPARE_JSON, ComparisonResult, read_comparison
from mmap_st.head.runs import UNS
from mmap_st.prototypes import CandidateSettings, stored_candidates
from mmap_st.report import (
    ONE_SCALE,
    PANEL_IN,
    FigureOptions,
    best_genes,
    comparison_figure,
    draw_prototypes,
    expression_map,
    how_chosen,
    map_of,
    prototypes_map,
)
from mmap_st.urls import place_of

if TYPE_CHECKING:
    import anndata

    from mmap_st.workflows import Comparison

__all__ = ["comparison", "genes", "prototypes"]


def genes(
    adata: anndata.AnnData,
    genes: str | Sequence[str] | None = None,
    *,
    number: int = 4,
    image: str | Path | None = None,
    size: float = PANEL_IN,
    scale: str = ONE_SCALE,
    spread: bool = False,
) -> Figure:
    """Draw maps of genes: measured above predicted, or predicted alone where nothing was measured.

    Parameters
    ----------
    adata
        A prediction of one slide, from `HeadRun.predict` or a .h5ad file of ``mmap predict``.
    genes
        Which genes, from left to right. None: the `number` that correlate best with measured values, or that
        vary most where there are none.
    number
        How many genes to choose.
    image
        The slide's image, drawn behind the spots. None: the one that the prediction names, if it is there.
    size
        Width of one map in inches.
    scale
        ``shared``: measured and predicted values of a gene have the same colours; ``own``: each map has its
        own.
    spread
        Whether to draw the spread of the predictions below them.

    Returns
    -------
    A matplotlib figure, which a notebook shows.

    Raises
    ------
    RequestError
        If `adata` is not a prediction, or has none of the genes; if the scale is not known.

    Warns
    -----
    MmapWarning
        If `adata` does not have some of the genes; the others are drawn.

    Examples
    --------
    >>> adata = run.predict(store, "B1", progress=False)
    >>> len(mm.pl.genes(adata, number=2).axes)  # two maps, and the scales of their colours
    4
    """
    about = adata.uns.get(UNS)
    if about is None or "units" not in about:
        raise RequestError(
            f"adata is not a prediction: it has no uns[{UNS!r}]; give what HeadRun.predict returns."
        )
    names = [str(name) for name in adata.var_names]
    chosen = [genes] if isinstance(genes, str) else None if genes is None else list(genes)
    unknown = [gene for gene in chosen or () if gene not in names]
    if unknown:
        missing = f"gene {', '.join(unknown)} is not among the {len(names)} predicted"
        if len(unknown) == len(chosen or ()):
            raise RequestError(f"{missing}{did_you_mean(unknown[0], names)}; adata.var_names are.")
        warnings.warn(printable(f"{missing}, and is not drawn"), MmapWarning, stacklevel=2)
        chosen = [gene for gene in chosen or () if gene in names]
    slide = map_of(adata, None if image is None else place_of(image))
    caption = how_chosen(slide) if chosen is None else ""
    options = FigureOptions(scale=scale, spread=spread)
    shown = chosen or best_genes(slide, min(number, len(names)))
    return expression_map(slide, shown, caption, size, scale=options.scale, spread=options.spread)


def prototypes(
    store: FeatureStore | str | Path,
    slide: str,
    *,
    encoder: str | None = None,
    mpp: float | Sequence[float] | None = None,
    kind: str = "kmeans",
    clusters: int | None = None,
    seed: int = 0,
    image: str | Path | None = None,
    size: float = 5.2,
    ax: Axes | None = None,
) -> Figure:
    """Draw where the prototypes of a slide are; similar colours are similar embeddings.

    Prototypes that are not in the store yet are built and stored.

    Parameters
    ----------
    store
        A feature store, or its path.
    slide
        Name of a slide.
    encoder
        Name of an encoder in the store. None: the only one that the slide has.
    mpp
        Micrometres per pixel of the embeddings that are clustered. None: all that are complete.
    kind
        ``kmeans`` or ``random``.
    clusters
        How many. None: one per five spots, from 32 to 80.
    seed
        Of random ones.
    image
        The slide's image, drawn behind the spots, and shown at the spots nearest to the largest prototypes.
        None: no image.
    size
        Width of the figure in inches.
    ax
        Axes to draw into, in place of a new figure.

    Returns
    -------
    A matplotlib figure, which a notebook shows.

    Raises
    ------
    StoreError
        If the store does not have the slide, or its embeddings.

    Examples
    --------
    >>> figure = mm.pl.prototypes(store, "A1", encoder="efficientnet-lite0")
    >>> len(figure.axes)
    1
    """
    opened = store if isinstance(store, FeatureStore) else FeatureStore(store)
    stored = opened[slide]
    name = stored.only_encoder() if encoder is None else encoder
    mpps = [magnification.mpp for magnification in stored.chosen(name, mpp)]
    settings = CandidateSettings(kind, clusters, seed=seed if kind == "random" else 0)
    candidates, _ = stored_candidates(opened, stored, name, mpps, settings)
    xy, background = stored.spot_xy(), None if image is None else thumbnail_of(place_of(image))
    if ax is None:
        return prototypes_map(
            slide,
            xy,
            candidates,
            background,
            stored.source_mpp,
            size,
            None if image is None else place_of(image),
        )
    draw_prototypes(ax, slide, xy, candidates, background, stored.source_mpp)
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def comparison(result: Comparison | ComparisonResult | str | Path, *, size: float = 7.6) -> Figure:
    """Draw a comparison: every row with its patients, and its 95% interval where there are enough.

    Parameters
    ----------
    result
        What `compare` returned, or the folder that it wrote.
    size
        Width of the figure in inches.

    Returns
    -------
    A matplotlib figure, which a notebook shows: correlation, its paired difference to a reference, and
    squared error. Encoders are side by side for each head where several were compared, else magnifications,
    else heads; the reference is the first encoder, the first magnifications, or the head mmap (or ridge).
    Dots are patients.

    Raises
    ------
    HeadError
        If the folder holds no comparison.
    RequestError
        If no row has scores.

    Examples
    --------
    >>> figure = mm.pl.comparison(result)
    >>> [ax.get_xlabel().split(",")[0] for ax in figure.axes]
    ['PCC', 'PCC', 'MSE']
    """
    if isinstance(result, str | Path):
        result = read_comparison(Path(result) / COMPARE_JSON)
    figure = comparison_figure(result.rows, size)
    if figure is None:
        raise RequestError("no row of the comparison has scores; its table says why.")
    return figure
