"""A head whose network uses all that networks could define by their new names."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from mmap_st.heads import (
    BlockNetwork,
    Inputs,
    NetworkSettings,
    Sizes,
    SpotBlock,
    TrainingBlock,
    network_method,
)
from mmap_st.head.published.histogene import HistogeneNetwork, HistogeneSettings


class FarNetwork(BlockNetwork):
    """The mean embedding of the training spots is kept, and the loss is weighted."""

    def __init__(self, sizes: Sizes, settings: NetworkSettings) -> None:
        super().__init__()
        self.layer = nn.Linear(sizes.magnifications * sizes.width, sizes.outputs)

    def fit_reference(self, train: Sequence[TrainingBlock]) -> None:
        super().fit_reference(train)
        self.store_reference("spots_mean", np.concatenate([t.block.embedding for t in train]).mean(axis=0))

    def prepare_inputs(self, block: SpotBlock) -> Inputs:
        embedding = torch.from_numpy(block.embedding) - self.stored_reference("spots_mean").cpu()
        return {"embedding": embedding.flatten(1)}

    def prepare_targets(self, training: TrainingBlock) -> Inputs:
        return {**super().prepare_targets(training), "weight": torch.ones(len(training.block))}

    def forward(self, inputs: Inputs, rows: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs["embedding"][rows])

    def loss(self, inputs: Inputs, rows: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return super().loss(inputs, rows, target) * inputs["weight"][rows].mean()


class DoubledNetwork(HistogeneNetwork):
    """A built-in network that sees its embeddings doubled."""

    def prepare_inputs(self, block: SpotBlock) -> Inputs:
        seen = super().prepare_inputs(block)
        return {**seen, "embedding": 2 * seen["embedding"]}


FAR = network_method("far", NetworkSettings, FarNetwork)
DOUBLED = network_method("doubled", HistogeneSettings, DoubledNetwork)
