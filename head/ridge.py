"""The head `ridge`: a linear probe on all magnifications, in closed form.

Embeddings are standardised within each slide and targets centred within each training slide, so that
slides differ in nothing but their spots; a prediction is the training mean plus what the spot's difference
from its slide's mean is worth. This is the strong baseline that most published models fail to beat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from mmap_st.errors import HeadError
from mmap_st.head.base import HeadMethod, HeldOut, Shape, Tensors, Validation, cross_fit
from mmap_st.head.choice import best_of
from mmap_st.head.mean import training_mean
from mmap_st.head.metrics import slide_metrics
from mmap_st.head.slides import HeadSlide
from mmap_st.head.standardise import standardise

#: Strengths that are tried where none is given.
ALPHAS = tuple(float(f"{10 ** (exponent / 2):.3g}") for exponent in range(2, 15))

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class RidgeSettings:
    """Settings of `ridge`.

    Attributes
    ----------
    alpha
        Strength of the penalty; None: chosen among `ALPHAS` on the validation slides.
    pca
        Number of principal components of the training embeddings to regress on; None: all columns.
    """

    alpha: float | None = None
    pca: int | None = None

    def __post_init__(self) -> None:
        if self.alpha is not None and not self.alpha > 0:
            raise ValueError(f"alpha is {self.alpha}, it must be greater than 0")
        if self.pca is not None and self.pca < 1:
            raise ValueError(f"pca is {self.pca}, it must be 1 or more")


@dataclass
class RidgeHead:
    """A fitted ridge: prediction = mean + standardised embedding @ weight.

    Attributes
    ----------
    weight
        (M * d, G) float32.
    mean
        (G,) float32, mean of the training targets.
    validation, pca
        How choices were made, and see `RidgeSettings`; of a head that was just fitted.
    """

    weight: NDArray[np.float32]
    mean: NDArray[np.float32]
    validation: Validation | None = None
    pca: int | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    chosen: dict[str, Any] = field(default_factory=dict)

    def predict(self, slide: HeadSlide) -> NDArray[np.float32]:
        predicted = _flat(slide).astype(np.float32) @ self.weight + self.mean
        predicted[~slide.valid] = np.nan
        return predicted

    def tensors(self) -> Tensors:
        return {"weight": self.weight, "mean": self.mean}

    def held_out(self) -> Sequence[HeldOut]:
        def fit(fitted_on: Sequence[HeadSlide]) -> RidgeHead:
            weight = RidgePath(fitted_on, self.pca).weight(self.chosen["alpha"])
            return RidgeHead(weight, training_mean(fitted_on))

        return cross_fit(self.validation, fit)


class RidgePath:
    """Ridge solutions at any strength, from one eigendecomposition of the smaller Gram matrix.

    Parameters
    ----------
    train
        Slides with targets. A gene that a slide lacks is fitted on the other slides.
    pca
        See `RidgeSettings`.
    """

    def __init__(self, train: Sequence[HeadSlide], pca: int | None = None) -> None:
        inputs, outputs = [], []
        for slide in train:
            assert slide.target is not None
            rows = slide.usable
            if rows.any():
                target = slide.target[rows].astype(np.float64)
                inputs.append(_flat(slide)[rows])
                outputs.append(target - np.where(np.isfinite(target).any(axis=0), _column_mean(target), 0.0))
        if not inputs:
            raise HeadError("no training spot has both a valid embedding and a target; check the counts.")
        self._components: Matrix | None = None
        if pca is not None:
            inputs = self._reduce(inputs, pca)
        self.n_genes = outputs[0].shape[1]
        present = np.array([np.isfinite(y).any(axis=0) for y in outputs])  # (slides, genes)
        patterns, self._pattern_of = np.unique(present, axis=1, return_inverse=True)
        self._solvers = [
            _Solver(
                [x for x, kept in zip(inputs, pattern, strict=True) if kept],
                [y[:, self._pattern_of == i] for y, kept in zip(outputs, pattern, strict=True) if kept],
            )
            if pattern.any()
            else None
            for i, pattern in enumerate(patterns.T)
        ]
        self._width = inputs[0].shape[1]

    def weight(self, alpha: float) -> NDArray[np.float32]:
        """(M * d, G) float32 coefficients at strength `alpha`."""
        weight = np.zeros((self._width, self.n_genes))
        for i, solver in enumerate(self._solvers):
            if solver is not None:
                weight[:, self._pattern_of == i] = solver.solve(alpha)
        if self._components is not None:
            weight = self._components.T @ weight
        return weight.astype(np.float32)

    def _reduce(self, inputs: list[Matrix], pca: int) -> list[Matrix]:
        joined = np.concatenate(inputs)
        if pca > min(joined.shape):
            raise HeadError(f"pca={pca} is more than the {min(joined.shape)} components that there are.")
        # Columns have mean 0 already: standardised within each slide.
        reduction = PCA(pca, svd_solver="randomized", random_state=0).fit(joined)
        self._components = np.asarray(reduction.components_)
        return [x @ self._components.T for x in inputs]


class _Solver:
    """(X'X + alpha)^-1 X'Y by eigenvectors of X'X, or of XX' where there are fewer rows than columns."""

    def __init__(self, inputs: list[Matrix], outputs: list[Matrix]) -> None:
        rows = sum(len(x) for x in inputs)
        if rows <= inputs[0].shape[1]:
            x, y = np.concatenate(inputs), np.concatenate(outputs)
            values, vectors = np.linalg.eigh(x @ x.T)
            self._left, self._right = x.T @ vectors, vectors.T @ y
        else:
            gram = sum(x.T @ x for x in inputs)
            values, vectors = np.linalg.eigh(np.asarray(gram))
            moment = sum(x.T @ y for x, y in zip(inputs, outputs, strict=True))
            self._left, self._right = vectors, vectors.T @ moment
        self._values = np.maximum(values, 0.0)

    def solve(self, alpha: float) -> Matrix:
        solution: Matrix = self._left @ (self._right / (self._values + alpha)[:, None])
        return solution


def fit_ridge(
    train: Sequence[HeadSlide],
    validation: Validation,
    settings: RidgeSettings,
    seed: int,
    tell: Callable[[str], None],
) -> RidgeHead:
    """Fit a ridge; without a given strength, choose it on the validation slides."""
    history: list[dict[str, float]] = []
    alpha = settings.alpha
    if alpha is None:
        alpha, history = _choose_alpha(validation, settings, tell)
    weight = RidgePath(train, settings.pca).weight(alpha)
    return RidgeHead(weight, training_mean(train), validation, settings.pca, history, {"alpha": alpha})


def load_ridge(tensors: Tensors, settings: RidgeSettings, shape: Shape) -> RidgeHead:
    """Load a trained one."""
    return RidgeHead(tensors["weight"], tensors["mean"])


def _choose_alpha(
    validation: Validation, settings: RidgeSettings, tell: Callable[[str], None]
) -> tuple[float, list[dict[str, float]]]:
    """The strength that does best on the validation slides, and how each did."""
    scores: dict[float, list[tuple[float, float]]] = {alpha: [] for alpha in ALPHAS}
    for number, (fitted_on, judged_on) in enumerate(validation.folds, start=1):
        tell(f"ridge: fold {number} of {len(validation.folds)}")
        path, mean = RidgePath(fitted_on, settings.pca), training_mean(fitted_on)
        for alpha in ALPHAS:
            head = RidgeHead(path.weight(alpha), mean)
            scores[alpha] += [_judge(head, slide) for slide in judged_on if slide.usable.any()]
    history = [
        {
            "alpha": alpha,
            "validation_pcc": float(np.mean([pcc for pcc, _ in values])),
            "validation_mse": float(np.mean([mse for _, mse in values])),
        }
        for alpha, values in scores.items()
        if values
    ]
    if not history:
        raise HeadError("no validation spot has a target to choose the strength by; give --set alpha=1e5.")
    return best_of(history)["alpha"], history


def _judge(head: RidgeHead, slide: HeadSlide) -> tuple[float, float]:
    assert slide.target is not None
    rows = slide.usable
    metrics = slide_metrics(head.predict(slide)[rows], slide.target[rows])
    return float(metrics["pcc"]), float(metrics["mse"])


def _flat(slide: HeadSlide) -> Matrix:
    embedding, _ = standardise(slide)
    return embedding.reshape(len(slide), -1).astype(np.float64)


def _column_mean(target: Matrix) -> Matrix:
    count = np.maximum(np.isfinite(target).sum(axis=0), 1)
    mean: Matrix = np.nansum(target, axis=0) / count
    return mean


RIDGE = HeadMethod("ridge", RidgeSettings, fit_ridge, load_ridge)
