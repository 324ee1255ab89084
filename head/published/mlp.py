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
    BlockNetwork,
    Inputs,
    NetworkSettings,
    Schedule,
    Sizes,
    SpotBlock,
    TrainingBlock,
    check_at_least,
    network_method,
    optimise,
    output_layer,
    tensor,
)

# Training of the autoencoder.
_LEARNING_RATE = 1e-3
_BLOCKS_PER_STEP, _SPOTS_PER_BLOCK = 4, 32
_MIN_STEPS, _MAX_SPOTS_PER_EPOCH = 20, 10_240


@dataclass(frozen=True)
class MlpSettings(NetworkSettings):
    """Settings of `mlp`.

    Attributes
    ----------
    bottleneck
        Width of the autoencoder's bottleneck.
    width
        Width of the perceptron's hidden layer.
    autoencoder_epochs
        Number of epochs of the autoencoder.
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
    """Compresses embeddings (n, p) to a bottleneck and reconstructs them."""

    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(width, bottleneck), nn.ReLU())
        self.decoder = nn.Linear(bottleneck, width)

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """(n, p) reconstruction of the embeddings."""
        rebuilt: torch.Tensor = self.decoder(self.encoder(embedding))
        return rebuilt


class MlpNetwork(BlockNetwork):
    """Predicts each spot from its frozen bottleneck."""

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

    def fit_reference(self, train: Sequence[TrainingBlock]) -> None:
        """Train the autoencoder, and freeze it."""
        train_autoencoder(self.autoencoder, [training.block for training in train], self.autoencoder_epochs)
        self.autoencoder.requires_grad_(False)

    def prepare_inputs(self, block: SpotBlock) -> Inputs:
        device = next(self.parameters()).device
        with torch.no_grad():
            return {"bottleneck": self.autoencoder.encoder(_joined(block).to(device))}

    def forward(self, inputs: Inputs, rows: torch.Tensor) -> torch.Tensor:
        predicted: torch.Tensor = self.perceptron(inputs["bottleneck"][rows])
        return predicted


def train_autoencoder(autoencoder: Autoencoder, blocks: Sequence[SpotBlock], epochs: int) -> None:
    """Train the autoencoder to reconstruct the embeddings of these blocks, without looking at expression."""
    device = next(autoencoder.parameters()).device

    def some_of(block: SpotBlock) -> torch.Tensor:
        return _joined(block)[torch.randint(len(block), (_SPOTS_PER_BLOCK,))]

    def loss() -> torch.Tensor:
        drawn = torch.randint(len(blocks), (_BLOCKS_PER_STEP,)).tolist()
        batch = torch.cat([some_of(blocks[number]) for number in drawn]).to(device)
        return F.mse_loss(autoencoder(batch), batch)

    spots = min(sum(len(block) for block in blocks), _MAX_SPOTS_PER_EPOCH)
    steps = max(_MIN_STEPS, spots // (_BLOCKS_PER_STEP * _SPOTS_PER_BLOCK))
    for _ in optimise(autoencoder, loss, Schedule(_LEARNING_RATE, 0.0, epochs, steps)):
        pass


def _joined(block: SpotBlock) -> torch.Tensor:
    """(k, M * d) all magnifications of a block's spots."""
    return tensor(block.embedding).flatten(1)


MLP = network_method(
    "mlp",
    MlpSettings,
    MlpNetwork,
    summary="an autoencoder's bottleneck, then a perceptron (DeepPT 2024)",
)
