"""The head `knn`: the mean of the nearest training spots, a baseline that has nothing to train.

As for `ridge`, embeddings are standardised within each slide and targets are differences from each slide's
own mean: a prediction is the training mean plus the mean difference of the training spots whose embeddings
are nearest. Distances are Euclidean between partly whitened principal components of the training embeddings,
all magnifications joined. What the published heads that refer to training spots add is measured against this.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmap_st.errors import HeadError
from mmap_st.extract.store import row_blocks
from mmap_st.head.basis import Basis, Components, fit_basis, fit_components, judged_genes
from mmap_st.head.inputs import HeadSlide, evenly
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
from mmap_st.head.published.bank import MOST_SPOTS, average, nearest
from mmap_st.head.scoring import SlideScores, slide_metrics

#: Numbers of neighbours that are tried where none is given.
NEIGHBOURS = (5, 10, 20, 50, 100, 200)

# Rows become panels of genes: smaller blocks than those that are read elsewhere.
_BLOCK_BYTES = 32 << 20

Array = NDArray[np.float32]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class KnnSettings:
    """Settings of `knn`.

    Attributes
    ----------
    neighbours
        How many training spots a prediction is the mean of; None: chosen among `NEIGHBOURS` on the
        validation slides.
    components
        Principal components of the embeddings at each magnification, between which distances are.
    rank
        Number of axes of expression that are averaged; None: the genes themselves up to
        `mmap_st.head.basis.MOST_GENES`, beyond that `mmap_st.head.basis.AUTO_RANK` axes.
    """

    neighbours: int | None = None
    components: int = 128
    rank: int | None = None

    def __post_init__(self) -> None:
        check_at_least(self, 1, "neighbours", "components", "rank")


@dataclass
class KnnHead:
    """Training spots, and how many of the nearest a prediction is the mean of.

    Attributes
    ----------
    neighbours
        How many.
    components
        Axes of the embeddings.
    keys
        (b, M * c) float32, components of the training spots.
    values
        (b, r) float32, their differences from their slide's mean on the axes of `basis`; NaN where undefined.
    mean
        (G,) float32, mean of the training targets.
    basis
        From the r coordinates to the genes.
    left_out
        Makes the predictions of `held_out`.
    """

    neighbours: int
    components: Components
    keys: Array
    values: Array
    mean: Array
    basis: Basis
    left_out: Callable[[], Sequence[HeldOut]] = tuple
    history: list[dict[str, float]] = field(default_factory=list)
    chosen: dict[str, Any] = field(default_factory=dict)

    def predict(self, slide: HeadSlide) -> Array:
        predicted = np.full((len(slide), len(self.mean)), np.nan, np.float32)
        for _, rows in row_blocks(slide.embedding, np.flatnonzero(slide.valid), _BLOCK_BYTES):
            found = self.found(slide, rows, self.neighbours)
            predicted[rows] = self.basis.expression(average(self.values, found)) + self.mean
        return predicted

    def found(self, slide: HeadSlide, rows: Rows, count: int) -> Rows:
        """(k, count) training spots nearest to some spots, nearest first; fewer where there are fewer."""
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
    tell: Callable[[str], None],
    limits: Limits = LIMITS,
) -> KnnHead:
    """Keep the training spots; without a given number of neighbours, choose it on the validation slides."""
    train = [slide for slide in train if slide.usable.any()]
    if not train:
        raise HeadError("no training spot has both a valid embedding and a target; check the counts.")
    basis = fit_basis(train, settings.rank)

    def of(slides: Sequence[HeadSlide], neighbours: int) -> KnnHead:
        return _refer_to([slide for slide in slides if slide.usable.any()], basis, settings, neighbours)

    neighbours, history = settings.neighbours, []
    if neighbours is None:
        trials = []
        for number, (fitted_on, judged_on) in enumerate(validation.folds):
            tell(f"knn: fold {number + 1} of {len(validation.folds)}")
            rows = evenly(judged_on, limits.judged // len(validation.folds))
            head, genes = of(fitted_on, max(NEIGHBOURS)), judged_genes(train)
            trials += [_judge(head, s, r, genes) for s, r in zip(judged_on, rows, strict=True) if len(r)]
        history = _history(trials)
        neighbours = int(best_of(history)["neighbours"])
    chosen = neighbours

    def left_out() -> list[HeldOut]:
        return cross_fit(validation, lambda number: of(validation.folds[number][0], chosen))

    return replace(of(train, chosen), left_out=left_out, history=history, chosen={"neighbours": chosen})


def load_knn(tensors: Tensors, settings: KnnSettings, shape: Shape) -> KnnHead:
    """Load one that was fitted."""
    components, basis = Components(tensors["components"]), Basis.load(tensors, shape.genes)
    keys, values = tensors[SPOTS + "keys"], tensors[SPOTS + "values"]
    return KnnHead(int(tensors["neighbours"][0]), components, keys, values, tensors["mean"], basis)


def _refer_to(slides: Sequence[HeadSlide], basis: Basis, settings: KnnSettings, neighbours: int) -> KnnHead:
    components = fit_components(slides, settings.components)
    keys, values = [], []
    for slide, rows in zip(slides, evenly(slides, MOST_SPOTS), strict=True):
        coordinates = basis.coordinates(slide.targets)
        keys.append(_features(slide, rows, components))
        values.append(coordinates.rows(rows) - coordinates.of(training_mean([slide])))
    mean = training_mean(slides)
    return KnnHead(neighbours, components, np.concatenate(keys), np.concatenate(values), mean, basis)


def _judge(head: KnnHead, slide: HeadSlide, rows: Rows, genes: Any) -> list[SlideScores]:
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


KNN = HeadMethod("knn", KnnSettings, fit_knn, load_knn, seeded=False)
