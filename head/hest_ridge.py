"""The head `hest-ridge`: the trainer of the HEST-Benchmark, step by step.

Embeddings of all training spots pooled are standardised and reduced by PCA; ridge regression without an
intercept follows, its strength set by the numbers of components and genes (github.com/mahmoodlab/HEST,
Jaume et al. 2024). Slides are not standardised one by one and nothing is chosen, so that this is what other
heads improve on, not a rival of `ridge`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from mmap_st.errors import HeadError
from mmap_st.head.base import HeadMethod, Shape, Tensors, Validation
from mmap_st.head.slides import HeadSlide

# The benchmark's seed, of PCA and ridge: its figures are those of this seed, whatever --seed says.
_SEED = 1
# Strength of ridge, times components and genes.
_STRENGTH = 100.0
_MOST_STEPS = 1000


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
            raise ValueError(f"components is {self.components}, it must be 1 or more")


@dataclass
class HestRidgeHead:
    """All steps in one, since each is linear: prediction = embedding @ weight + offset.

    Attributes
    ----------
    weight
        (M * d, G) float64; float32 would lose what it subtracts.
    offset
        (G,) float64.
    """

    weight: NDArray[np.float64]
    offset: NDArray[np.float64]
    history: list[dict[str, float]] = field(default_factory=list)
    chosen: dict[str, Any] = field(default_factory=dict)

    def predict(self, slide: HeadSlide) -> NDArray[np.float32]:
        predicted = (_flat(slide).astype(np.float64) @ self.weight + self.offset).astype(np.float32)
        predicted[~slide.valid] = np.nan
        return predicted

    def tensors(self) -> Tensors:
        return {"weight": self.weight, "offset": self.offset}


def fit_hest_ridge(
    train: Sequence[HeadSlide],
    validation: Validation,
    settings: HestRidgeSettings,
    seed: int,
    tell: Callable[[str], None],
) -> HestRidgeHead:
    """Fit on all training spots pooled.

    Raises
    ------
    HeadError
        If a training slide lacks a gene of the panel: spots cannot be pooled then.
    """
    for slide in train:
        if slide.genes_lacking:
            raise HeadError(
                f"training slide {slide.name} lacks {slide.genes_lacking} genes of the panel, and hest-ridge"
                " pools the spots of all slides; leave those genes out, or use --head ridge."
            )
    embedding = np.concatenate([_flat(slide)[slide.usable] for slide in train])
    target = np.concatenate([slide.target[slide.usable] for slide in train if slide.target is not None])
    components = min(settings.components, *embedding.shape)
    tell(f"hest-ridge: {components} components of {len(embedding)} spots")
    scaler = StandardScaler()
    standardised = scaler.fit_transform(embedding)
    pca = PCA(components, random_state=_SEED)
    features = pca.fit_transform(standardised).astype(np.float32)
    alpha = _STRENGTH / (components * target.shape[1])
    ridge = Ridge(alpha, fit_intercept=False, max_iter=_MOST_STEPS, solver="lsqr", random_state=_SEED)
    coefficients = np.atleast_2d(ridge.fit(features, target).coef_).astype(np.float64)
    by_column = pca.components_.astype(np.float64).T @ coefficients.T
    weight = by_column / scaler.scale_[:, None]
    offset = -(scaler.mean_ @ weight + pca.mean_ @ by_column)
    return HestRidgeHead(weight, offset, chosen={"alpha": alpha, "components": components})


def load_hest_ridge(tensors: Tensors, settings: HestRidgeSettings, shape: Shape) -> HestRidgeHead:
    """Load a trained one."""
    return HestRidgeHead(tensors["weight"], tensors["offset"])


def _flat(slide: HeadSlide) -> NDArray[np.float32]:
    """(n, M * d) embeddings, magnifications side by side."""
    return slide.embedding.reshape(len(slide), -1)


HEST_RIDGE = HeadMethod(
    "hest-ridge",
    HestRidgeSettings,
    fit_hest_ridge,
    load_hest_ridge,
    embeddings="standardised over all training spots",
)
