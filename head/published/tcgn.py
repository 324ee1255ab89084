"""The head `tcgn`: convolution, a graph and attention over the tokens of a spot's own window.

Paper
    TCGN: Xiao, Kong, Li, Wang, Lu 2024, "Transformer with convolution and graph-node co-embedding: An
    accurate and interpretable vision backbone for predicting gene expressions from local histopathological
    image" (Medical Image Analysis).
Kept
    Each spot is predicted from its own window alone, cut into a grid of tokens. A block convolves the grid,
    lets every token attend to all others of the window, passes messages along a graph whose nodes are the
    tokens, each joined to the few that are most like it, and embeds what attention and graph found together.
    The last tokens are pooled for a linear layer to all genes.
Changed
    Tokens are those of a frozen encoder at the finest magnification, where the paper learns its own from the
    picture. They are standardised within the slide, each place of the grid alone, and reduced to their
    principal components on training slides, which bounds memory. There is one block of width 32, where the
    paper has stages of several. The graph is that of the encoder's tokens and stays; the released code takes
    it from attention, with 4 neighbours too. Targets are differences from each slide's mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mmap_st.head.networks import (
    BlockNetwork,
    Inputs,
    NetworkSettings,
    Sizes,
    SpotBlock,
    TrainingBlock,
    check_at_least,
    check_multiple,
    network_method,
    output_layer,
    reduced_tokens,
    tensor,
    token_axes,
)

# Spots are independent of each other: they are processed in batches of this size to save memory.
_SPOTS_AT_ONCE = 512


@dataclass(frozen=True)
class TcgnSettings(NetworkSettings):
    """Settings of `tcgn`.

    Attributes
    ----------
    components
        Number of principal components of the tokens.
    width, layers, heads
        Size of the network.
    neighbours
        Number of tokens of the same window that each token is connected to.
    """

    components: int = 64
    width: int = 32
    layers: int = 1
    heads: int = 4
    neighbours: int = 4
    learning_rate: float = 2e-3
    epochs: int = 10
    spots_per_part: int | None = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "components", "width", "layers", "heads", "neighbours")
        check_multiple(self, "width", "heads")


class GraphLayer(nn.Module):
    """Updates each token from itself and the mean of its neighbours."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * width, width)

    def forward(self, tokens: torch.Tensor, graph: torch.Tensor) -> torch.Tensor:
        """(q, g * g, width) of tokens of that shape; the rows of the graph (q, g * g, g * g) sum to 1."""
        passed: torch.Tensor = self.linear(torch.cat([tokens, graph @ tokens], dim=-1))
        return passed


class Block(nn.Module):
    """Convolution on the grid, then attention and graph in parallel, embedded together."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.graph = GraphLayer(width)
        self.together = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)
        hidden = 2 * width
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width), self.dropout
        )

    def forward(self, tokens: torch.Tensor, graph: torch.Tensor) -> torch.Tensor:
        """(q, g * g, width) tokens of the same shape."""
        side = math.isqrt(tokens.shape[1])
        grid = tokens.transpose(1, 2).unflatten(2, (side, side))
        tokens = tokens + torch.relu(self.convolution(grid)).flatten(2).transpose(1, 2)
        normed = self.norm(tokens)
        attended, _ = self.attention(normed, normed, normed, need_weights=False)
        found = torch.cat([attended, self.graph(normed, graph)], dim=-1)
        tokens = tokens + self.dropout(self.together(found))
        embedded: torch.Tensor = tokens + self.feed(tokens)
        return embedded


class TcgnNetwork(BlockNetwork):
    """Predicts each spot from its own tokens."""

    def __init__(self, sizes: Sizes, settings: TcgnSettings) -> None:
        super().__init__()
        self.components = min(settings.components, sizes.token_width)
        self.neighbours = settings.neighbours
        self.project = nn.Linear(self.components, settings.width)
        self.blocks = nn.ModuleList(
            Block(settings.width, settings.heads, settings.dropout) for _ in range(settings.layers)
        )
        self.norm = nn.LayerNorm(settings.width)
        self.out = output_layer(settings.width, sizes.outputs)

    def fit_reference(self, train: Sequence[TrainingBlock]) -> None:
        """Store the principal axes of the training slides' tokens."""
        self.store_reference("axes", token_axes([training.block for training in train], self.components))

    def prepare_inputs(self, block: SpotBlock) -> Inputs:
        tokens = tensor(reduced_tokens(block, self.stored_reference("axes").cpu().numpy()))
        return {"tokens": tokens, "neighbours": nearest_tokens(tokens, self.neighbours)}

    def forward(self, inputs: Inputs, rows: torch.Tensor) -> torch.Tensor:
        tokens, neighbours = inputs["tokens"], inputs["neighbours"]
        return torch.cat([self._of(tokens[few], neighbours[few]) for few in rows.split(_SPOTS_AT_ONCE)])

    def _of(self, tokens: torch.Tensor, neighbours: torch.Tensor) -> torch.Tensor:
        graph = graph_of(neighbours)
        found = self.project(tokens.float())
        for block in self.blocks:
            found = block(found, graph)
        predicted: torch.Tensor = self.out(self.norm(found.mean(dim=1)))
        return predicted


def nearest_tokens(tokens: torch.Tensor, count: int) -> torch.Tensor:
    """(k, g * g, K) int64, the tokens of the same window that are nearest to each of (k, g * g, c).

    K is `count`, or the number of other tokens if that is smaller.
    """
    places = tokens.shape[1]
    count = min(count, places - 1)

    def of(few: torch.Tensor) -> torch.Tensor:
        distance = torch.cdist(few.float(), few.float())
        distance.diagonal(dim1=1, dim2=2).fill_(torch.inf)
        return distance.topk(count, largest=False).indices

    return torch.cat([of(few) for few in tokens.split(_SPOTS_AT_ONCE)])


def graph_of(neighbours: torch.Tensor) -> torch.Tensor:
    """(q, g * g, g * g) float32 matrices that average over neighbours (q, g * g, K)."""
    spots, places, count = neighbours.shape
    graph = torch.zeros(spots, places, places, device=neighbours.device)
    return graph.scatter_(2, neighbours, 1.0 / max(count, 1))


TCGN = network_method(
    "tcgn",
    TcgnSettings,
    TcgnNetwork,
    tokens=True,
    summary="convolution, graph and attention over the tokens of a spot's own window (TCGN 2024)",
)
