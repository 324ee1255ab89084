"""The head `histogene`: a transformer over all spots of a slide, with learned embeddings of their places.

Paper
    HisToGene: Pang, Su and Li 2021, "Leveraging information in spatial transcriptomics to predict
    super-resolution gene expression from histology images in tumors" (bioRxiv 2021.11.28.470212).
Kept
    Each spot is a token; its column and row on the array have learned embeddings, which are added to it; a
    pre-norm transformer lets every spot attend to every other of the slide; a layer norm and a linear layer
    predict all genes; mean squared error.
Changed
    The spot's token is a linear projection of its frozen embeddings, all magnifications joined, in place of
    its pixels. Places are centres in spot pitches, rounded, so that any array can be taken (Visium's rows and
    columns too). Width 128 with 2 layers of 4 heads, where the paper has 1,024, 8 and 16: embeddings carry
    more than pixels, and cohorts are small. Targets are differences from each slide's mean, as for most heads
    here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from mmap_st.head.networks import (
    BlockNetwork,
    Inputs,
    NetworkSettings,
    Sizes,
    SpotBlock,
    check_at_least,
    check_multiple,
    network_method,
    output_layer,
    tensor,
)

# Places beyond this share the last embedding; Visium has 128 columns, legacy arrays have 35.
_PLACES = 128


@dataclass(frozen=True)
class HistogeneSettings(NetworkSettings):
    """Settings of `histogene`.

    Attributes
    ----------
    width, layers, heads
        Size of the transformer.
    """

    width: int = 128
    layers: int = 2
    heads: int = 4
    learning_rate: float = 1e-3
    epochs: int = 12

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "width", "layers", "heads")
        check_multiple(self, "width", "heads")


class HistogeneNetwork(BlockNetwork):
    """Predicts all spots of a block together."""

    def __init__(self, sizes: Sizes, settings: HistogeneSettings) -> None:
        super().__init__()
        self.project = nn.Linear(sizes.magnifications * sizes.width, settings.width)
        self.column = nn.Embedding(_PLACES, settings.width)
        self.row = nn.Embedding(_PLACES, settings.width)
        self.transformer = transformer(settings.width, settings.layers, settings.heads, settings.dropout)
        self.norm = nn.LayerNorm(settings.width)
        self.out = output_layer(settings.width, sizes.outputs)

    def prepare_inputs(self, block: SpotBlock) -> Inputs:
        place = tensor(block.place).round().long().clamp(0, _PLACES - 1)
        return {"embedding": tensor(block.embedding).flatten(1), "place": place}

    def forward(self, inputs: Inputs, rows: torch.Tensor) -> torch.Tensor:
        column, row = inputs["place"].unbind(dim=1)
        tokens = self.project(inputs["embedding"]) + self.column(column) + self.row(row)
        seen = self.transformer(tokens[None])[0]
        predicted: torch.Tensor = self.out(self.norm(seen[rows]))
        return predicted


def transformer(width: int, layers: int, heads: int, dropout: float) -> nn.TransformerEncoder:
    """Make a pre-norm transformer with a hidden layer of twice its width; attention weights are not dropped.

    Drawing which weights to drop took as long as everything else.
    """
    layer = nn.TransformerEncoderLayer(
        width, heads, 2 * width, dropout, activation="gelu", batch_first=True, norm_first=True
    )
    layer.self_attn.dropout = 0.0
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


HISTOGENE = network_method(
    "histogene",
    HistogeneSettings,
    HistogeneNetwork,
    summary="a transformer over all spots of a slide (HisToGene 2021)",
)
