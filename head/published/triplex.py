"""The head `triplex`: a branch for a spot, one for its neighbours, one for its slide, and their fusion.

Paper
    TRIPLEX: Chung, Ha, Im and Lee, "Accurate Spatial Gene Expression Prediction by Integrating
    Multi-Resolution Features" (CVPR 2024, arXiv 2403.07592).
Kept
    Three branches: the target spot's tokens; its 5 x 5 neighbourhood as tokens, which attend to each other;
    all spots of the slide as tokens, with a depthwise convolution on the array of spots between the first and
    the second layer as encoding of their places (APEG). A spot's global token attends to its target tokens
    and to its neighbours' with the same weights, and the sum is what the prediction is made from. Each branch
    predicts too, and learns from targets and from the fused prediction: the loss is the squared error of the
    fused prediction plus, for each branch, 0.7 of its own and 0.3 of its squared distance from the fused one.
Changed
    Target tokens are projections of the spot's frozen embeddings, one for each magnification, in place of the
    places of a ResNet's last feature map. Neighbours are the spot and its 24 nearest within 3 pitches, on a
    square array the 5 x 5 around it, where the paper takes tiles of the picture there; they have learned
    embeddings of how far right and below they lie. The fused prediction is held fixed where branches learn
    from it; the released code does not. On the array, spots of one cell are averaged. Width 64 with 1 layer
    over neighbours and 2 over the slide, where the released settings for her2st have 512, 4 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from mmap_st.head.neighbourhood import GridConvolution, grid_cells, nearest
from mmap_st.head.networks import (
    BlockNetwork,
    Inputs,
    NetworkSettings,
    Sizes,
    SpotBlock,
    check_at_least,
    check_multiple,
    masked_mse,
    network_method,
    output_layer,
    tensor,
)
from mmap_st.head.published.histogene import transformer

# Largest distance of a neighbour, and of its offsets to the right and below, in pitches.
_REACH = 3


@dataclass(frozen=True)
class TriplexSettings(NetworkSettings):
    """Settings of `triplex`.

    Attributes
    ----------
    width, heads
        Of all tokens and of all attention layers.
    layers, neighbour_layers
        Of the transformers over all spots and over a spot's neighbours.
    neighbours
        Number of nearest spots in a spot's neighbourhood, in addition to itself.
    distillation
        Share of a branch's loss that is its distance from the fused prediction.
    """

    width: int = 64
    heads: int = 4
    layers: int = 2
    neighbour_layers: int = 1
    neighbours: int = 24
    distillation: float = 0.3
    learning_rate: float = 1e-3
    spots_per_part: int | None = 64
    spots_per_epoch: int | None = 1_024

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "width", "heads", "layers", "neighbour_layers", "neighbours")
        check_multiple(self, "width", "heads")
        if not 0 <= self.distillation <= 1:
            raise ValueError(f"distillation is {self.distillation}; it must be from 0 to 1")


class Predictions(NamedTuple):
    """Predictions (q, r) of the fused tokens and of each branch."""

    fused: torch.Tensor
    target: torch.Tensor
    neighbour: torch.Tensor
    whole: torch.Tensor


class TriplexNetwork(BlockNetwork):
    """Predicts all spots of a block together."""

    def __init__(self, sizes: Sizes, settings: TriplexSettings) -> None:
        super().__init__()
        self.neighbours, self.distillation = settings.neighbours, settings.distillation
        self.target = TargetBranch(sizes, settings)
        self.neighbour = NeighbourBranch(sizes, settings)
        self.whole = GlobalBranch(sizes, settings)
        self.fusion = Fusion(settings)
        self.out = nn.ModuleList(output_layer(settings.width, sizes.outputs) for _ in Predictions._fields)

    def prepare_inputs(self, block: SpotBlock) -> Inputs:
        cell, around = grid_cells(block.place)
        index, known = nearest(block.place, self.neighbours, _REACH)
        own = torch.arange(len(block))[:, None]
        return {
            "embedding": tensor(block.embedding),
            "place": tensor(block.place),
            "cell": cell,
            "around": around,
            "neighbours": torch.cat([own, index], dim=1),
            "known": torch.cat([torch.ones_like(own, dtype=torch.bool), known], dim=1),
        }

    def forward(self, inputs: Inputs, rows: torch.Tensor) -> torch.Tensor:
        return self.predictions(inputs, rows).fused

    def loss(self, inputs: Inputs, rows: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return distilled(self.predictions(inputs, rows), target, self.distillation)

    def predictions(self, inputs: Inputs, rows: torch.Tensor) -> Predictions:
        """Predict by the fused tokens and by each branch."""
        embedding, known = inputs["embedding"], inputs["known"][rows]
        target = self.target(embedding[rows])
        neighbour = self.neighbour(embedding, inputs["place"], rows, inputs["neighbours"][rows], known)
        whole = self.whole(embedding, inputs["cell"], inputs["around"])[rows]
        fused = self.fusion(whole, target, neighbour, known)
        mean_neighbour = (neighbour * known[..., None]).sum(dim=1) / known.sum(dim=1, keepdim=True)
        states = (fused, target.mean(dim=1), mean_neighbour, whole)
        return Predictions(*(out(state) for out, state in zip(self.out, states, strict=True)))


class TargetBranch(nn.Module):
    """A spot's magnifications as tokens."""

    def __init__(self, sizes: Sizes, settings: TriplexSettings) -> None:
        super().__init__()
        self.project = nn.ModuleList(
            nn.Linear(sizes.width, settings.width) for _ in range(sizes.magnifications)
        )
        self.norm = nn.LayerNorm(settings.width)
        self.drop = nn.Dropout(settings.dropout)

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """(q, M, width) of (q, M, d)."""
        tokens = [project(embedding[:, m]) for m, project in enumerate(self.project)]
        normed: torch.Tensor = self.drop(self.norm(torch.stack(tokens, dim=1)))
        return normed


