"""Where the training tissue lies for each of several encoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mmap_st.head.domain import Domain, FittedDomain, Strangeness, fit_domain, saved_domain, strangest
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import HeldOut, Tensors
from mmap_st.head.joined.joined_head import of_member, seen_by, to_member


@dataclass(frozen=True)
class JoinedDomain:
    """Where the training tissue lies for each encoder; None for an encoder that cannot tell.

    A slide, and each of its spots, is as far from it as the encoder says that sees it farthest.
    """

    parts: tuple[Domain | None, ...]

    def judge(self, slide: HeadSlide) -> Strangeness:
        """How far a slide and its spots lie from the training tissue."""
        pairs = zip(self.parts, slide.by_encoder, strict=True)
        return strangest([part.judge(seen) for part, seen in pairs if part is not None])

    def tensors(self) -> Tensors:
        """By name, to be saved with a head's weights."""
        known = ((number, part) for number, part in enumerate(self.parts) if part is not None)
        return {name: value for k, part in known for name, value in to_member(part.tensors(), k).items()}


@dataclass(frozen=True)
class FittedJoinedDomain:
    """The training tissue as each encoder sees it, whole and without each fold."""

    parts: tuple[FittedDomain | None, ...]

    @property
    def domain(self) -> JoinedDomain:
        """Of the whole."""
        return JoinedDomain(tuple(None if part is None else part.domain for part in self.parts))

    def held_out_distance(self, part: HeldOut) -> NDArray[np.float32]:
        """(k,) float32 distance of spots from tissue that they are not of, 1 being typical."""
        found = [
            fitted.held_out_distance(replace(part, slide=seen))
            for fitted, seen in zip(self.parts, part.slide.by_encoder, strict=True)
            if fitted is not None
        ]
        farthest: NDArray[np.float32] = np.fmax.reduce(found)
        return farthest


def fit_joined_domain(
    train: Sequence[HeadSlide], folds: Sequence[NDArray[np.int64]]
) -> FittedDomain | FittedJoinedDomain | None:
    """Find the training tissue as each encoder sees it; None where no encoder can tell."""
    parts = tuple(fit_domain(seen_by(train, k), folds) for k in range(len(train[0].by_encoder)))
    if len(parts) == 1:
        return parts[0]
    return FittedJoinedDomain(parts) if any(parts) else None


def saved_joined_domain(tensors: Tensors, encoders: int) -> Domain | JoinedDomain | None:
    """What was saved with a head of so many encoders; None where there is none."""
    if encoders == 1:
        return saved_domain(tensors)
    parts = tuple(saved_domain(of_member(tensors, number)) for number in range(encoders))
    return JoinedDomain(parts) if any(parts) else None
