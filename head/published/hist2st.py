"""The head `hist2st`: a transformer over all spots of a slide, then a graph of its neighbouring spots.

Paper
    Hist2ST: Zeng, Wei, Yu, Yin, Yuan, Li, Tang, Lu and Yang 2022, "Spatial transcriptomics prediction from
    histology jointly through Transformer and graph neural networks" (Briefings in Bioinformatics).
Kept
    Spots are tokens with learned embeddings of their column and row; a pre-norm transformer over all spots;
    then GraphSAGE layers over the 4 nearest spots within 2 pitches, each with a rectifier and scaled to
    length 1; an LSTM reads what the layers made of a spot in turn, and the mean of its outputs goes through a
    layer norm and a linear layer to all genes; mean squared error. With `zinb`, as the weight of a second
    loss: the negative log-likelihood of counts under a zero-inflated negative binomial distribution, whose
    mean, dispersion and share of dropouts are read from the same state.
Changed
    The spot's token is a linear projection of its frozen embeddings, all magnifications joined, in place of
    ConvMixer blocks on its pixels; so there are no augmented pictures to distil from. A layer joins a spot's
    own state with the mean of its neighbours, as GraphSAGE does; the released code takes the neighbours
    alone. Counts are not at hand: expm1 of the targets, which are log1p of counts scaled to 10,000, stands
    for them, and size factors are 1. Width 128, 2 layers of 4 heads, 2 graph layers and 1 layer of LSTM,
    where the released code has 1,024, 8 of 16, 4 and 2. `zinb` is 0 (off), as not all targets stand for
    counts; there 0.25.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mmap_st.errors import HeadError, agreeing, counted
from mmap_st.head.basis import MOST_GENES
from mmap_st.head.neighbourhood import mean_of_neighbours, nearest
from mmap_st.head.networks import (
    BlockNetwork,
    Inputs,
    NetworkSettings,
    Sizes,
    SpotBlock,
    TrainingBlock,
    check_at_least,
    check_multiple,
    masked_mse,
    network_method,
    output_layer,
    tensor,
)
from mmap_st.head.published.histogene import transformer

# Places beyond this share the last embedding.
_PLACES = 128
_REACH = 2.0
_LOG_MEAN = (-11.5, 13.8)
_DISPERSION = (1e-4, 1e4)


@dataclass(frozen=True)
class Hist2stSettings(NetworkSettings):
    """Settings of `hist2st`.

    Attributes
    ----------
    width, layers, heads
        Size of the transformer.
    graph_layers, neighbours
        Number of GraphSAGE layers, and of nearest spots that a spot is connected to in each.
    zinb
        Weight of the likelihood of counts, 0: not used. It needs targets of at least 0 and one output for
        each gene, and is correct where targets are log1p of scaled counts: not under protocols that take
        log10.
    """

    width: int = 128
    layers: int = 2
    heads: int = 4
    graph_layers: int = 2
    neighbours: int = 4
    zinb: float = 0.0
    learning_rate: float = 1e-3
    epochs: int = 12
    spots_per_part: int | None = 64
    spots_per_epoch: int | None = 1_024

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "width", "layers", "heads", "graph_layers", "neighbours")
        check_at_least(self, 0, "zinb")
        check_multiple(self, "width", "heads")


class Hist2stNetwork(BlockNetwork):
    """Predicts all spots of a block together."""

    def __init__(self, sizes: Sizes, settings: Hist2stSettings) -> None:
        super().__init__()
        width = settings.width
        self.neighbours, self.zinb_weight = settings.neighbours, settings.zinb
        self.project = nn.Linear(sizes.magnifications * sizes.width, width)
        self.column = nn.Embedding(_PLACES, width)
        self.row = nn.Embedding(_PLACES, width)
        self.transformer = transformer(width, settings.layers, settings.heads, settings.dropout)
        self.graph = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(settings.graph_layers))
        self.over_layers = nn.LSTM(width, width)
        self.norm = nn.LayerNorm(width)
        self.out = output_layer(width, sizes.outputs)
        self.counts = CountsOutput(width, sizes.outputs) if settings.zinb else None

    def prepare_inputs(self, block: SpotBlock) -> Inputs:
        place = tensor(block.place).round().long().clamp(0, _PLACES - 1)
        index, known = nearest(block.place, self.neighbours, _REACH)
        return {
            "embedding": tensor(block.embedding).flatten(1),
            "place": place,
            "neighbours": index,
            "known": known,
        }

    def fit_reference(self, train: Sequence[TrainingBlock]) -> None:
        """Start the likelihood of counts, if it is used, from their mean; nothing is stored."""
        if self.counts is not None:
            self.counts.start(torch.cat([counts_of(t.block, self.out.out_features) for t in train]))

    def prepare_targets(self, training: TrainingBlock) -> Inputs:
        """Return counts (k, G) if their likelihood is used."""
        return {} if self.counts is None else {"counts": counts_of(training.block, self.out.out_features)}

    def forward(self, inputs: Inputs, rows: torch.Tensor) -> torch.Tensor:
        predicted: torch.Tensor = self.out(self.norm(self.state(inputs, rows)))
        return predicted

    def loss(self, inputs: Inputs, rows: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        state = self.state(inputs, rows)
        squared = masked_mse(self.out(self.norm(state)), target)
        if self.counts is None:
            return squared
        return squared + self.zinb_weight * self.counts.loss(state, inputs["counts"][rows])

    def state(self, inputs: Inputs, rows: torch.Tensor) -> torch.Tensor:
        """(q, width) states of some spots, with their context."""
        column, row = inputs["place"].unbind(dim=1)
        tokens = self.project(inputs["embedding"]) + self.column(column) + self.row(row)
        state = self.transformer(tokens[None])[0]
        layers = []
        for layer in self.graph:
            around = mean_of_neighbours(state, inputs["neighbours"], inputs["known"])
            state = F.normalize(F.relu(layer(torch.cat([state, around], dim=1))), dim=1)
            layers.append(state[rows])
        read, _ = self.over_layers(torch.stack(layers))
        joined: torch.Tensor = read.mean(dim=0)
        return joined


class CountsOutput(nn.Module):
    """A zero-inflated negative binomial distribution of each gene's counts."""

    def __init__(self, width: int, genes: int) -> None:
        super().__init__()
        self.log_mean = output_layer(width, genes)
        self.dispersion = output_layer(width, genes)
        self.dropout = output_layer(width, genes)

    @torch.no_grad()
    def start(self, counts: torch.Tensor) -> None:
        """Set the initial mean to that of counts (n, G), so that training need not learn it first."""
        mean = counts.nanmean(dim=0).nan_to_num().log().clamp(*_LOG_MEAN)
        self.log_mean.bias.copy_(mean)

    def loss(self, state: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Mean negative log-likelihood of counts (q, G), NaN where undefined, given states (q, width)."""
        mean = self.log_mean(state).clamp(*_LOG_MEAN).exp()
        dispersion = F.softplus(self.dispersion(state)).clamp(*_DISPERSION)
        defined = torch.isfinite(counts)
        likelihood = zinb_log_likelihood(torch.nan_to_num(counts), mean, dispersion, self.dropout(state))
        return -torch.where(defined, likelihood, 0.0).sum() / defined.sum().clamp(min=1)


def zinb_log_likelihood(
    counts: torch.Tensor, mean: torch.Tensor, dispersion: torch.Tensor, dropout: torch.Tensor
) -> torch.Tensor:
    """Log-likelihood of counts, which may be fractions, each under its own distribution.

    Parameters
    ----------
    counts
        0 or greater.
    mean, dispersion
        Of the negative binomial: its variance is mean + mean^2 / dispersion.
    dropout
        Logit of the share of zeros in excess of the negative binomial.
    """
    log_total = torch.log(dispersion + mean)
    none = dispersion * (torch.log(dispersion) - log_total)
    some = torch.lgamma(counts + dispersion) - torch.lgamma(dispersion) - torch.lgamma(counts + 1.0)
    own = none + some + counts * (torch.log(mean) - log_total)
    kept = F.logsigmoid(-dropout)
    return torch.where(counts > 0, kept + own, torch.logaddexp(F.logsigmoid(dropout), kept + none))


def counts_of(block: SpotBlock, outputs: int) -> torch.Tensor:
    """(k, G) float32 counts that correspond to the targets of a block, NaN where undefined.

    Raises
    ------
    HeadError
        If the network predicts axes instead of genes, or targets are below 0.
    """
    targets = block.slide.targets
    if targets.genes != outputs:
        raise HeadError(
            f"zinb is a likelihood of genes, and {counted(outputs, 'axis', 'axes')} of"
            f" {counted(targets.genes, 'gene')} {agreeing(outputs, 'is', 'are')} fitted; leave rank out and"
            f" give a panel of at most {MOST_GENES:,} genes, or set zinb=0."
        )
    values = targets.dense(block.rows)
    if (values < 0).any():
        raise HeadError(
            f"zinb needs targets of 0 or more, and {block.slide.name} has some below; set zinb=0."
        )
    return tensor(np.expm1(values))


HIST2ST = network_method(
    "hist2st",
    Hist2stSettings,
    Hist2stNetwork,
    summary="a transformer over the slide, then a graph of neighbouring spots (Hist2ST 2022)",
)
