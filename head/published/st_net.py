"""The head `st-net`: one linear layer on one magnification.

Paper
    ST-Net: He, Bergenstråhle, Stenbeck, et al. 2020, "Integrating spatial gene expression and breast tumour
    morphology via deep learning" (Nature Biomedical Engineering).
Kept
    Each spot is predicted from one window around it, by one linear layer on what a network makes of that
    window; all genes at once, by squared error.
Changed
    The network below that layer is frozen here, where ST-Net trains a DenseNet-121 along with it: only the
    linear layer is learned. Its best weights have a closed form, that of `ridge`, with that head's rule for
    the strength of the penalty. The magnification is chosen too, unless it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from mmap_st.errors import HeadError
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import HeadMethod, HeldOut, Shape, Tensors, Validation, best_of
from mmap_st.head.linear import RidgeHead, RidgeSettings, fit_ridge, load_ridge
from mmap_st.head.networks import check_at_least
from mmap_st.progress import ProgressCallback


@dataclass(frozen=True)
class StNetSettings:
    """Settings of `st-net`.

    Attributes
    ----------
    magnification
        Number of the magnification, 1 is the finest; None: the best on the validation slides.
    rank
        Number of axes of expression to fit; None: the genes themselves on panels of up to 1,000, otherwise
        256 axes.
    """

    magnification: int | None = None
    rank: int | None = None

    def __post_init__(self) -> None:
        check_at_least(self, 1, "magnification", "rank")


@dataclass
class StNetHead:
    """A ridge, and the number of the magnification that it uses, from 1."""

    magnification: int
    ridge: RidgeHead
    history: list[dict[str, float]] = field(default_factory=list)
    chosen: dict[str, object] = field(default_factory=dict)

    def predict(self, slide: HeadSlide) -> NDArray[np.float32]:
        return self.ridge.predict(slide.by_magnification[self.magnification - 1])

    def tensors(self) -> Tensors:
        return {**self.ridge.tensors(), "magnification": np.array([self.magnification])}

    def held_out(self) -> Sequence[HeldOut]:
        return self.ridge.held_out()


def fit_st_net(
    train: Sequence[HeadSlide],
    validation: Validation,
    settings: StNetSettings,
    seed: int,
    progress: ProgressCallback,
) -> StNetHead:
    """Fit a ridge on each magnification that may be chosen, then on the best.

    Raises
    ------
    HeadError
        If the slides do not have the requested magnification.
    """
    count = train[0].embedding.shape[1]
    if settings.magnification is not None and settings.magnification > count:
        raise HeadError(
            f"magnification={settings.magnification}: there are {count}; give one from 1 to {count}."
        )

    def fit(number: int, alpha: float | None) -> RidgeHead:
        progress(f"st-net: magnification {number} of {count}")
        slides = [slide.by_magnification[number - 1] for slide in train]
        return fit_ridge(
            slides, _at(validation, number), RidgeSettings(alpha, rank=settings.rank), seed, progress
        )

    tried = range(1, count + 1) if settings.magnification is None else (settings.magnification,)
    # Only the scores of each are kept: the sums of all would need many times the memory of `ridge`.
    history = [
        {"magnification": float(number), **row} for number in tried for row in fit(number, None).history
    ]
    best = best_of(history)
    magnification = int(best["magnification"])
    ridge = fit(magnification, best["alpha"])
    return StNetHead(magnification, ridge, history, {"magnification": magnification, **ridge.chosen})


def load_st_net(tensors: Tensors, settings: StNetSettings, shape: Shape) -> StNetHead:
    """Load a trained head from its tensors."""
    ridge = load_ridge(tensors, RidgeSettings(rank=settings.rank), shape)
    return StNetHead(int(tensors["magnification"][0]), ridge)


def _at(validation: Validation, number: int) -> Validation:
    """Return the same folds at one magnification."""

    def at(slides: Sequence[HeadSlide]) -> tuple[HeadSlide, ...]:
        return tuple(slide.by_magnification[number - 1] for slide in slides)

    return replace(
        validation, folds=tuple((at(fitted), at(validated)) for fitted, validated in validation.folds)
    )


ST_NET = HeadMethod(
    "st-net",
    StNetSettings,
    fit_st_net,
    load_st_net,
    seeded=False,
    summary="one linear layer on one magnification (ST-Net 2020)",
)
