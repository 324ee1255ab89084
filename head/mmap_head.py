"""A trained `mmap` head: ridge on fixed attention, a slide's level, and what learned attention adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmap_st.head.base import HeldOut, Tensors
from mmap_st.head.basis import Basis
from mmap_st.head.components import Components
from mmap_st.head.features import SHARES, SlideFeatures, slide_features
from mmap_st.head.limits import LIMITS
from mmap_st.head.network import MmapNetwork
from mmap_st.head.slide_level import SlideLevel, slide_descriptor
from mmap_st.head.slides import HeadSlide
from mmap_st.head.training import SlideTensors, network_output

Array = NDArray[np.float32]


@dataclass
class MmapHead:
    """What `mmap` learned.

    Attributes
    ----------
    components
        Axes of the embeddings.
    block_scale
        (B,) float32: what each block of features is multiplied with, see `block_scales`.
    weight
        (B * M * c, r) float32, ridge on the blocks.
    mean
        (G,) float32, the training mean.
    basis
        From the r coordinates that are fitted to the genes.
    level
        Of slides; None: not used.
    networks
        Members of the ensemble; their mean, times `blend`, is added.
    left_out
        Predictions of the training spots by fits of the inner folds.
    """

    components: Components
    block_scale: Array
    weight: Array
    mean: Array
    basis: Basis
    level: SlideLevel | None
    networks: Sequence[MmapNetwork]
    blend: float
    device: str
    left_out: Sequence[HeldOut] = ()
    history: list[dict[str, float]] = field(default_factory=list)
    chosen: dict[str, Any] = field(default_factory=dict)

    def predict(self, slide: HeadSlide) -> Array:
        features = slide_features(slide, self.components)
        base: Array = self.mean + level_of(self.level, slide, len(self.mean))
        predicted = np.full((len(slide), len(base)), np.nan, np.float32)
        valid = np.flatnonzero(slide.valid)
        for start in range(0, len(valid), LIMITS.block):
            rows = valid[start : start + LIMITS.block]
            predicted[rows] = base + self.basis.expression(self._coordinates(features, rows))
        return predicted

    def _coordinates(self, features: SlideFeatures, rows: NDArray[np.int64]) -> Array:
        """(k, r) of some spots: ridge, and what the networks add."""
        blocks = features.blocks(rows)
        scaled: Array = (blocks * self.block_scale[:, None]).reshape(len(rows), -1)
        coordinates: Array = scaled @ self.weight
        if self.networks:
            tensors = SlideTensors.of(features, rows, blocks, self.device)
            added: Array = np.mean([network_output(network, tensors) for network in self.networks], axis=0)
            coordinates += np.float32(self.blend) * added
        return coordinates

    def tensors(self) -> Tensors:
        found: Tensors = {
            "components": self.components.axes,
            "block_scale": self.block_scale,
            "weight": self.weight,
            "mean": self.mean,
            **self.basis.tensors(),
        }
        if self.level is not None:
            found |= {f"level.{key}": value for key, value in vars(self.level).items()}
        for number, network in enumerate(self.networks):
            state = network.state_dict()
            found |= {f"network.{number}.{k}": v.detach().cpu().numpy() for k, v in state.items()}
        return found

    def held_out(self) -> Sequence[HeldOut]:
        return self.left_out


def level_of(level: SlideLevel | None, slide: HeadSlide, genes: int) -> Array:
    """(G,) level of a slide; 0 where levels are not used, or the slide has no candidates."""
    if level is None or slide.centre is None:
        return np.zeros(genes, np.float32)
    return level.of(slide_descriptor(slide.centre))


def block_scales(squares: NDArray[np.float64], count: int) -> Array:
    """(B,) factors that give blocks mean squared lengths in the proportion of `SHARES`, together 1.

    Parameters
    ----------
    squares
        (B,) sums of the squared lengths of each block.
    count
        Over how many spots.
    """
    share = np.array(SHARES[: len(squares)]) / sum(SHARES[: len(squares)])
    mean = squares / max(count, 1)
    return np.sqrt(np.divide(share, mean, out=np.zeros_like(mean), where=mean > 0)).astype(np.float32)
