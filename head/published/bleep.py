"""The head `bleep`: images and expression in one space; a prediction is the mean of the nearest expressions.

Paper
    BLEEP: Xie, Pang, Chung, Perciani, MacParland, Wang and Bader 2023, "Spatially resolved gene expression
    prediction from H&E histology images via bi-modal contrastive learning" (NeurIPS; arXiv 2306.01859).
Kept
    A projection of the image and one of the expression (a linear layer; GELU, linear layer and dropout added
    to it; layer norm) into one space; the contrastive loss of a batch, whose targets are not one-hot but the
    softmax of how similar spots are within each modality, at temperature 1; a prediction is the plain mean
    of the expression of the 50 reference spots whose projected expression is nearest, by cosine, to the
    projected image. Learning rate 1e-3 and weight decay 1e-3.
Changed
    The image is the spot's frozen embeddings, all magnifications joined, in place of an encoder that is
    trained with the rest. The reference spots are training spots, at most 20,000. A batch is 256 spots of
    one slide, and expression is projected as the difference from the mean of its slide (of its block, for a
    large slide), so that spots are not matched by what distinguishes slides. What is averaged is expression
    itself, so that a prediction lies among measured values (for a panel of more than 1,000 genes: on the
    axes that its genes share). The space has 128 dimensions, where the paper has 256.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mmap_st.head.networks import (
    BlockNetwork,
    Inputs,
    NetworkSettings,
    Sizes,
    SpotBlock,
    TrainingBlock,
    check_at_least,
    network_method,
    tensor,
)
from mmap_st.head.published.bank import Array, average, nearest, reference_rows


@dataclass(frozen=True)
class BleepSettings(NetworkSettings):
    """Settings of `bleep`.

    Attributes
    ----------
    width
        Dimensions of the space that images and expression share.
    temperature
        Similarities are divided by it, those of the targets multiplied by it.
    neighbours
        Number of reference spots that a prediction is the mean of.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 1e-3
    epochs: int = 15
    spots_per_part: int | None = 256
    dropout: float = 0.1
    width: int = 128
    temperature: float = 1.0
    neighbours: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "width", "neighbours")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be greater than 0")


class BleepNetwork(BlockNetwork):
    """Predicts the mean expression of the nearest reference spots."""

    centred_in_slides = False

    def __init__(self, sizes: Sizes, settings: BleepSettings) -> None:
        super().__init__()
        self.image = Projection(sizes.magnifications * sizes.width, settings.width, settings.dropout)
        self.expression = Projection(sizes.outputs, settings.width, settings.dropout)
        self.temperature, self.neighbours = settings.temperature, settings.neighbours

    def fit_reference(self, train: Sequence[TrainingBlock]) -> None:
        stored = list(zip(train, reference_rows(train), strict=True))
        number_of_block = np.repeat(np.arange(len(stored)), [len(rows) for _, rows in stored])
        self.store_reference("spots_expression", np.concatenate([t.target[rows] for t, rows in stored]))
        self.store_reference("spots_level", np.stack([_level(t.target) for t, _ in stored]))
        self.store_reference("spots_part", number_of_block)

    def prepare_inputs(self, block: SpotBlock) -> Inputs:
        return {"embedding": tensor(block.embedding).flatten(1)}

    def prepare_targets(self, training: TrainingBlock) -> Inputs:
        return {"centred": tensor(training.target - _level(training.target)).nan_to_num()}

    def forward(self, inputs: Inputs, rows: torch.Tensor) -> torch.Tensor:
        reference = self.stored_reference("spots_expression")
        level = self.stored_reference("spots_level")[self.stored_reference("spots_part")]
        centred = (reference - level).nan_to_num()
        queries, keys = self.image(inputs["embedding"][rows]), self.expression(centred)
        found = nearest(_directions(queries), _directions(keys), self.neighbours)
        return torch.from_numpy(average(reference.cpu().numpy(), found)).to(reference.device)

    def loss(self, inputs: Inputs, rows: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        image = self.image(inputs["embedding"][rows])
        expression = self.expression(inputs["centred"][rows])
        return contrastive_loss(image, expression, self.temperature)


class Projection(nn.Module):
    """Projects (n, d) to (n, width): a linear layer with a residual block, then layer norm."""

    def __init__(self, inputs: int, width: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, width)
        self.add = nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.Dropout(dropout))
        self.norm = nn.LayerNorm(width)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        projected = self.linear(values)
        joined: torch.Tensor = self.norm(projected + self.add(projected))
        return joined


def contrastive_loss(image: torch.Tensor, expression: torch.Tensor, temperature: float) -> torch.Tensor:
    """Cross entropy, in both directions, of matching images (n, width) with expressions (n, width).

    The target distribution of a spot is spread over the spots that are similar to it in both modalities.
    """
    logits = expression @ image.T / temperature
    alike = (image @ image.T + expression @ expression.T) / 2
    target = torch.softmax(alike * temperature, dim=-1)
    of_expression = F.cross_entropy(logits, target)
    of_image = F.cross_entropy(logits.T, target.T)
    return (of_expression + of_image) / 2


def _level(target: Array) -> Array:
    """(r,) float32 mean of the targets (k, r) of a block; 0 where none is defined."""
    defined = np.isfinite(target)
    level: Array = np.where(defined, target, 0).sum(axis=0) / np.maximum(defined.sum(axis=0), 1)
    return level.astype(np.float32)


def _directions(projected: torch.Tensor) -> Array:
    """Unit vectors: the nearest of them have the greatest cosine."""
    found: Array = F.normalize(projected.detach(), dim=-1).cpu().numpy()
    return found


BLEEP = network_method(
    "bleep",
    BleepSettings,
    BleepNetwork,
    summary="images and expression in one space; the mean of the nearest expressions (BLEEP 2023)",
)
