"""A head whose network uses all that networks could define by their old names."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from mmap_st.head.networks.method import network_method
from mmap_st.head.networks.network import Inputs, NetworkSettings, PartNetwork, Sizes, TrainingPart
from mmap_st.head.networks.parts import Part
from mmap_st.head.published.histogene import HistogeneNetwork, HistogeneSettings


class FarNetwork(PartNetwork):
    """The mean embedding of the training spots is kept, and the loss is weighted."""

    def __init__(self, sizes: Sizes, settings: NetworkSettings) -> None:
        super().__init__()
        self.layer = nn.Linear(sizes.magnifications * sizes.width, sizes.outputs)

    def remember(self, train: Sequence[TrainingPart]) -> None:
        super().remember(train)
        self.keep("spots_mean", np.concatenate([t.part.embedding for t in train]).mean(axis=0))

    def see(self, part: Part) -> Inputs:
        embedding = torch.from_numpy(part.embedding) - self.kept("spots_mean").cpu()
        return {"embedding": embedding.flatten(1)}

    def see_target(self, training: TrainingPart) -> Inputs:
        return {**super().see_target(training), "weight": torch.ones(len(training.part))}

    def forward(self, inputs: Inputs, rows: torch.Tensor) -> torch.Tensor:
        return self.layer(inputs["embedding"][rows])

    def loss(self, inputs: Inputs, rows: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return super().loss(inputs, rows, target) * inputs["weight"][rows].mean()


class DoubledNetwork(HistogeneNetwork):
    """A built-in network that sees its embeddings doubled."""

    def see(self, part: Part) -> Inputs:
        seen = super().see(part)
        return {**seen, "embedding": 2 * seen["embedding"]}


FAR = network_method("far", NetworkSettings, FarNetwork)
DOUBLED = network_method("doubled", HistogeneSettings, DoubledNetwork)
