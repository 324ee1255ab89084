"""A head for `mmap`: a small network on each spot and the mean of what is near it."""

from dataclasses import dataclass

import torch
from scipy.spatial import cKDTree
from torch import nn

from mmap_st.head.networks.method import network_method
from mmap_st.head.networks.network import NetworkSettings, PartNetwork, Sizes, output_layer, tensor
from mmap_st.head.networks.parts import Part


@dataclass(frozen=True)
class NearSettings(NetworkSettings):
    """What --set can change, beside what all networks have."""

    width: int = 64
    neighbours: int = 6


class NearNetwork(PartNetwork):
    """Embeddings of a spot and of its nearest spots in, expression out."""

    def __init__(self, sizes: Sizes, settings: NearSettings) -> None:
        super().__init__()
        self.neighbours = settings.neighbours
        columns = 2 * sizes.magnifications * sizes.width
        self.layers = nn.Sequential(
            nn.Linear(columns, settings.width),
            nn.GELU(),
            nn.Dropout(settings.dropout),
            output_layer(settings.width, sizes.outputs),
        )

    def see(self, part: Part):
        """What the network sees of some spots of a slide: fixed tensors, computed once."""
        count = min(self.neighbours + 1, len(part))
        _, near = cKDTree(part.place).query(part.place, k=range(1, count + 1))
        own = tensor(part.embedding).flatten(1)  # (k, M * d), standardised within the slide
        return {"both": torch.cat([own, own[near].mean(dim=1)], dim=1)}

    def forward(self, inputs, rows: torch.Tensor) -> torch.Tensor:
        """Expression of these rows, as differences from the slide's mean."""
        return self.layers(inputs["both"][rows])


NEAR = network_method("near", NearSettings, NearNetwork)
