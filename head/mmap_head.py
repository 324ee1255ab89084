"""A trained `mmap` head: ridge on fixed attention, a slide's level, and what learned attention adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmap_st.head.base import HeldOut, Tensors
from mmap_st.head.components import Components
from mmap_st.head.features import SHARES, SlideFeatures, slide_features
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
        (B * M * c, G) float32, ridge on the blocks.
    mean
        (G,) float32, the training mean.
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
    level: SlideLevel | None
    networks: Sequence[MmapNetwork]
    blend: float
    device: str
    left_out: Sequence[HeldOut] = ()
    history: list[dict[str, float]] = field(default_factory=list)
    chosen: dict[str, Any] = field(default_factory=dict)

    def predict(self, slide: HeadSlide) -> Array:
        features = slide_features(slide, self.components)
        predicted = self.mean + joined_blocks(features, self.block_scale) @ self.weight
        predicted += level_of(self.level, slide, len(self.mean))
        if self.networks:
            tensors = SlideTensors.of(features, self.device)
            outputs = [network_output(network, tensors) for network in self.networks]
            predicted += np.float32(self.blend) * np.mean(outputs, axis=0)
        predicted[~slide.valid] = np.nan
        return predicted

    def tensors(self) -> Tensors:
        found = {
            "components": self.components.axes,
            "block_scale": self.block_scale,
            "weight": self.weight,
            "mean": self.mean,
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


def joined_blocks(features: SlideFeatures, scale: Array) -> Array:
    """(n, B * M * c) blocks side by side, each times its scale."""
    return np.concatenate([b * s for b, s in zip(features.blocks(), scale, strict=True)], axis=1)


def block_scales(slides: Sequence[SlideFeatures], rows: Sequence[NDArray[np.bool_]]) -> Array:
    """(B,) factors that give blocks mean squared lengths in the proportion of `SHARES`, together 1."""
    total, count = np.zeros(len(slides[0].blocks())), 0
    for features, kept in zip(slides, rows, strict=True):
        total += [float((block[kept].astype(np.float64) ** 2).sum()) for block in features.blocks()]
        count += int(kept.sum())
    share = np.array(SHARES[: len(total)]) / sum(SHARES[: len(total)])
    mean = total / max(count, 1)
    return np.sqrt(np.divide(share, mean, out=np.zeros_like(mean), where=mean > 0)).astype(np.float32)
