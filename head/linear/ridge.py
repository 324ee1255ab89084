"""The head `ridge`: a linear probe on all magnifications, in closed form.

Embeddings are standardised within each slide and targets centred within each training slide, which removes
differences between slides; a prediction is the training mean plus a linear function of the spot's
standardised embeddings. This is a strong baseline that most published models fail to beat.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mmap_st.data import Index
from mmap_st.errors import HeadError
from mmap_st.extract.store import row_blocks
from mmap_st.head.basis import Basis, fit_basis, validation_genes
from mmap_st.head.blocks import Block, spot_blocks
from mmap_st.head.inputs import HeadSlide, subsample_rows
from mmap_st.head.interface import (
    LIMITS,
    HeadMethod,
    HeldOut,
    Limits,
    Shape,
    Tensors,
    Validation,
    best_of,
    cross_fit,
)
from mmap_st.head.linear.closed_form import RidgeBuilder
from mmap_st.head.linear.mean import training_mean
from mmap_st.head.scoring import SlideScores, slide_metrics
from mmap_st.progress import ProgressCallback

#: Strengths that are tried if none is given.
ALPHAS = tuple(float(f"{10 ** (exponent / 2):.3g}") for exponent in range(2, 15))

# The components are computed on a sample: more spots hardly change them.
_MAX_SPOTS = 20_000
# Rows are converted to float64 or to panels of genes: blocks are smaller than elsewhere.
_BLOCK_BYTES = 32 << 20


@dataclass(frozen=True)
class RidgeSettings:
    """Settings of `ridge`.

    Attributes
    ----------
    alpha
        Strength of the penalty; None: chosen on the validation slides, from 10 to 1e7.
    pca
        Number of principal components of the training embeddings to regress on; None: all columns.
    rank
        Number of axes of expression to fit; None: the genes themselves on panels of up to 1,000, otherwise
        256 axes.
    """

    alpha: float | None = None
    pca: int | None = None
    rank: int | None = None

    def __post_init__(self) -> None:
        if self.alpha is not None and not self.alpha > 0:
            raise ValueError(f"alpha is {self.alpha}; it must be greater than 0")
        if self.pca is not None and self.pca < 1:
            raise ValueError(f"pca is {self.pca}; it must be 1 or more")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank is {self.rank}; it must be 1 or more")


@dataclass
class RidgeHead:
    """A fitted ridge: prediction = mean + standardised embedding @ weight, on the axes of a basis.

    Attributes
    ----------
    weight
        (M * d, r) float32.
    mean
        (G,) float32, mean of the training targets.
    basis
        Turns the r coordinates into genes.
    left_out
        Computes the predictions of `held_out`.
    """

    weight: NDArray[np.float32]
    mean: NDArray[np.float32]
    basis: Basis
    left_out: Callable[[], Sequence[HeldOut]] = tuple
    history: list[dict[str, float]] = field(default_factory=list)
    chosen: dict[str, object] = field(default_factory=dict)

    def predict(self, slide: HeadSlide) -> NDArray[np.float32]:
        return self._predict(slide, slice(0, len(slide)))

    def predict_blocks(self, slide: HeadSlide, size: int, *, attend: bool) -> Iterator[Block]:
        for rows in spot_blocks(len(slide), size):
            yield Block(rows, self._predict(slide, rows))

    def _predict(self, slide: HeadSlide, spots: slice) -> NDArray[np.float32]:
        valid = spots.start + np.flatnonzero(slide.valid[spots])
        predicted = np.full((spots.stop - spots.start, len(self.mean)), np.nan, np.float32)
        for _, rows in row_blocks(slide.embedding, valid, _BLOCK_BYTES):
            expression = self.basis.expression(_flat(slide, rows) @ self.weight)
            predicted[rows - spots.start] = expression + self.mean
        return predicted

    def tensors(self) -> Tensors:
        return {"weight": self.weight, "mean": self.mean, **self.basis.tensors()}

    def held_out(self) -> Sequence[HeldOut]:
        return self.left_out()


class RidgePath:
    """Ridge solutions at any strength and without any fold, from one pass over the training slides.

    Parameters
    ----------
    train
        Slides with targets. A gene that is missing from a slide is fitted on the other slides.
    basis
        The axes of expression that are fitted.
    pca
        See `RidgeSettings`.
    folds
        Fold of each slide; None: all are in fold 0.
    """

    def __init__(
        self,
        train: Sequence[HeadSlide],
        basis: Basis,
        pca: int | None = None,
        folds: Sequence[int] | None = None,
    ) -> None:
        self._components = None if pca is None else _principal_components(train, pca)
        builder = RidgeBuilder(centre=False)  # standardised over all valid spots of the slide
        for slide, fold in zip(train, folds or [0] * len(train), strict=True):
            coordinates = basis.coordinates(slide.targets)
            builder.start_group(fold, coordinates.present)
            for _, rows in row_blocks(slide.embedding, np.flatnonzero(slide.usable), _BLOCK_BYTES):
                features = _flat(slide, rows)
                if self._components is not None:
                    features = features @ self._components.T
                builder.add(features, coordinates.rows(rows))
        self._ridge = builder.build()

    def weight(self, alpha: float, without: Collection[int] = ()) -> NDArray[np.float32]:
        """(M * d, r) float32 coefficients at strength `alpha`, without the folds in `without`."""
        weight = self._ridge.weight(alpha, without)
        return weight if self._components is None else self._components.T @ weight


def fit_ridge(
    train: Sequence[HeadSlide],
    validation: Validation,
    settings: RidgeSettings,
    seed: int,
    progress: ProgressCallback,
    limits: Limits = LIMITS,
) -> RidgeHead:
    """Fit a ridge; its strength is chosen on the validation slides unless it is given.

    Raises
    ------
    HeadError
        If no spot can be trained or validated on.
    """
    train = [slide for slide in train if slide.usable.any()]
    if not train:
        raise HeadError("no training spot has both a valid embedding and a target; check the counts.")
    basis, mean = fit_basis(train, settings.rank), training_mean(train)
    # Folds of whole slides share one pass. Spots of one slide are standardised again in each fold, and
    # principal components are computed again.
    shared = settings.pca is None and len(train) > 1
    folds = [int(fold[0]) for fold in validation.row_folds(train)] if shared else None
    progress("ridge: sums over the training slides")
    path = RidgePath(train, basis, settings.pca, folds)

    def without(number: int, alphas: Sequence[float]) -> list[RidgeHead]:
        """Return the heads without one fold, one for each strength."""
        fitted_on, _ = validation.folds[number]
        left = (number,) if validation.refit and shared else ()
        alone = path if shared or not validation.refit else RidgePath(fitted_on, basis, settings.pca)
        mean = training_mean(fitted_on)
        return [RidgeHead(alone.weight(alpha, left), mean, basis) for alpha in alphas]

    alpha, history = settings.alpha, []
    if alpha is None:
        genes, trials = validation_genes(train), []
        limit = limits.validation // len(validation.folds)
        for number, (_, validated) in enumerate(validation.folds):
            progress(f"ridge: fold {number + 1} of {len(validation.folds)}")
            trials += _score(without(number, ALPHAS), validated, genes, limit)
        history = _history(trials)
        alpha = best_of(history)["alpha"]
    strength = alpha

    def left_out() -> list[HeldOut]:
        return cross_fit(validation, lambda number: without(number, (strength,))[0])

    return RidgeHead(path.weight(alpha), mean, basis, left_out, history, {"alpha": alpha})


def load_ridge(tensors: Tensors, settings: RidgeSettings, shape: Shape) -> RidgeHead:
    """Load a trained head from its tensors."""
    return RidgeHead(tensors["weight"], tensors["mean"], Basis.load(tensors, shape.genes))


def _score(
    heads: Sequence[RidgeHead], slides: Sequence[HeadSlide], genes: Index, limit: int
) -> list[list[SlideScores]]:
    """Scores of heads that differ in strength: for each slide, those of each head in turn."""
    scores = []
    for slide, rows in zip(slides, subsample_rows(slides, limit), strict=True):
        if not len(rows):
            continue
        features, measured = _flat(slide, rows), slide.targets.dense(rows, genes)
        scores.append(
            [
                slide_metrics(
                    head.basis.expression(features @ head.weight, genes) + head.mean[genes], measured
                )
                for head in heads
            ]
        )
    return scores


def _history(trials: Sequence[Sequence[SlideScores]]) -> list[dict[str, float]]:
    if not trials:
        raise HeadError("no validation spot has a target to choose the strength by; give --set alpha=1e5.")
    return [
        {
            "alpha": alpha,
            "validation_pcc": float(np.mean([slide[number].pcc for slide in trials])),
            "validation_mse": float(np.mean([slide[number].mse for slide in trials])),
        }
        for number, alpha in enumerate(ALPHAS)
    ]


def _principal_components(train: Sequence[HeadSlide], pca: int) -> NDArray[np.float32]:
    """(pca, M * d) float32 axes of greatest variance, computed on at most `_MAX_SPOTS` spots."""
    rows = subsample_rows(train, _MAX_SPOTS)
    joined = np.concatenate([_flat(slide, chosen) for slide, chosen in zip(train, rows, strict=True)])
    if pca > min(joined.shape):
        raise HeadError(
            f"pca={pca} is more than the {min(joined.shape)} available components; give a smaller number."
        )
    from sklearn.decomposition import PCA  # half a second, for this setting alone

    # The columns have mean 0: they are standardised within each slide.
    reduction = PCA(pca, svd_solver="randomized", random_state=0).fit(joined.astype(np.float64))
    return np.asarray(reduction.components_, np.float32)


def _flat(slide: HeadSlide, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    return slide.standardised(rows).reshape(len(rows), -1)


RIDGE = HeadMethod(
    "ridge",
    RidgeSettings,
    fit_ridge,
    load_ridge,
    seeded=False,
    summary="a linear probe on all magnifications, in closed form: the baseline for every other head",
)
