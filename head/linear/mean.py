"""The head `mean`: predicts the training mean for every spot. Any other head must beat it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mmap_st.data import Targets
from mmap_st.head.blocks import Block, spot_blocks
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import HeadMethod, HeldOut, Shape, Tensors, Validation, cross_fit
from mmap_st.progress import ProgressCallback


@dataclass(frozen=True)
class MeanSettings:
    """The head `mean` has no settings."""


@dataclass
class MeanHead:
    """A trained `mean` head.

    Attributes
    ----------
    mean
        (G,) float32, mean of the training targets.
    left_out
        Computes the predictions of `held_out`.
    """

    mean: NDArray[np.float32]
    left_out: Callable[[], Sequence[HeldOut]] = tuple
    history: list[dict[str, float]] = field(default_factory=list)
    chosen: dict[str, object] = field(default_factory=dict)

    def predict(self, slide: HeadSlide) -> NDArray[np.float32]:
        return self._predict(slide.valid)

    def predict_blocks(self, slide: HeadSlide, size: int, *, attend: bool) -> Iterator[Block]:
        for rows in spot_blocks(len(slide), size):
            yield Block(rows, self._predict(slide.valid[rows]))

    def _predict(self, valid: NDArray[np.bool_]) -> NDArray[np.float32]:
        predicted = np.repeat(self.mean[None], len(valid), axis=0)
        predicted[~valid] = np.nan
        return predicted

    def tensors(self) -> Tensors:
        return {"mean": self.mean}

    def held_out(self) -> Sequence[HeldOut]:
        return self.left_out()


def training_mean(train: Sequence[HeadSlide]) -> NDArray[np.float32]:
    """(G,) float32 mean of the defined targets over all usable spots; 0 for a gene without any."""
    return mean_target([(slide.targets, slide.usable) for slide in train])


def mean_target(parts: Sequence[tuple[Targets, NDArray[np.bool_]]]) -> NDArray[np.float32]:
    """(G,) float32 mean over the spots of a mask (n,) of each slide; 0 for a gene that no slide has."""
    total = sum(targets.total(use) for targets, use in parts)
    count = sum(targets.present * float((use & targets.defined).sum()) for targets, use in parts)
    mean: NDArray[np.float32] = (total / np.maximum(count, 1)).astype(np.float32)
    return mean


def fit_mean(
    train: Sequence[HeadSlide],
    validation: Validation,
    settings: MeanSettings,
    seed: int,
    progress: ProgressCallback,
) -> MeanHead:
    """Average the training targets."""

    def without(number: int) -> MeanHead:
        return MeanHead(training_mean(validation.folds[number][0]))

    return MeanHead(training_mean(train), lambda: cross_fit(validation, without))


def load_mean(tensors: Tensors, settings: MeanSettings, shape: Shape) -> MeanHead:
    """Load a trained head from its tensors."""
    return MeanHead(tensors["mean"])


MEAN = HeadMethod(
    "mean",
    MeanSettings,
    fit_mean,
    load_mean,
    seeded=False,
    summary="the training mean for every spot; any other head must beat it",
)
