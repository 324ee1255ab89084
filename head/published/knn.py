"""The head `knn`: the mean of the nearest training spots, a baseline without training.

As for `ridge`, embeddings are standardised within each slide and targets are differences from each slide's
own mean: a prediction is the training mean plus the mean difference of the training spots whose embeddings
are nearest. Distances are Euclidean, between partly whitened principal components of the training embeddings,
all magnifications joined. It is the reference for published heads that refer to training spots.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmap_st.errors import HeadError
from mmap_st.extract.store import row_blocks
from mmap_st.head.basis import Basis, Components, fit_basis, fit_components, validation_genes
from mmap_st.head.inputs import HeadSlide, subsample_rows
from mmap_st.head.interface import (
    LIMITS,
    SPOTS,
    HeadMethod,
    HeldOut,
    Limits,
    Shape,
    Tensors,
    Validation,
    best_of,
    cross_fit,
)
from mmap_st.head.linear import training_mean
from mmap_st.head.networks import check_at_least
from mmap_st.head.published.bank import MAX_SPOTS, average, nearest
from mmap_st.head.scoring import SlideScores, slide_metrics
from mmap_st.progress import ProgressCallback

#: Numbers of neighbours that are tried if none is given.
NEIGHBOURS = (5, 10, 20, 50, 100, 200)

# Rows are converted to panels of genes: blocks are smaller than elsewhere.
_BLOCK_BYTES = 32 << 20

Array = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class KnnSettings:
    """Settings of `knn`.

    Attributes
    ----------
    neighbours
        Number of training spots that a prediction is the mean of; None: chosen on the validation slides,
        from 5 to 200.
    components
        Principal components of the embeddings at each magnification, for distances.
    rank
        Number of axes of expression to average; None: the genes themselves on panels of up to 1,000,
        otherwise 256 axes.
    """

    neighbours: int | None = None
    components: int = 128
    rank: int | None = None

    def __post_init__(self) -> None:
        check_at_least(self, 1, "neighbours", "components", "rank")


@dataclass
class KnnHead:
    """Training spots, and the number of nearest ones that a prediction is the mean of.

    Attributes
    ----------
    neighbours
        That number.
    components
        Axes of the embeddings.
    keys
        (b, M * c) float32, components of the training spots.
    values
        (b, r) float32, their differences from their slide's mean on the axes of `basis`; NaN where undefined.
    mean
        (G,) float32, mean of the training targets.
    basis
        Turns the r coordinates into genes.
    left_out
        Computes the predictions of `held_out`.
    """

    neighbours: int
    components: Components
    keys: Array
    values: Array
    mean: Array
    basis: Basis
    left_out: Callable[[], Sequence[HeldOut]] = tuple
    history: list[dict[str, float]] = field(default_factory=list)
    chosen: dict[str, object] = field(default_factory=dict)

    def predict(self, slide: HeadSlide) -> Array:
        predicted = np.full((len(slide), len(self.mean)), np.nan, np.float32)
        for _, rows in row_blocks(slide.embedding, np.flatnonzero(slide.valid), _BLOCK_BYTES):
            found = self.found(slide, rows, self.neighbours)
            predicted[rows] = self.basis.expression(average(self.values, found)) + self.mean
        return predicted

    def found(self, slide: HeadSlide, rows: Rows, count: int) -> Rows:
        """(k, count) int64 indices of the training spots nearest to some spots, nearest first."""
        return nearest(_features(slide, rows, self.components), self.keys, count)

    def tensors(self) -> Tensors:
        return {
            "neighbours": np.array([self.neighbours]),
            "components": self.components.axes,
            SPOTS + "keys": self.keys,
            SPOTS + "values": self.values,
            "mean": self.mean,
            **self.basis.tensors(),
        }

    def held_out(self) -> Sequence[HeldOut]:
        return self.left_out()


def fit_knn(
    train: Sequence[HeadSlide],
    validation: Validation,
    settings: KnnSettings,
    seed: int,
    progress: ProgressCallback,
    limits: Limits = LIMITS,
) -> KnnHead:
    """Store the training spots; the number of neighbours is chosen on the validation slides unless given.

    Raises
    ------
    HeadError
        If no spot can be trained or validated on.
    """
    train = [slide for slide in train if slide.usable.any()]
    if not train:
        raise HeadError("no training spot has both a valid embedding and a target; check the counts.")
    basis = fit_basis(train, settings.rank)

    def of(slides: Sequence[HeadSlide], neighbours: int) -> KnnHead:
        return _head_of([slide for slide in slides if slide.usable.any()], basis, settings, neighbours)

    neighbours, history = settings.neighbours, []
    if neighbours is None:
        trials = []
        for number, (fitted_on, validated) in enumerate(validation.folds):
            progress(f"knn: fold {number + 1} of {len(validation.folds)}")
            rows = subsample_rows(validated, limits.validation // len(validation.folds))
            head, genes = of(fitted_on, max(NEIGHBOURS)), validation_genes(train)
            trials += [_score(head, s, r, genes) for s, r in zip(validated, rows, strict=True) if len(r)]
        history = _history(trials)
        neighbours = int(best_of(history)["neighbours"])
    chosen = neighbours

    def left_out() -> list[HeldOut]:
        return cross_fit(validation, lambda number: of(validation.folds[number][0], chosen))

    return replace(of(train, chosen), left_out=left_out, history=history, chosen={"neighbours": chosen})


def load_knn(tensors: Tensors, settings: KnnSettings, shape: Shape) -> KnnHead:
    """Load a trained head from its tensors."""
    components, basis = Components(tensors["components"]), Basis.load(tensors, shape.genes)
    keys, values = tensors[SPOTS + "keys"], tensors[SPOTS + "values"]
    return KnnHead(int(tensors["neighbours"][0]), components, keys, values, tensors["mean"], basis)


def _head_of(slides: Sequence[HeadSlide], basis: Basis, settings: KnnSettings, neighbours: int) -> KnnHead:
    components = fit_components(slides, settings.components)
    keys, values = [], []
    for slide, rows in zip(slides, subsample_rows(slides, MAX_SPOTS), strict=True):
        coordinates = basis.coordinates(slide.targets)
        keys.append(_features(slide, rows, components))
        values.append(coordinates.rows(rows) - coordinates.of(training_mean([slide])))
    mean = training_mean(slides)
    return KnnHead(neighbours, components, np.concatenate(keys), np.concatenate(values), mean, basis)


def _score(head: KnnHead, slide: HeadSlide, rows: Rows, genes: Any) -> list[SlideScores]:
    """Scores of each number of neighbours in turn, on some spots of a slide."""
    measured, found = slide.targets.dense(rows, genes), head.found(slide, rows, max(NEIGHBOURS))
    means = (average(head.values, found[:, :count]) for count in NEIGHBOURS)
    return [slide_metrics(head.basis.expression(m, genes) + head.mean[genes], measured) for m in means]


def _history(trials: Sequence[Sequence[SlideScores]]) -> list[dict[str, float]]:
    if not trials:
        raise HeadError("no validation spot has a target to choose by; give --set neighbours=50.")
    return [
        {
            "neighbours": float(count),
            "validation_pcc": float(np.mean([slide[number].pcc for slide in trials])),
            "validation_mse": float(np.mean([slide[number].mse for slide in trials])),
        }
        for number, count in enumerate(NEIGHBOURS)
    ]


def _features(slide: HeadSlide, rows: Rows, components: Components) -> Array:
    return components.of(slide.standardised(rows)).reshape(len(rows), -1)


KNN = HeadMethod(
    "knn",
    KnnSettings,
    fit_knn,
    load_knn,
    seeded=False,
    summary="the mean of the nearest training spots, without training",
)
