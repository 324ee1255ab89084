"""Tokens of spots in fewer numbers, so that those of a whole cohort fit in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mmap_st.extract.embeddings import row_blocks
from mmap_st.head.components import whitened_axes
from mmap_st.head.networks.parts import Part

# Axes are those of a sample: they hardly change with more tokens.
_MOST_TOKENS = 8_192


def token_axes(parts: Sequence[Part], components: int) -> NDArray[np.float32]:
    """(t, components) partly whitened principal axes of tokens at the finest magnification.

    They are found on spots taken evenly from all parts, and no expression is looked at. Axes that so few
    tokens do not have are 0.
    """
    _, _, places, width = parts[0].slide.grids.shape
    most = max(1, _MOST_TOKENS // places)
    step = max(1, -(-sum(len(part) for part in parts) // most))
    sample = np.concatenate([_finest(part, part.rows[::step]) for part in parts]).reshape(-1, width)
    found = whitened_axes(sample.astype(np.float64), min(components, *sample.shape))
    axes = np.zeros((width, components), np.float32)
    axes[:, : found.shape[1]] = found
    return axes


def reduced_tokens(part: Part, axes: NDArray[np.float32]) -> NDArray[np.float16]:
    """(k, g * g, c) tokens of a part's spots at the finest magnification on axes (t, c), read in blocks."""
    finest = part.slide.by_magnification[0].grids
    reduced = np.empty((len(part), finest.shape[2], axes.shape[1]), np.float16)
    for where, rows in row_blocks(finest, part.rows):
        reduced[where] = _finest(part, rows) @ axes
    return reduced


def _finest(part: Part, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """(k, g * g, t) tokens of some of the slide's spots, standardised within the slide."""
    return part.slide.by_magnification[0].standardised_tokens(rows)[:, 0]