class NeighbourBranch(nn.Module):
    """A spot and its neighbours as tokens that attend to each other."""

    def __init__(self, sizes: Sizes, settings: TriplexSettings) -> None:
        super().__init__()
        self.project = nn.Linear(sizes.magnifications * sizes.width, settings.width)
        self.drop = nn.Dropout(settings.dropout)
        self.offset = nn.Embedding((2 * _REACH + 1) ** 2, settings.width)
        # Dropout is drawn once for each spot instead of once for each neighbourhood: a fifth of the time.
        self.transformer = transformer(settings.width, settings.neighbour_layers, settings.heads, dropout=0.0)
        self.norm = nn.LayerNorm(settings.width)

    def forward(
        self,
        embedding: torch.Tensor,
        place: torch.Tensor,
        rows: torch.Tensor,
        index: torch.Tensor,
        known: torch.Tensor,
    ) -> torch.Tensor:
        """(q, k, width) of the neighbours (q, k) of some spots (q,); unknown ones must be masked."""
        offset = (place[index] - place[rows][:, None]).round().long().clamp(-_REACH, _REACH) + _REACH
        position = self.offset(offset[..., 0] * (2 * _REACH + 1) + offset[..., 1])
        tokens = self.drop(self.project(embedding.flatten(1)))[index] + position
        normed: torch.Tensor = self.norm(self.transformer(tokens, src_key_padding_mask=~known))
        return normed


class GlobalBranch(nn.Module):
    """All spots of a part as tokens that attend to each other and know where they lie."""

    def __init__(self, sizes: Sizes, settings: TriplexSettings) -> None:
        super().__init__()
        width, heads, dropout = settings.width, settings.heads, settings.dropout
        self.project = nn.Linear(sizes.magnifications * sizes.width, width)
        self.first = transformer(width, 1, heads, dropout)
        self.place = GridConvolution(width)
        self.others = transformer(width, settings.layers - 1, heads, dropout) if settings.layers > 1 else None
        self.norm = nn.LayerNorm(width)

    def forward(self, embedding: torch.Tensor, cell: torch.Tensor, around: torch.Tensor) -> torch.Tensor:
        """(k, width) of (k, M, d) and their cells, see `mmap_st.head.neighbourhood.grid_cells`."""
        tokens = self.place(self.first(self.project(embedding.flatten(1))[None])[0], cell, around)
        if self.others is not None:
            tokens = self.others(tokens[None])[0]
        normed: torch.Tensor = self.norm(tokens)
        return normed


class Fusion(nn.Module):
    """Sums what a spot's global token attends to among its target tokens and among its neighbours."""

    def __init__(self, settings: TriplexSettings) -> None:
        super().__init__()
        width, dropout = settings.width, settings.dropout
        self.norm_attended = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, settings.heads, batch_first=True)
        self.hidden = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * width, width),
            nn.Dropout(dropout),
        )
        self.norm = nn.LayerNorm(width)

    def forward(
        self, whole: torch.Tensor, target: torch.Tensor, neighbour: torch.Tensor, known: torch.Tensor
    ) -> torch.Tensor:
        """(q, width) of global tokens (q, width), target tokens (q, M, width), neighbours (q, k, width)."""
        fused: torch.Tensor = self.norm(self._attend(whole, target) + self._attend(whole, neighbour, ~known))
        return fused

    def _attend(
        self, whole: torch.Tensor, tokens: torch.Tensor, hidden: torch.Tensor | None = None
    ) -> torch.Tensor:
        query, normed = self.norm_attended(whole[:, None]), self.norm_attended(tokens)
        attended, _ = self.attention(query, normed, normed, key_padding_mask=hidden, need_weights=False)
        state = whole + attended[:, 0]
        joined: torch.Tensor = state + self.hidden(state)
        return joined


def distilled(predictions: Predictions, target: torch.Tensor, share: float) -> torch.Tensor:
    """Squared error of the fused prediction, plus that of each branch to the targets and to it.

    Parameters
    ----------
    predictions
        (q, r) each.
    target
        (q, r), NaN where undefined.
    share
        Share of a branch's loss that is its distance from the fused prediction, which gets no gradient.
    """
    fused, *branches = predictions
    loss = masked_mse(fused, target)
    for branch in branches:
        loss = loss + (1 - share) * masked_mse(branch, target) + share * F.mse_loss(branch, fused.detach())
    return loss


TRIPLEX = network_method(
    "triplex",
    TriplexSettings,
    TriplexNetwork,
    summary="a spot, its neighbours and its slide, fused (TRIPLEX 2024)",
)
