"""A trained network as a head: applied, saved and loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmap_st.data import ALL, Index
from mmap_st.errors import HeadError, first_line
from mmap_st.head.basis import Basis
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.interface import HeldOut, Shape, Tensors
from mmap_st.head.networks.network import REFERENCE_PREFIX, BlockNetwork, Inputs, Sizes, is_reference
from mmap_st.head.networks.spot_blocks import SpotBlock, split_into_blocks

Array = NDArray[np.float32]


@dataclass
class NetworkHead:
    """A trained network: prediction = mean + its output, on the axes of a basis.

    Attributes
    ----------
    network
        On its device.
    mean
        (G,) float32, mean of the training targets.
    basis
        Turns the r outputs into genes.
    device
        Where the network is.
    left_out
        Computes the predictions of `held_out`.
    """

    network: BlockNetwork
    mean: Array
    basis: Basis
    device: str
    left_out: Callable[[], Sequence[HeldOut]] = tuple
    history: list[dict[str, float]] = field(default_factory=list)
    chosen: dict[str, object] = field(default_factory=dict)

    def predict(self, slide: HeadSlide) -> Array:
        predicted = np.full((len(slide), len(self.mean)), np.nan, np.float32)
        blocks = split_into_blocks(slide)
        while blocks:
            block = blocks.pop()  # and with it what it read
            predicted[block.rows] = self.predict_block(block)
        return predicted

    def predict_block(self, block: SpotBlock, genes: Index = ALL) -> Array:
        """(k, g) float32 expression of all spots of a block."""
        self.network.eval()
        with torch.inference_mode():
            rows = torch.arange(len(block), device=self.device)
            output = self.network(to_device(self.network.prepare_inputs(block), self.device), rows)
        return self.mean[genes] + self.basis.expression(output.float().cpu().numpy(), genes)

    def tensors(self) -> Tensors:
        state = {f"network.{key}": value.cpu().numpy() for key, value in self.network.state_dict().items()}
        return {"mean": self.mean, **self.basis.tensors(), **state}

    def held_out(self) -> Sequence[HeldOut]:
        return self.left_out()


def load_network(
    make: Callable[[Sizes, Any], BlockNetwork], tensors: Tensors, settings: Any, shape: Shape
) -> NetworkHead:
    """Load a trained network from its tensors; `make` returns an untrained one.

    Raises
    ------
    HeadError
        If the tensors do not fit the network.
    """
    basis = Basis.load(tensors, shape.genes)
    state = {key.removeprefix("network."): v for key, v in tensors.items() if key.startswith("network.")}
    try:
        network = make(Sizes(shape.magnifications, shape.width, basis.rank, shape.token_width), settings)
        for key, value in state.items():
            if is_reference(key):
                network.store_reference(key.removeprefix(REFERENCE_PREFIX), value)
        network.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
        return NetworkHead(network, tensors["mean"], basis, "cpu")
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise HeadError(f"The saved weights do not fit the head: {first_line(error)}") from error


def to_device(inputs: Inputs, device: str) -> dict[str, torch.Tensor]:
    """Move inputs to a device."""
    return {name: value.to(device) for name, value in inputs.items()}
