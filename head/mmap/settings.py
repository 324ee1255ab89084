"""Settings of the head `mmap`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from mmap_st.head.mmap.training import TrainingSettings
from mmap_st.head.networks import check_device
from mmap_st.head.settings import SettingValue

PROTOTYPES = ("kmeans", "none", "random", "learned")
FUSIONS = ("attention", "concatenate")
SCALINGS = ("ranks", "standard")
STRENGTHS = ("axes", "one")


@dataclass(frozen=True)
class MmapSettings:
    """Settings of `mmap`.

    Attributes
    ----------
    prototypes
        ``kmeans``: cluster centres of the slide's embeddings; ``random``: spots of the slide drawn at random;
        ``learned``: learned and shared by all slides; ``none``: no global attention.
    clusters
        Number of candidates K; None: by the number of spots.
    selected
        Number L of candidates that a spot attends to; None: half of them.
    learned
        Number of learned prototypes.
    fusion
        How the network joins magnifications: ``attention`` from the finest to all, or ``concatenate``.
    components
        Principal components of the embeddings at each magnification.
    scaling
        How embeddings are scaled within each slide: ``ranks``, to normal scores of their ranks, or
        ``standard``, by mean and standard deviation.
    library_power
        Spots are weighted in ridge by their library size to this power; 0: all weigh the same.
    strengths
        ``axes``: each axis of expression has its own strength of ridge, none weaker than the axis before it;
        ``one``: all have the same.
    centre
        Whether what is predicted of a slide's spots is centred, so that its mean is the training mean plus
        the slide's level: how one slide differs from another is for the level to say.
    rank
        Number of axes of expression to fit; None: 256, or as many as there are genes. With one strength for
        all: the genes themselves on panels of up to 1,000, otherwise 256 axes.
    alpha
        Strength of ridge for all axes; None: chosen on the validation slides, from 0.1 to 300.
    width
        Width D of the network.
    heads
        Number of attention heads.
    dropout
        Rate of dropout in the network.
    input_dropout
        Rate of dropout on the embeddings.
    learning_rate, weight_decay
        Of AdamW.
    epochs
        Length of the schedule; the number of epochs that is used is chosen on the validation slides.
    slides_per_step, spots_per_slide
        Size of a batch.
    steps_per_epoch
        Least number of steps of an epoch.
    contrastive, margin
        Weight and margin of the contrastive loss; weight 0: not used.
    blend
        Factor of learned attention when it is added to ridge; 0: none is trained.
    members
        Number of networks whose mean is learned attention.
    device
        Where to train: ``cpu``, ``cuda`` or ``auto``, which is an NVIDIA card if there is one.
    """

    #: Settings that runs of earlier versions do not name, as they were then.
    FORMER: ClassVar[Mapping[str, SettingValue]] = {
        "scaling": "standard",
        "library_power": 0.0,
        "strengths": "one",
        "centre": False,
    }

    prototypes: str = "kmeans"
    clusters: int | None = None
    selected: int | None = None
    learned: int = 40
    fusion: str = "attention"
    components: int = 128
    scaling: str = "ranks"
    library_power: float = 0.35
    strengths: str = "axes"
    centre: bool = True
    rank: int | None = None
    alpha: float | None = None
    width: int = 128
    heads: int = 4
    dropout: float = 0.2
    input_dropout: float = 0.3
    learning_rate: float = 5e-4
    weight_decay: float = 1e-2
    epochs: int = 20
    slides_per_step: int = 2
    spots_per_slide: int = 128
    steps_per_epoch: int = 4
    contrastive: float = 0.0
    margin: float = 0.2
    blend: float = 0.5
    members: int = 3
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.prototypes not in PROTOTYPES:
            raise ValueError(f"prototypes is {self.prototypes!r}; it must be one of {', '.join(PROTOTYPES)}")
        if self.fusion not in FUSIONS:
            raise ValueError(f"fusion is {self.fusion!r}; it must be {' or '.join(FUSIONS)}")
        if self.scaling not in SCALINGS:
            raise ValueError(f"scaling is {self.scaling!r}; it must be {' or '.join(SCALINGS)}")
        if self.strengths not in STRENGTHS:
            raise ValueError(f"strengths is {self.strengths!r}; it must be {' or '.join(STRENGTHS)}")
        if not 0 <= self.library_power <= 2:
            raise ValueError(f"library_power is {self.library_power}; it must be from 0 to 2")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.selected is not None and self.selected < 1:
            raise ValueError(f"selected is {self.selected}; it must be 1 or more")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank is {self.rank}; it must be 1 or more")
        check_device(self.device)
        for name in ("dropout", "input_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 0 to below 1")
        if self.alpha is not None and not self.alpha > 0:
            raise ValueError(f"alpha is {self.alpha}; it must be greater than 0")
        if not 0 <= self.blend <= 1:
            raise ValueError(f"blend is {self.blend}; it must be from 0 to 1")
        for name in ("learned", "components", "width", "heads", "epochs", "slides_per_step",
                     "spots_per_slide", "steps_per_epoch", "learning_rate", "members"):  # fmt: skip
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be greater than 0")

    def training(self) -> TrainingSettings:
        """The part of the settings that training takes."""
        names = TrainingSettings.__dataclass_fields__
        return TrainingSettings(**{name: getattr(self, name) for name in names})
