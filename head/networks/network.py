"""What a network is to a head: it sees parts of slides and predicts their spots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mmap_st.head.networks.attention import masked_mse
from mmap_st.head.networks.optimiser import check_device
from mmap_st.head.networks.spot_blocks import Part

Inputs = Mapping[str, torch.Tensor]

#: Buffers that hold what a network keeps of the training spots: not learned, the same at every epoch.
KEPT = "kept_"


@dataclass(frozen=True)
class NetworkSettings:
    """Settings of every head that is a network.

    Attributes
    ----------
    rank
        Number of axes of expression that are fitted; None: the genes themselves up to
        `mmap_st.head.basis.MOST_GENES`, beyond that `mmap_st.head.basis.AUTO_RANK` axes.
    learning_rate, weight_decay
        See `mmap_st.head.networks.optimiser.Schedule`.
    epochs
        Most epochs; how many are used is chosen on the validation slides.
    parts_per_step
        Parts of slides whose mean loss makes a step.
    spots_per_part
        Spots of a part, drawn anew each time, that the loss is of; None: all.
    spots_per_epoch
        Most spots that the losses of an epoch are of, where there are more; None: as many as
        `mmap_st.head.interface.LIMITS` allows.
    dropout
        In the network.
    device
        ``cpu``, ``cuda`` or ``auto``: where to train; auto takes an NVIDIA card where one answers.
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
    """Refuse settings that are less; None is no number, and allowed.

    Raises
    ------
    ValueError
        For the first that is less.
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
        If it is not.
    """
    value, divisor = getattr(settings, name), getattr(settings, of)
    if value % divisor:
        raise ValueError(f"{name} {value} is not a multiple of {of} {divisor}")


@dataclass(frozen=True)
class Sizes:
    """Magnifications M and width d of embeddings, number r of outputs, and width t of tokens (0: none)."""

    magnifications: int
    width: int
    outputs: int
    token_width: int = 0


@dataclass(frozen=True)
class TrainingPart:
    """A part with what is to be predicted.

    Attributes
    ----------
    part
        What is seen.
    target
        (k, r) float32, NaN where undefined; around the slide's mean, or that of all training spots, see
        `PartNetwork.centred_in_slides`.
    """

    part: Part
    target: NDArray[np.float32]


class PartNetwork(nn.Module):
    """A network that predicts the spots of one part of a slide.

    A method is a subclass with an `__init__` of (sizes, settings), `see` and `forward`; the others have
    defaults. `mmap_st.head.networks.trained_head.network_method` makes a head of it.
    """

    #: Whether targets are differences from each slide's own mean, as those of `ridge` are; else from the mean
    #: of all training spots.
    centred_in_slides: ClassVar[bool] = True

    def see(self, part: Part) -> Inputs:
        """What it sees of a part, by name: nothing of it is learned, and in training it is computed once.

        It depends on embeddings and places, and on what `remember` kept, not on the part's expression.
        """
        raise NotImplementedError

    def see_target(self, training: TrainingPart) -> Inputs:
        """What only the loss is given of a part, beside its centred targets: added to the inputs in training.

        The first dimension is that of the part's spots.
        """
        return {}

    def forward(self, inputs: Inputs, rows: torch.Tensor) -> torch.Tensor:
        """(q, r) predictions of some spots (q,) of a part, as differences from the mean."""
        raise NotImplementedError

    def loss(self, inputs: Inputs, rows: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Of some spots of a part; their targets (q, r) are NaN where undefined."""
        return masked_mse(self(inputs, rows), target)

    def remember(self, train: Sequence[TrainingPart]) -> None:
        """Keep what it refers to of the training spots by `keep`; called once, before training."""

    def keep(self, name: str, values: NDArray[Any]) -> None:
        """Keep an array by a name; one that begins with `interface.SPOTS` counts as no parameters."""
        kept = torch.from_numpy(np.ascontiguousarray(values))
        self.register_buffer(KEPT + name, kept.to(next(self.parameters()).device))

    def kept(self, name: str) -> torch.Tensor:
        """What was kept by this name."""
        return self.get_buffer(KEPT + name)


def output_layer(width: int, outputs: int) -> nn.Linear:
    """A last layer whose first outputs are 0: training starts from the mean, and has no noise to unlearn."""
    layer = nn.Linear(width, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def tensor(values: NDArray[Any]) -> torch.Tensor:
    """The same values for torch; nothing is copied where they lie in one piece."""
    return torch.from_numpy(np.ascontiguousarray(values))
