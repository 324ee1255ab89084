"""Standardisation of embeddings: within each slide, which takes away what staining and scanning add."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mmap_st.head.slides import HeadSlide

# A spread below this is that of a constant column.
_SMALLEST_SPREAD = 1e-6


def standardise(slide: HeadSlide) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Embeddings (n, M, d) and candidates (K, M, d) in units of the slide's own mean and spread.

    Mean and standard deviation are over the slide's valid spots; columns that do not vary become 0. No
    expression is used, so that a slide that was never sequenced is treated the same. Rows that are not
    valid become 0.
    """
    usable = slide.embedding[slide.valid].astype(np.float64)
    if len(usable) == 0:
        return np.zeros_like(slide.embedding), slide.centre
    mean, spread = usable.mean(axis=0), usable.std(axis=0)
    scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > _SMALLEST_SPREAD)
    embedding = np.where(slide.valid[:, None, None], (slide.embedding - mean) * scale, 0.0)
    centre = None if slide.centre is None else ((slide.centre - mean) * scale).astype(np.float32)
    return embedding.astype(np.float32), centre
