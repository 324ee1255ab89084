"""The base class of networks that are heads: spots of one block of a slide in, their expression out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mmap_st._moved import adapt_old_methods, old_attribute
from mmap_st.head.networks.attention import masked_mse
from mmap_st.head.networks.optimiser import check_device
from mmap_st.head.networks.spot_blocks import SpotBlock

Inputs = Mapping[str, torch.Tensor]

#: Prefix of the buffers that hold what a network stores of the training spots; it is part of saved heads.
REFERENCE_PREFIX = "kept_"


def is_reference(key: str) -> bool:
    """Whether a tensor of a network's state was stored by `BlockNetwork.store_reference`."""
    return key.startswith(REFERENCE_PREFIX) and "." not in key


@dataclass(frozen=True)
class NetworkSettings:
    """Settings of every head that is a network.

    Attributes
    ----------
    rank
        Number of axes of expression to fit; None: the genes themselves on panels of up to 1,000, otherwise
        256 axes.
    learning_rate, weight_decay
        Of AdamW.
    epochs
        Largest number of epochs; the number that is used is chosen on the validation slides.
    parts_per_step
        Blocks of spots (mostly whole slides) whose mean loss makes up a step.
    spots_per_part
        Spots of a block, drawn at random in each step, that the loss is computed on; None: all.
    spots_per_epoch
        Largest number of spots in the losses of an epoch; None: 51,200.
    dropout
        Rate of dropout in the network.
    device
        Where to train: ``cpu``, ``cuda`` or ``auto``, which is an NVIDIA card if there is one.
    """

    rank: int | None = None
    learning_rate: float = 5e-4
    weight_decay: float = 1e-2
    epochs: int = 20
    parts_per_step: int = 2
    spots_per_part: int | None = None
    spots_per_epoch: int | None = None
    dropout: float = 0.2
    device: str = "auto"

    def __post_init__(self) -> None:
        check_device(self.device)
        check_at_least(self, 1, "epochs", "parts_per_step", "rank", "spots_per_part", "spots_per_epoch")
        for name in ("learning_rate", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be 0 or greater")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, it must be from 0 to below 1")


def check_at_least(settings: Any, least: int, *names: str) -> None:
    """Refuse settings below a least value; None is allowed.

    Raises
    ------
    ValueError
        Naming the first that is too small.
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}, it must be {least} or more")


def check_multiple(settings: Any, name: str, of: str) -> None:
    """Refuse a setting that is not a multiple of another.

    Raises
    ------
    ValueError
        If `name` is not divisible by `of`.
    """
    value, divisor = getattr(settings, name), getattr(settings, of)
    if value % divisor:
        raise ValueError(f"{name} {value} is not a multiple of {of} {divisor}")


@dataclass(frozen=True)
class Sizes:
    """Magnifications M and width d of embeddings, number r of outputs, width t of tokens (0: none)."""

    magnifications: int
    width: int
    outputs: int
    token_width: int = 0


@dataclass(frozen=True)
class TrainingBlock:
    """A block of spots with its targets.

    Attributes
    ----------
    block
        The spots.
    target
        (k, r) float32, NaN where undefined: differences from the slide's mean, or from that of all training
        spots, see `BlockNetwork.centred_in_slides`.
    """

    block: SpotBlock
    target: NDArray[np.float32]

    part = old_attribute("part", "block")


# Methods that plug-ins may still define and call by their old names.
_OLD_METHODS = {
    "see": "prepare_inputs",
    "see_target": "prepare_targets",
    "remember": "fit_reference",
    "keep": "store_reference",
    "kept": "stored_reference",
}


class BlockNetwork(nn.Module):
    """A network that predicts the spots of one block of a slide.

    Subclasses define `__init__` of (sizes, settings), `prepare_inputs` and `forward`; the other methods have
    defaults. `mmap_st.heads.network_method` makes a head of one.
    """

    #: True: targets are differences from the mean of their slide, as those of `ridge` are. False: differences
    #: from the mean of all training spots.
    centred_in_slides: ClassVar[bool] = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        adapt_old_methods(cls, BlockNetwork, _OLD_METHODS)

    def __getattr__(self, name: str) -> Any:
        if name in _OLD_METHODS and name not in self._modules:
            return getattr(self, _OLD_METHODS[name])
        return super().__getattr__(name)

    def prepare_inputs(self, block: SpotBlock) -> Inputs:
        """Compute the inputs of a block, by name: fixed tensors, computed once before training.

        They depend on embeddings and places, and on what `fit_reference` stored, never on the expression of
        the block.
        """
        raise NotImplementedError

    def prepare_targets(self, training: TrainingBlock) -> Inputs:
        """Compute what the loss needs in addition to the centred targets; added to the inputs in training.

        The first dimension of each tensor is that of the block's spots.
        """
        return {}

    def forward(self, inputs: Inputs, rows: torch.Tensor) -> torch.Tensor:
        """(q, r) predictions of some spots (q,) of a block, as differences from the mean."""
        raise NotImplementedError

    def loss(self, inputs: Inputs, rows: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Loss of some spots (q,) of a block; their targets (q, r) are NaN where undefined."""
        return masked_mse(self(inputs, rows), target)

    def fit_reference(self, train: Sequence[TrainingBlock]) -> None:
        """Fit what is fixed in training, and store it by `store_reference`; called once, before training."""

    def store_reference(self, name: str, values: NDArray[Any]) -> None:
        """Store an array under a name, to be saved with the network.

        Arrays of training spots have names that start with ``spots_``: they do not count as parameters.
        """
        stored = torch.from_numpy(np.ascontiguousarray(values))
        self.register_buffer(REFERENCE_PREFIX + name, stored.to(next(self.parameters()).device))

    def stored_reference(self, name: str) -> torch.Tensor:
        """Return the array that was stored under this name."""
        return self.get_buffer(REFERENCE_PREFIX + name)


def output_layer(width: int, outputs: int) -> nn.Linear:
    """Make a last layer whose initial outputs are 0, so that training starts from the mean."""
    layer = nn.Linear(width, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def tensor(values: NDArray[Any]) -> torch.Tensor:
    """Convert an array for torch, without a copy where it is contiguous."""
    return torch.from_numpy(np.ascontiguousarray(values))
