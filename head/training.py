"""Training of the `mmap` head: batches of spots of few slides, early stopping, refit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mmap_st.head.metrics import slide_metrics
from mmap_st.head.network import MmapNetwork, contrastive_similarity, masked_mse
from mmap_st.head.slides import HeadSlide
from mmap_st.head.standardise import standardise

_WARM_UP_SHARE = 0.1
_LARGEST_GRADIENT = 1.0


@dataclass(frozen=True)
class TrainingSettings:
    """Optimiser and batches.

    Attributes
    ----------
    learning_rate, weight_decay
        Of AdamW; the rate rises for a tenth of the steps and falls to 0 along a cosine.
    epochs
        Length of that schedule.
    slides_per_step, spots_per_slide
        Make up a batch.
    steps_per_epoch
        Fewest steps of an epoch; more where the spots need more to be seen once.
    contrastive, margin
        Weight and margin of the contrastive similarity between g and z.
    """

    learning_rate: float
    weight_decay: float
    epochs: int
    slides_per_step: int
    spots_per_slide: int
    steps_per_epoch: int
    contrastive: float
    margin: float


@dataclass(frozen=True)
class SlideTensors:
    """One slide on the device: standardised embeddings (n, M, d), candidates (K, M, d), their mask (n, K)."""

    embedding: torch.Tensor
    centre: torch.Tensor | None
    selected: torch.Tensor | None
    target: torch.Tensor | None
    usable: NDArray[np.int64]

    @classmethod
    def of(cls, slide: HeadSlide, device: str) -> SlideTensors:
        """Standardise a slide and move it to the device."""
        embedding, centre = standardise(slide)

        def moved(array: NDArray[np.generic] | None) -> torch.Tensor | None:
            return None if array is None else torch.from_numpy(np.ascontiguousarray(array)).to(device)

        on_device = moved(embedding)
        assert on_device is not None
        return cls(
            on_device, moved(centre), moved(slide.selected), moved(slide.target), np.flatnonzero(slide.usable)
        )


def train_epochs(
    network: MmapNetwork,
    mean: torch.Tensor,
    train: Sequence[SlideTensors],
    settings: TrainingSettings,
    seed: int,
) -> Iterator[tuple[int, float]]:
    """Train, and yield (epoch, mean loss) after each epoch; the caller stops by not asking for more."""
    rng = np.random.default_rng(seed)
    usable = [slide for slide in train if len(slide.usable)]
    batch = settings.slides_per_step * settings.spots_per_slide
    steps = max(settings.steps_per_epoch, -(-sum(len(s.usable) for s in usable) // batch))
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        settings.learning_rate,
        total_steps=settings.epochs * steps,
        pct_start=_WARM_UP_SHARE,
    )
    for epoch in range(1, settings.epochs + 1):
        network.train()
        total = 0.0
        for _ in range(steps):
            chosen = rng.choice(len(usable), min(settings.slides_per_step, len(usable)), replace=False)
            losses = [_slide_loss(network, mean, usable[i], settings, rng) for i in chosen]
            loss = torch.stack(losses).mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), _LARGEST_GRADIENT)
            optimiser.step()
            schedule.step()
            total += float(loss.detach())
        yield epoch, total / steps


def predict_slide(network: MmapNetwork, mean: torch.Tensor, slide: SlideTensors) -> NDArray[np.float32]:
    """(n, G) prediction of all spots of a slide."""
    network.eval()
    with torch.inference_mode():
        output, _, _ = network(slide.embedding, slide.centre, slide.selected)
        predicted: NDArray[np.float32] = (output + mean).float().cpu().numpy()
    return predicted


def judge(network: MmapNetwork, mean: torch.Tensor, slides: Sequence[SlideTensors]) -> tuple[float, float]:
    """Mean squared error and per-slide PCC on validation slides, unweighted means over slides."""
    metrics = [
        slide_metrics(predict_slide(network, mean, s)[s.usable], s.target.cpu().numpy()[s.usable])
        for s in slides
        if s.target is not None and len(s.usable)
    ]
    return float(np.mean([m["mse"] for m in metrics])), float(np.mean([m["pcc"] for m in metrics]))


def _slide_loss(
    network: MmapNetwork,
    mean: torch.Tensor,
    slide: SlideTensors,
    settings: TrainingSettings,
    rng: np.random.Generator,
) -> torch.Tensor:
    assert slide.target is not None
    count = min(settings.spots_per_slide, len(slide.usable))
    rows = torch.from_numpy(rng.choice(slide.usable, count, replace=False)).to(slide.embedding.device)
    selected = None if slide.selected is None else slide.selected[rows]
    output, z, g = network(slide.embedding[rows], slide.centre, selected)
    loss = masked_mse(output + mean, slide.target[rows])
    if settings.contrastive and network.global_out is not None:
        loss = loss + settings.contrastive * contrastive_similarity(z, g, settings.margin)
    return loss
