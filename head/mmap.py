"""The head `mmap`: attention over a spot's magnifications and over its slide's prototypes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmap_st.errors import HeadError
from mmap_st.head.base import HeadMethod, Shape, Tensors, Validation
from mmap_st.head.mean import training_mean
from mmap_st.head.network import MmapNetwork
from mmap_st.head.slides import HeadSlide
from mmap_st.head.training import SlideTensors, TrainingSettings, judge, predict_slide, train_epochs

PROTOTYPES = ("kmeans", "none", "random", "learned")


@dataclass(frozen=True)
class MmapSettings:
    """Settings of `mmap`.

    Attributes
    ----------
    prototypes
        ``kmeans``: centres of the slide's own embeddings; ``random``: spots of the slide drawn at random;
        ``learned``: learned and shared by all slides; ``none``: no global attention.
    clusters
        K; None: by the number of spots.
    selected
        L, candidates that a spot attends to; None: half of them.
    learned
        Number of learned prototypes.
    width, heads
        D and the number of attention heads.
    dropout, input_dropout
        In the network, and of the embeddings.
    learning_rate, weight_decay, epochs, slides_per_step, spots_per_slide, steps_per_epoch
        See `mmap_st.head.training.TrainingSettings`.
    contrastive, margin
        See there too.
    device
        ``cpu``, ``cuda`` or ``auto``: where to train; auto takes an NVIDIA card where one answers.
    """

    prototypes: str = "kmeans"
    clusters: int | None = None
    selected: int | None = None
    learned: int = 40
    width: int = 128
    heads: int = 4
    dropout: float = 0.2
    input_dropout: float = 0.3
    learning_rate: float = 5e-4
    weight_decay: float = 1e-2
    epochs: int = 40
    slides_per_step: int = 2
    spots_per_slide: int = 128
    steps_per_epoch: int = 4
    contrastive: float = 0.1
    margin: float = 0.2
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.prototypes not in PROTOTYPES:
            raise ValueError(f"prototypes is {self.prototypes!r}, it must be one of {', '.join(PROTOTYPES)}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.selected is not None and self.selected < 1:
            raise ValueError(f"selected is {self.selected}, it must be 1 or more")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device is {self.device!r}, it must be auto, cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device is 'cuda', and no NVIDIA card answers here")
        for name in ("dropout", "input_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be from 0 to below 1")
        for name in ("learned", "width", "heads", "epochs", "slides_per_step", "spots_per_slide",
                     "steps_per_epoch", "learning_rate"):  # fmt: skip
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, it must be greater than 0")

    def resolved_device(self) -> str:
        """The device that `device` means here."""
        if self.device != "auto":
            return self.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def training(self) -> TrainingSettings:
        """The part of the settings that training takes."""
        names = TrainingSettings.__dataclass_fields__
        return TrainingSettings(**{name: getattr(self, name) for name in names})


@dataclass
class MmapHead:
    """A trained network and the training mean that it adds to."""

    network: MmapNetwork
    mean: NDArray[np.float32]
    device: str
    history: list[dict[str, float]] = field(default_factory=list)
    chosen: dict[str, Any] = field(default_factory=dict)

    def predict(self, slide: HeadSlide) -> NDArray[np.float32]:
        mean = torch.from_numpy(self.mean).to(self.device)
        predicted = predict_slide(self.network, mean, SlideTensors.of(slide, self.device))
        predicted[~slide.valid] = np.nan
        return predicted

    def tensors(self) -> Tensors:
        weights = {k: v.detach().cpu().numpy() for k, v in self.network.state_dict().items()}
        return {**weights, "mean": self.mean}


def fit_mmap(
    train: Sequence[HeadSlide],
    validation: Validation,
    settings: MmapSettings,
    seed: int,
    tell: Callable[[str], None],
) -> MmapHead:
    """Train; the number of epochs is that of least squared error on the validation slides.

    With inner folds, each is trained to the end and the errors are averaged epoch by epoch; then all
    training slides are fitted for the number of epochs chosen. With validation slides of their own, the
    network of the best epoch is the result.
    """
    curves = []
    best_head: MmapHead | None = None
    for number, (fitted_on, judged_on) in enumerate(validation.folds, start=1):
        tell(f"mmap: fold {number} of {len(validation.folds)}")
        curve, head = _fit_judged(fitted_on, judged_on, settings, seed)
        curves.append(curve)
        best_head = head
    errors = np.mean([[row["validation_mse"] for row in curve] for curve in curves], axis=0)
    epochs = int(np.argmin(errors)) + 1
    history = [
        {key: float(np.mean([curve[i][key] for curve in curves])) for key in curves[0][i]}
        for i in range(len(errors))
    ]
    if not validation.refit:
        assert best_head is not None
        best_head.history, best_head.chosen = history, {"epochs": epochs}
        return best_head
    tell(f"mmap: final fit, {epochs} epochs")
    with _seeded(seed, settings.resolved_device()):
        network, mean, tensors = _prepare(train, settings)
        for epoch, _ in train_epochs(network, mean, tensors, settings.training(), seed):
            if epoch == epochs:
                break
    return MmapHead(network, training_mean(train), settings.resolved_device(), history, {"epochs": epochs})


def load_mmap(tensors: Tensors, settings: MmapSettings, shape: Shape) -> MmapHead:
    """Load a trained one."""
    network = _network(settings, shape)
    state = {key: torch.from_numpy(value) for key, value in tensors.items() if key != "mean"}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise HeadError(f"The saved weights do not fit the head: {str(error).splitlines()[0]}") from error
    return MmapHead(network, tensors["mean"], "cpu")


def _fit_judged(
    fitted_on: Sequence[HeadSlide], judged_on: Sequence[HeadSlide], settings: MmapSettings, seed: int
) -> tuple[list[dict[str, float]], MmapHead]:
    """Train to the end; the curve of each epoch, and the head of the epoch of least error."""
    with _seeded(seed, settings.resolved_device()):
        network, mean, tensors = _prepare(fitted_on, settings)
        judges = [SlideTensors.of(slide, settings.resolved_device()) for slide in judged_on]
        curve: list[dict[str, float]] = []
        least, best = np.inf, copy.deepcopy(network)
        for epoch, loss in train_epochs(network, mean, tensors, settings.training(), seed):
            mse, pcc = judge(network, mean, judges)
            curve.append(
                {"epoch": epoch, "training_loss": loss, "validation_mse": mse, "validation_pcc": pcc}
            )
            if mse < least:
                least, best = mse, copy.deepcopy(network)
    return curve, MmapHead(best, training_mean(fitted_on), settings.resolved_device())


@contextmanager
def _seeded(seed: int, device: str) -> Iterator[None]:
    """Draw initial weights and dropout from `seed`, and leave torch's own generators as they were."""
    cuda = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield


def _prepare(
    train: Sequence[HeadSlide], settings: MmapSettings
) -> tuple[MmapNetwork, torch.Tensor, list[SlideTensors]]:
    target = train[0].target
    assert target is not None
    shape = Shape(train[0].embedding.shape[1], train[0].embedding.shape[2], target.shape[1])
    network = _network(settings, shape).to(settings.resolved_device())
    mean = torch.from_numpy(training_mean(train)).to(settings.resolved_device())
    return network, mean, [SlideTensors.of(slide, settings.resolved_device()) for slide in train]


def _network(settings: MmapSettings, shape: Shape) -> MmapNetwork:
    network = MmapNetwork(
        shape.magnifications,
        shape.width,
        shape.genes,
        width=settings.width,
        heads=settings.heads,
        dropout=settings.dropout,
        input_dropout=settings.input_dropout,
        prototypes=settings.prototypes != "none",
        learned_prototypes=settings.learned if settings.prototypes == "learned" else 0,
    )
    # Training starts from the training mean.
    for layer in (network.local_out, network.global_out):
        if layer is not None:
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    return network


MMAP = HeadMethod("mmap", MmapSettings, fit_mmap, load_mmap, uses_prototypes=True)
