"""The base class of networks that are heads: spots of one block of a slide in, their expression out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mmap_st._moved import adapt_old_methods, old_attribute
from mmap_st.extract.store import row_blocks
from mmap_st.head.basis import whitened_axes
from mmap_st.head.inputs import HeadSlide
from mmap_st.head.neighbourhood import spot_pitch
from mmap_st.head.networks.attention import masked_mse
from mmap_st.head.networks.optimiser import check_device

#: Slides with more valid spots are split: the cost of attention over all spots grows with their square.
MAX_SPOTS = 4_096

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class SpotBlock:
    """Spots of one slide that a network sees together: all valid ones, or those of one area of a large slide.

    Attributes
    ----------
    slide
        The slide.
    rows
        (k,) int64 ascending, which of its spots; all of them are valid.
    """

    slide: HeadSlide
    rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def embedding(self) -> NDArray[np.float32]:
        """(k, M, d) float32, standardised within the slide; read from the store once."""
        return self.slide.standardised(self.rows)

    @cached_property
    def place(self) -> NDArray[np.float32]:
        """(k, 2) float32 centres in spot pitches, relative to the smallest x and y of the block."""
        xy = self.slide.xy[self.rows]
        return np.asarray((xy - xy.min(axis=0)) / spot_pitch(self.slide.xy), np.float32)


def split_into_blocks(slide: HeadSlide, max_spots: int = MAX_SPOTS) -> list[SpotBlock]:
    """Split a slide's valid spots across the longer side until no block has more than `max_spots`."""

    def split(rows: Rows) -> list[Rows]:
        if len(rows) <= max_spots:
            return [rows]
        xy = slide.xy[rows]
        axis = int(np.argmax(np.ptp(xy, axis=0)))
        order = np.argsort(xy[:, axis], kind="stable")
        halves = np.sort(order[: len(rows) // 2]), np.sort(order[len(rows) // 2 :])
        return [block for half in halves for block in split(rows[half])]

    rows = np.flatnonzero(slide.valid)
    return [SpotBlock(slide, block) for block in split(rows)] if len(rows) else []


# The axes are computed on a sample: more tokens hardly change them.
_MAX_TOKENS = 8_192


def token_axes(blocks: Sequence[SpotBlock], components: int) -> NDArray[np.float32]:
    """Compute partly whitened principal axes of the tokens at the finest magnification.

    They are computed on evenly spaced spots of all blocks, without looking at expression.

    Returns
    -------
    (t, components) float32; columns beyond the rank of the sample are 0.
    """
    _, _, places, width = blocks[0].slide.grids.shape
    max_spots = max(1, _MAX_TOKENS // places)
    step = max(1, -(-sum(len(block) for block in blocks) // max_spots))
    sample = np.concatenate([_finest(block, block.rows[::step]) for block in blocks]).reshape(-1, width)
    found = whitened_axes(sample.astype(np.float64), min(components, *sample.shape))
    axes = np.zeros((width, components), np.float32)
    axes[:, : found.shape[1]] = found
    return axes


def reduced_tokens(block: SpotBlock, axes: NDArray[np.float32]) -> NDArray[np.float16]:
    """(k, g * g, c) float16 tokens of a block at the finest magnification, projected on axes (t, c)."""
    finest = block.slide.by_magnification[0].grids
    reduced = np.empty((len(block), finest.shape[2], axes.shape[1]), np.float16)
    for where, rows in row_blocks(finest, block.rows):
        reduced[where] = _finest(block, rows) @ axes
    return reduced


def _finest(block: SpotBlock, rows: Rows) -> NDArray[np.float32]:
    """(k, g * g, t) tokens of some of the slide's spots, standardised within the slide."""
    return block.slide.by_magnification[0].standardised_tokens(rows)[:, 0]


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
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or greater")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be from 0 to below 1")


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
            raise ValueError(f"{name} is {value}; it must be {least} or more")


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
