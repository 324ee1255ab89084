"""The head `mlp`: an autoencoder compresses embeddings, a perceptron predicts genes from its bottleneck.

Paper
    DeepPT: Hoang, Dinstag, Shulman, et al. 2024, "A deep-learning framework to predict cancer treatment
    response from histopathology images through imputed transcriptomics" (Nature Cancer,
    doi:10.1038/s43018-024-00793-2).
Kept
    Features of a frozen network; an autoencoder of one hidden layer, the bottleneck, that is trained first
    and on the features alone; then a perceptron of one hidden layer with dropout from the bottleneck, which
    is frozen, to all genes at once.
Changed
    The paper predicts the bulk expression of a slide, as the mean over its tiles; here spots were measured,
    and each is predicted. All magnifications are joined before the autoencoder. The bottleneck is that of
    the paper, 512 (there for 2,048 features); the hidden layer has 256, where the paper has 512; one
    perceptron, where the paper averages five. Embeddings are standardised within their slide, and targets are
    differences from each slide's mean, as for most heads here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from mmap_st.head.networks import (
    Inputs,
    NetworkSettings,
    Part,
    PartNetwork,
    Schedule,
    Sizes,
    TrainingPart,
    check_at_least,
    network_method,
    optimise,
    output_layer,
    tensor,
)

# How the autoencoder is trained.
_LEARNING_RATE = 1e-3
_PARTS_PER_STEP, _SPOTS_OF_A_PART = 4, 32
_FEWEST_STEPS, _MOST_SPOTS_PER_EPOCH = 20, 10_240


@dataclass(frozen=True)
class MlpSettings(NetworkSettings):
    """Settings of `mlp`.

    Attributes
    ----------
    bottleneck
        Width of what the autoencoder compresses to.
    width
        Of the perceptron's hidden layer.
    autoencoder_epochs
        How long the autoencoder is trained.
    """

    bottleneck: int = 512
    width: int = 256
    autoencoder_epochs: int = 5
    learning_rate: float = 2e-3
    epochs: int = 10
    spots_per_part: int | None = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "bottleneck", "width", "autoencoder_epochs")


class Autoencoder(nn.Module):
    """Embeddings (n, p) to a bottleneck and back."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(width, bottleneck), nn.ReLU())
        self.decoder = nn.Linear(bottleneck, width)

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """(n, p) what the bottleneck tells of the embeddings."""
        rebuilt: torch.Tensor = self.decoder(self.encoder(embedding))
        return rebuilt


class MlpNetwork(PartNetwork):
    """A frozen bottleneck in, expression out; each spot alone."""

    def __init__(self, sizes: Sizes, settings: MlpSettings) -> None:
        super().__init__()
        self.autoencoder_epochs = settings.autoencoder_epochs
        self.autoencoder = Autoencoder(sizes.magnifications * sizes.width, settings.bottleneck)
        self.perceptron = nn.Sequential(
            nn.Linear(settings.bottleneck, settings.width),
            nn.ReLU(),
            nn.Dropout(settings.dropout),
            output_layer(settings.width, sizes.outputs),
        )

    def remember(self, train: Sequence[TrainingPart]) -> None:
        """Train the autoencoder, and freeze it."""
        train_autoencoder(self.autoencoder, [training.part for training in train], self.autoencoder_epochs)
        self.autoencoder.requires_grad_(False)

    def see(self, part: Part) -> Inputs:
        device = next(self.parameters()).device
        with torch.no_grad():
            return {"bottleneck": self.autoencoder.encoder(_joined(part).to(device))}

    def forward(self, inputs: Inputs, rows: torch.Tensor) -> torch.Tensor:
        predicted: torch.Tensor = self.perceptron(inputs["bottleneck"][rows])
        return predicted


def train_autoencoder(autoencoder: Autoencoder, parts: Sequence[Part], epochs: int) -> None:
    """Train it to rebuild the embeddings of these parts; no expression is looked at."""
    device = next(autoencoder.parameters()).device

    def some_of(part: Part) -> torch.Tensor:
        return _joined(part)[torch.randint(len(part), (_SPOTS_OF_A_PART,))]

    def loss() -> torch.Tensor:
        drawn = torch.randint(len(parts), (_PARTS_PER_STEP,)).tolist()
        batch = torch.cat([some_of(parts[number]) for number in drawn]).to(device)
        return F.mse_loss(autoencoder(batch), batch)

    spots = min(sum(len(part) for part in parts), _MOST_SPOTS_PER_EPOCH)
    steps = max(_FEWEST_STEPS, spots // (_PARTS_PER_STEP * _SPOTS_OF_A_PART))
    for _ in optimise(autoencoder, loss, Schedule(_LEARNING_RATE, 0.0, epochs, steps)):
        pass


def _joined(part: Part) -> torch.Tensor:
    """(k, M * d) all magnifications of a part's spots."""
    return tensor(part.embedding).flatten(1)


MLP = network_method("mlp", MlpSettings, MlpNetwork)
