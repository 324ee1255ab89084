"""Counts of simulated tissue, drawn from known functions of what surrounds each spot.

The logarithm of a gene's share of the transcripts is a sum of

* fine effects: linear in the shares of the cell types inside the spot (radius 50 um);
* coarse effects: linear in the share of lymphocytes in the ring around it (60 to 220 um);
* global effects: linear in the section's share of tumour, alone and times the spot's own tumour share, so
  that the section decides both a gene's level and how tumour cells express it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from mmap_st.workflows.simulation.tissue import CELL_TYPES, Tissue

_SPOT_RADIUS_UM = 50.0
_RING_UM = (60.0, 220.0)
# Effects are counted from here.
_AVERAGE_SHARE = 0.25
_AVERAGE_RING = 0.35


@dataclass(frozen=True)
class GeneEffects:
    """What drives each gene; every array has one row or entry a gene.

    Attributes
    ----------
    names
        Gene names; the prefix tells the kind (FINE, COARSE, GLOBAL, FLAT).
    base
        (g,) log share of the transcripts without any effect.
    fine
        (g, 4) effect of each cell type's share in the spot.
    coarse
        (g,) effect of the lymphocytes around the spot.
    level
        (g,) effect of the section's tumour share on every spot.
    state
        (g,) effect of the section's tumour share on the spot's tumour cells.
    """

    names: tuple[str, ...]
    base: NDArray[np.float64]
    fine: NDArray[np.float64]
    coarse: NDArray[np.float64]
    level: NDArray[np.float64]
    state: NDArray[np.float64]


@dataclass(frozen=True)
class SpotContext:
    """What the expression of each spot depends on.

    Attributes
    ----------
    composition
        (n, 4) shares of the cell types within the spot.
    ring
        (n,) share of lymphocytes in the ring around it.
    section
        The section's share of tumour cells.
    """

    composition: NDArray[np.float64]
    ring: NDArray[np.float64]
    section: float


def draw_effects(
    rng: np.random.Generator, genes_per_kind: int, *, coarse: bool, slide_factor: bool
) -> GeneEffects:
    """Draw the genes of a cohort: four kinds, `genes_per_kind` of each.

    `coarse` and `slide_factor` switch those effects off without changing any other draw, so that cohorts
    which differ in a switch share their other genes.
    """
    kinds = np.repeat(np.arange(4), genes_per_kind)
    n = len(kinds)
    fine = rng.normal(0.0, 1.0, (n, len(CELL_TYPES)))
    fine *= np.where(kinds == 0, 1.3, 0.15)[:, None]
    signs = rng.choice([-1.0, 1.0], (3, n))
    size = rng.uniform(0.7, 1.3, (3, n))
    around, level, state = signs * size
    return GeneEffects(
        names=tuple(
            f"{('FINE', 'COARSE', 'GLOBAL', 'FLAT')[kind]}{index % genes_per_kind + 1:03d}"
            for index, kind in enumerate(kinds)
        ),
        base=rng.normal(0.0, 0.8, n),
        fine=fine,
        coarse=np.where(kinds == 1, 5.0 * around, 0.0) * coarse,
        level=np.where(kinds == 2, 1.0 * level, 0.0) * slide_factor,
        state=np.where(kinds == 2, 3.0 * state, 0.0) * slide_factor,
    )


def spot_context(tissue: Tissue, xy_um: NDArray[np.float64]) -> SpotContext:
    """Count the cells in and around spots at `xy_um` (n, 2), in micrometres."""
    inside = np.zeros((len(xy_um), len(CELL_TYPES)))
    ring = np.zeros((len(xy_um), len(CELL_TYPES)))
    for kind in range(len(CELL_TYPES)):
        of_kind = tissue.xy_um[tissue.cell_type == kind]
        if len(of_kind):
            tree = cKDTree(of_kind)
            inside[:, kind] = _within(tree, xy_um, _SPOT_RADIUS_UM)
            ring[:, kind] = _within(tree, xy_um, _RING_UM[1]) - _within(tree, xy_um, _RING_UM[0])
    return SpotContext(
        composition=inside / np.maximum(inside.sum(axis=1, keepdims=True), 1.0),
        ring=ring[:, 2] / np.maximum(ring.sum(axis=1), 1.0),
        section=tissue.tumour_share,
    )


def within_section(context: SpotContext) -> SpotContext:
    """The context with all of its means over the section's spots set to those of an average section."""
    return SpotContext(
        composition=context.composition - context.composition.mean(axis=0) + _AVERAGE_SHARE,
        ring=context.ring - context.ring.mean() + _AVERAGE_RING,
        section=context.section,
    )


def true_shares(context: SpotContext, effects: GeneEffects) -> NDArray[np.float64]:
    """(n, g) what each gene is expressed at in each spot: its share of an average spot's library."""
    section = (context.section - 0.4) / 0.2
    tumour = context.composition[:, :2].sum(axis=1)
    log_share = (
        effects.base
        + (context.composition - _AVERAGE_SHARE) @ effects.fine.T
        + np.outer(context.ring - _AVERAGE_RING, effects.coarse)
        + section * (0.5 * effects.level + 0.35 * np.outer(tumour - 0.4, effects.state))
    )
    shares: NDArray[np.float64] = np.exp(log_share) / np.exp(effects.base).sum()
    return shares


def draw_counts(
    rng: np.random.Generator, context: SpotContext, effects: GeneEffects, mean_library: float
) -> NDArray[np.int64]:
    """Return (n, g) counts: Poisson around each spot's shares times a log-normal library size."""
    shares = true_shares(context, effects)
    library = mean_library * rng.lognormal(0.0, 0.25, (len(shares), 1))
    counts: NDArray[np.int64] = rng.poisson(library * shares)
    return counts


def _within(tree: cKDTree, xy_um: NDArray[np.float64], radius_um: float) -> NDArray[np.float64]:
    return np.asarray(tree.query_ball_point(xy_um, radius_um, return_length=True), dtype=np.float64)
