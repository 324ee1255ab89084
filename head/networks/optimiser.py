"""How all networks are trained: AdamW, one-cycle learning rate, clipped gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from mmap_st.errors import HeadError, counted

_WARM_UP_SHARE = 0.1
_LARGEST_GRADIENT = 1.0


@dataclass(frozen=True)
class Schedule:
    """Optimiser and length of a training.

    Attributes
    ----------
    learning_rate, weight_decay
        Of AdamW; the rate rises over a tenth of the steps, then falls to 0 along a cosine.
    epochs, steps_per_epoch
        Length of that schedule.
    """

    learning_rate: float
    weight_decay: float
    epochs: int
    steps_per_epoch: int


def optimise(
    network: torch.nn.Module, loss: Callable[[], torch.Tensor], schedule: Schedule
) -> Iterator[tuple[int, float]]:
    """Train, and yield (epoch, mean loss) after each epoch; the caller may stop at any epoch.

    Parameters
    ----------
    network
        Trained in place.
    loss
        Computes the loss of one step.
    schedule
        Optimiser and length.

    Raises
    ------
    HeadError
        If the loss becomes NaN or infinite.
    """
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay
    )
    steps = schedule.epochs * schedule.steps_per_epoch
    # The scheduler divides by the number of rising steps less one: there must not be exactly one.
    share = _WARM_UP_SHARE if abs(_WARM_UP_SHARE * steps - 1) > 1e-6 else 2 / steps
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        schedule.learning_rate,
        total_steps=steps,
        pct_start=share,
    )
    for epoch in range(1, schedule.epochs + 1):
        network.train()
        losses = []
        for _ in range(schedule.steps_per_epoch):
            step = loss()
            optimiser.zero_grad()
            step.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), _LARGEST_GRADIENT)
            optimiser.step()
            rate.step()
            losses.append(step.detach())
        # Asked for once an epoch: a graphics card would otherwise be waited for at every step.
        total = sum(torch.stack(losses).tolist())
        if not abs(total) < float("inf"):
            raise HeadError(
                f"the loss is not a number after {counted(epoch, 'epoch')}; give a smaller learning_rate."
            )
        yield epoch, total / schedule.steps_per_epoch


@contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Draw initial weights and dropout from `seed`, on one thread; restore torch's state afterwards.

    The operations are too small to be shared by threads: a second one gains a fifth on an idle machine, and
    on a busy one the first waits for it, which took ten times as long.
    """
    cuda = [torch.device(device)] if device.startswith("cuda") else []
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def resolved_device(device: str) -> str:
    """Return ``cpu`` or ``cuda``; ``auto`` is ``cuda`` if there is an NVIDIA card.

    Raises
    ------
    HeadError
        If ``cuda`` is requested, and there is no card.
    """
    if device == "cpu":
        return device
    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        raise HeadError(
            "device is 'cuda', and no NVIDIA card was found on this machine; leave the setting out."
        )
    return "cpu"


def check_device(device: str) -> None:
    """Check the name of a device; whether there is such a device matters in training only.

    Raises
    ------
    ValueError
        If it is not ``auto``, ``cpu`` or ``cuda``.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device is {device!r}; it must be auto, cpu or cuda")
