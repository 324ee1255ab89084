"""Heads that tell which prototypes they attended to, and what they tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import FittedHead


@dataclass(frozen=True)
class Attention:
    """What the spots of a slide attended to.

    Attributes
    ----------
    weights
        (n, K) float16 over the slide's prototype candidates; rows sum to 1, or are 0 where a spot attends to
        none. Half precision, since they are kept beside predictions to be looked at.
    encoder
        Of a head of several encoders, whose candidates these are, by its number; each has its own.
    """

    weights: NDArray[np.float16]
    encoder: int = 0


@runtime_checkable
class AttendingHead(Protocol):
    """A trained head that attends to prototypes."""

    def predict_and_attend(self, slide: HeadSlide) -> tuple[NDArray[np.float32], Attention | None]:
        """Predictions as of `FittedHead.predict`, and the attention that they rest on, if any."""
        ...


def predict_and_attend(head: FittedHead, slide: HeadSlide) -> tuple[NDArray[np.float32], Attention | None]:
    """Predict a slide, and tell what its spots attended to.

    Returns
    -------
    (n, G) float32 predictions, and the attention; None of a head that attends to no prototypes.
    """
    if isinstance(head, AttendingHead):
        return head.predict_and_attend(slide)
    return head.predict(slide), None
