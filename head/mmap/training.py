"""Training of the attention of the `mmap` head: batches of spots of few slides, on residuals of ridge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mmap_st.head.interface import LIMITS
from mmap_st.head.mmap.features import SlideFeatures
from mmap_st.head.networks import MmapNetwork, Schedule, contrastive_similarity, masked_mse, optimise


@dataclass(frozen=True)
class TrainingSettings:
    """Optimiser and batches.

    Attributes
    ----------
    learning_rate, weight_decay
        Of AdamW; the rate rises over a tenth of the steps, then falls to 0 along a cosine.
    epochs
        Length of that schedule.
    slides_per_step, spots_per_slide
        Size of a batch.
    steps_per_epoch
        Least number of steps of an epoch; there are more where it takes more to see each spot once.
    contrastive, margin
        Weight and margin of the contrastive similarity between g and z.
    """

    learning_rate: float
    weight_decay: float
    epochs: int
    slides_per_step: int
    spots_per_slide: int
    steps_per_epoch: int
    contrastive: float
    margin: float


@dataclass(frozen=True)
class SlideTensors:
    """Input of the network for some spots of a slide, on the device.

    Attributes
    ----------
    tokens
        (k, 2 M, c) float32: the spot at each magnification, then its near neighbourhood.
    centre
        (K, 2 M, c) float32 candidates, each repeated in place of its neighbourhood.
    selected
        (k, K) bool.
    """

    tokens: torch.Tensor
    centre: torch.Tensor | None
    selected: torch.Tensor | None

    @classmethod
    def of(
        cls, features: SlideFeatures, rows: NDArray[np.int64], blocks: NDArray[np.float32], device: str
    ) -> SlideTensors:
        """Move some spots of a slide to the device; `blocks` are `features.blocks(rows)`."""
        _, magnifications, count = features.own.shape
        tokens = torch.from_numpy(blocks[:, :2].reshape(len(rows), 2 * magnifications, count)).to(device)
        if features.centre is None or features.selected is None:
            return cls(tokens, None, None)
        centre = np.concatenate([features.centre] * 2, axis=1)
        selected = torch.from_numpy(features.selected[rows])
        return cls(tokens, torch.from_numpy(centre).to(device), selected.to(device))

    def rows(self, positions: torch.Tensor) -> SlideTensors:
        """Return some of these spots."""
        selected = None if self.selected is None else self.selected[positions]
        return SlideTensors(self.tokens[positions], self.centre, selected)


@dataclass(frozen=True)
class TrainingSlide:
    """Spots of a slide: their tensors, residuals (k, r), NaN where unknown, and the rows to train on."""

    tensors: SlideTensors
    target: torch.Tensor
    rows: NDArray[np.int64]


def train_epochs(
    network: MmapNetwork,
    train: Sequence[TrainingSlide],
    settings: TrainingSettings,
    seed: int,
    max_spots: int = LIMITS.epoch,
) -> Iterator[tuple[int, float]]:
    """Train, and yield (epoch, mean loss) after each epoch, see `mmap_st.head.networks.optimiser.optimise`.

    An epoch sees each spot about once, but no more than `max_spots`.
    """
    rng = np.random.default_rng(seed)
    usable = [slide for slide in train if len(slide.rows)]
    batch = settings.slides_per_step * settings.spots_per_slide
    spots = min(sum(len(s.rows) for s in usable), max_spots)
    steps = max(settings.steps_per_epoch, -(-spots // batch))
    schedule = Schedule(settings.learning_rate, settings.weight_decay, settings.epochs, steps)

    def loss() -> torch.Tensor:
        chosen = rng.choice(len(usable), min(settings.slides_per_step, len(usable)), replace=False)
        return torch.stack([_slide_loss(network, usable[i], settings, rng) for i in chosen]).mean()

    return optimise(network, loss, schedule)


def network_output(
    network: MmapNetwork, slide: SlideTensors, max_spots: int = LIMITS.block
) -> NDArray[np.float32]:
    """(k, r) float32 output for all of these spots of a slide, computed for `max_spots` at a time."""
    network.eval()
    outputs = []
    with torch.inference_mode():
        for positions in torch.arange(len(slide.tokens), device=slide.tokens.device).split(max_spots):
            batch = slide.rows(positions)
            output, _, _ = network(batch.tokens, batch.centre, batch.selected)
            outputs.append(output.float().cpu().numpy())
    return np.concatenate(outputs)


def _slide_loss(
    network: MmapNetwork, slide: TrainingSlide, settings: TrainingSettings, rng: np.random.Generator
) -> torch.Tensor:
    count = min(settings.spots_per_slide, len(slide.rows))
    rows = torch.from_numpy(rng.choice(slide.rows, count, replace=False)).to(slide.target.device)
    batch = slide.tensors.rows(rows)
    output, z, g = network(batch.tokens, batch.centre, batch.selected)
    loss = masked_mse(output, slide.target[rows])
    if settings.contrastive and network.global_out is not None:
        loss = loss + settings.contrastive * contrastive_similarity(z, g, settings.margin)
    return loss
