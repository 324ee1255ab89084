"""The heads `hest-ridge`, the trainer of the HEST-Benchmark step by step, and `hest-ridge-tuned`.

Embeddings of all training spots pooled are standardised and reduced by PCA; ridge regression without an
intercept follows, its strength set by the numbers of components and genes (github.com/mahmoodlab/HEST,
Jaume et al. 2024). Slides are not standardised individually and no hyperparameter is chosen: a reference
for other heads rather than a competitor of `ridge`.

The benchmark's strength is next to none, which costs some encoders more than others and changes their ranking
(issues 140 and 144 of HEST). `hest-ridge-tuned` takes the same steps with a strength chosen by inner folds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mmap_st.errors import HeadError, counted
from mmap_st.extract.store import row_blocks
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import HeadMethod, HeldOut, Shape, Tensors, Validation, best_of, cross_fit
from mmap_st.head.scoring import SlideScores, slide_metrics
from mmap_st.progress import ProgressCallback

# The benchmark's seed of PCA and ridge, independent of --seed: its figures are those of this seed.
_SEED = 1
# Strength of ridge, before division by the numbers of components and genes.
_STRENGTH = 100.0
# Those that `hest-ridge-tuned` tries: the benchmark's own, and up to ten million times it.
_STRENGTHS = tuple(_STRENGTH * 10.0**power for power in range(8))
_MAX_STEPS = 1000


@dataclass(frozen=True)
class HestRidgeSettings:
    """Settings of `hest-ridge`.

    Attributes
    ----------
    components
        Number of principal components; fewer where there are fewer dimensions or training spots.
    """

    components: int = 256

    def __post_init__(self) -> None:
        if self.components < 1:
            raise ValueError(f"components is {self.components}; it must be 1 or more")


@dataclass
class HestRidgeHead:
    """All steps combined, since each is linear: prediction = embedding @ weight + offset.

    Attributes
    ----------
    weight
        (M * d, G) float64; float32 would lose precision to cancellation with the offset.
    offset
        (G,) float64.
    left_out
        Computes the predictions of `held_out`.
    """

    weight: NDArray[np.float64]
    offset: NDArray[np.float64]
    left_out: Callable[[], Sequence[HeldOut]] = tuple
    history: list[dict[str, float]] = field(default_factory=list)
    chosen: dict[str, object] = field(default_factory=dict)

    def predict(self, slide: HeadSlide) -> NDArray[np.float32]:
        predicted = np.full((len(slide), len(self.offset)), np.nan, np.float32)
        for _, rows in row_blocks(slide.embedding, np.flatnonzero(slide.valid)):
            predicted[rows] = _flat(slide, rows).astype(np.float64) @ self.weight + self.offset
        return predicted

    def tensors(self) -> Tensors:
        return {"weight": self.weight, "offset": self.offset}

    def held_out(self) -> Sequence[HeldOut]:
        return self.left_out()


def fit_hest_ridge(
    train: Sequence[HeadSlide],
    validation: Validation,
    settings: HestRidgeSettings,
    seed: int,
    progress: ProgressCallback,
) -> HestRidgeHead:
    """Fit on all training spots pooled.

    Raises
    ------
    HeadError
        If a training slide does not have a gene of the panel: spots cannot be pooled then.
    """
    _check_genes(train)

    def without(number: int) -> HestRidgeHead:
        return next(_fit(validation.folds[number][0], settings.components))

    progress("hest-ridge: components and ridge")
    head = next(_fit(train, settings.components))
    head.left_out = lambda: cross_fit(validation, without)
    return head


def fit_hest_ridge_tuned(
    train: Sequence[HeadSlide],
    validation: Validation,
    settings: HestRidgeSettings,
    seed: int,
    progress: ProgressCallback,
) -> HestRidgeHead:
    """Fit on all training spots pooled, the strength chosen by the inner folds.

    Raises
    ------
    HeadError
        If a training slide does not have a gene of the panel, or no strength can be chosen.
    """
    _check_genes([*train, *(slide for _, slides in validation.folds for slide in slides)])
    trials: list[list[SlideScores]] = [[] for _ in _STRENGTHS]
    for number, (fitted, held_out) in enumerate(validation.folds):
        progress(f"hest-ridge-tuned: fold {number + 1} of {len(validation.folds)}")
        for head, found in zip(_fit(fitted, settings.components, _STRENGTHS), trials, strict=True):
            found += [slide_metrics(head.predict(slide), slide.targets.dense()) for slide in held_out]
    history = [
        {
            "strength": strength,
            "validation_pcc": float(np.mean([scores.pcc for scores in found])),
            "validation_mse": float(np.mean([scores.mse for scores in found])),
        }
        for strength, found in zip(_STRENGTHS, trials, strict=True)
    ]
    strength = best_of(history)["strength"]

    def without(number: int) -> HestRidgeHead:
        return next(_fit(validation.folds[number][0], settings.components, (strength,)))

    head = next(_fit(train, settings.components, (strength,)))
    head.history = history
    head.left_out = lambda: cross_fit(validation, without)
    return head


def _check_genes(train: Sequence[HeadSlide]) -> None:
    for slide in train:
        if slide.missing_genes:
            raise HeadError(
                f"{counted(slide.missing_genes, 'gene of the panel is', 'genes of the panel are')} missing"
                f" from training slide {slide.name}, and hest-ridge pools the spots of all slides; leave"
                " those genes out, or use --head ridge."
            )


def load_hest_ridge(tensors: Tensors, settings: HestRidgeSettings, shape: Shape) -> HestRidgeHead:
    """Load a trained head from its tensors."""
    return HestRidgeHead(tensors["weight"], tensors["offset"])


def _fit(
    train: Sequence[HeadSlide], limit: int, strengths: Sequence[float] = (_STRENGTH,)
) -> Iterator[HestRidgeHead]:
    """Fit one head for each strength, one after the other: many genes make them large."""
    # These take half a second, which other heads need not wait.
    from sklearn.decomposition import PCA
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    usable = [(slide, np.flatnonzero(slide.usable)) for slide in train if slide.usable.any()]
    embedding = np.concatenate([_flat(slide, rows) for slide, rows in usable])
    target = np.concatenate([slide.targets.dense(rows) for slide, rows in usable])
    components = min(limit, *embedding.shape)
    scaler = StandardScaler()
    standardised = scaler.fit_transform(embedding)
    pca = PCA(components, random_state=_SEED)
    features = pca.fit_transform(standardised).astype(np.float32)
    for strength in strengths:
        alpha = strength / (components * target.shape[1])
        ridge = Ridge(alpha, fit_intercept=False, max_iter=_MAX_STEPS, solver="lsqr", random_state=_SEED)
        coefficients = np.atleast_2d(ridge.fit(features, target).coef_).astype(np.float64)
        by_column = pca.components_.astype(np.float64).T @ coefficients.T
        weight = by_column / scaler.scale_[:, None]
        offset = -(scaler.mean_ @ weight + pca.mean_ @ by_column)
        yield HestRidgeHead(weight, offset, chosen={"alpha": alpha, "components": components})


def _flat(slide: HeadSlide, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """(k, M * d) embeddings of some spots, magnifications side by side."""
    return slide.embedding[rows].reshape(len(rows), -1)


HEST_RIDGE = HeadMethod(
    "hest-ridge",
    HestRidgeSettings,
    fit_hest_ridge,
    load_hest_ridge,
    embeddings="standardised over all training spots",
    seeded=False,
    summary="the trainer of the HEST-Benchmark: PCA, then ridge of a fixed strength",
)

HEST_RIDGE_TUNED = HeadMethod(
    "hest-ridge-tuned",
    HestRidgeSettings,
    fit_hest_ridge_tuned,
    load_hest_ridge,
    embeddings="standardised over all training spots",
    seeded=False,
    summary="the same steps, the strength of ridge chosen by inner folds",
)
