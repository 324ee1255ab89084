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
from mmap_st.head.networks.network import KEPT, Inputs, PartNetwork, Sizes
from mmap_st.head.networks.spot_blocks import Part, parts_of

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
        From the r outputs to the genes.
    device
        Where the network is.
    left_out
        Makes the predictions of `held_out`.
    """

    network: PartNetwork
    mean: Array
    basis: Basis
    device: str
    left_out: Callable[[], Sequence[HeldOut]] = tuple
    history: list[dict[str, float]] = field(default_factory=list)
    chosen: dict[str, Any] = field(default_factory=dict)

    def predict(self, slide: HeadSlide) -> Array:
        predicted = np.full((len(slide), len(self.mean)), np.nan, np.float32)
        for part in parts_of(slide):
            predicted[part.rows] = self.of_part(part)
        return predicted

    def of_part(self, part: Part, genes: Index = ALL) -> Array:
        """(k, g) expression of all spots of a part."""
        self.network.eval()
        with torch.inference_mode():
            rows = torch.arange(len(part), device=self.device)
            output = self.network(moved(self.network.see(part), self.device), rows)
        return self.mean[genes] + self.basis.expression(output.float().cpu().numpy(), genes)

    def tensors(self) -> Tensors:
        state = {f"network.{key}": value.cpu().numpy() for key, value in self.network.state_dict().items()}
        return {"mean": self.mean, **self.basis.tensors(), **state}

    def held_out(self) -> Sequence[HeldOut]:
        return self.left_out()


def load_network(
    make: Callable[[Sizes, Any], PartNetwork], tensors: Tensors, settings: Any, shape: Shape
) -> NetworkHead:
    """Load a trained one; `make` makes the untrained network.

    Raises
    ------
    HeadError
        If the tensors are not those of such a network.
    """
    basis = Basis.load(tensors, shape.genes)
    state = {key.removeprefix("network."): v for key, v in tensors.items() if key.startswith("network.")}
    try:
        network = make(Sizes(shape.magnifications, shape.width, basis.rank, shape.token_width), settings)
        for key, value in state.items():
            if key.startswith(KEPT) and "." not in key:
                network.keep(key.removeprefix(KEPT), value)
        network.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
        return NetworkHead(network, tensors["mean"], basis, "cpu")
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise HeadError(f"The saved weights do not fit the head: {first_line(error)}") from error


def moved(inputs: Inputs, device: str) -> dict[str, torch.Tensor]:
    """The same inputs on a device."""
    return {name: value.to(device) for name, value in inputs.items()}
