"""The head `egn`: spots that are guided by the expression of the training spots that look like them.

Paper
    EGN: Yang, Hossain, Stone and Rahman 2023, "Exemplar guided deep neural network for spatial
    transcriptomics analysis of gene expression prediction" (WACV; arXiv 2210.16721).
Kept
    Exemplars of a spot are the training spots whose global view is nearest to its own (Euclidean distance),
    found before training and never of the same patient. A transformer refines the spot's tokens; exemplar
    bridging blocks in it let gates, which compare the spot's view with each exemplar's, pass the exemplars'
    expression on to the view and to the exemplars; the view then says which tokens of each head count, and
    takes up what they hold. The tokens and the view together predict all genes. 9 exemplars.
Changed
    The tokens are projections of the spot's frozen embeddings, one a magnification, in place of patches of
    its image; the global view is their principal components, partly whitened, in place of the code of an
    encoder that is trained to restore images. Tokens are averaged where the paper has attention pooling.
    Exemplars are of another slide if there is only one patient, and other spots if there is only one slide;
    at most 20,000 training spots can be exemplars. Width 64 with 2 layers that each have a bridge, where the
    paper has 1,024 and 8 with a bridge in every second. The loss is the mean squared error alone, without the
    paper's correlation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from mmap_st.head.basis import Components, fit_components
from mmap_st.head.networks import (
    BlockNetwork,
    Inputs,
    NetworkSettings,
    Sizes,
    SpotBlock,
    TrainingBlock,
    check_at_least,
    check_multiple,
    network_method,
    output_layer,
    tensor,
)
from mmap_st.head.published.bank import Array, nearest_of_others, owner_keys, reference_rows
from mmap_st.head.published.histogene import transformer

# Components of the embeddings at each magnification that make up the global view.
_COMPONENTS = 64


@dataclass(frozen=True)
class EgnSettings(NetworkSettings):
    """Settings of `egn`.

    Attributes
    ----------
    width, layers, heads
        Size of the transformer.
    exemplars
        Number of training spots that guide a spot.
    """

    learning_rate: float = 1e-3
    epochs: int = 10
    spots_per_part: int | None = 256
    width: int = 64
    layers: int = 2
    heads: int = 4
    exemplars: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "width", "layers", "heads", "exemplars")
        check_multiple(self, "width", "heads")


class EgnNetwork(BlockNetwork):
    """Predicts a spot from its embeddings and its exemplars."""

    def __init__(self, sizes: Sizes, settings: EgnSettings) -> None:
        super().__init__()
        width = settings.width
        self.exemplars = settings.exemplars
        self.project = nn.ModuleList(nn.Linear(sizes.width, width) for _ in range(sizes.magnifications))
        self.components = min(_COMPONENTS, sizes.width)
        of_view = sizes.magnifications * self.components
        self.view = nn.Linear(of_view, width)
        self.exemplar = nn.Linear(of_view + sizes.outputs, width)
        self.known = nn.Linear(sizes.outputs, width)
        self.drop = nn.Dropout(settings.dropout)
        self.layers = nn.ModuleList(
            transformer(width, 1, settings.heads, settings.dropout) for _ in range(settings.layers)
        )
        self.bridges = nn.ModuleList(
            Bridge(width, settings.heads, sizes.magnifications) for _ in range(settings.layers)
        )
        self.out = nn.Sequential(nn.LayerNorm(2 * width), output_layer(2 * width, sizes.outputs))

    def fit_reference(self, train: Sequence[TrainingBlock]) -> None:
        slides = {id(training.block.slide): training.block.slide for training in train}
        found = fit_components(list(slides.values()), self.components).axes
        # If there are fewer spots than components, the last ones are 0.
        missing = self.components - found.shape[2]
        self.store_reference("axes", np.pad(found, ((0, 0), (0, 0), (0, missing))))
        stored = list(zip(train, reference_rows(train), strict=True))
        self.store_reference("spots_view", np.concatenate([self._view(t.block)[rows] for t, rows in stored]))
        self.store_reference("spots_owner", np.concatenate([owner_keys(t.block)[rows] for t, rows in stored]))
        self.store_reference("spots_expression", np.concatenate([t.target[rows] for t, rows in stored]))

    def prepare_inputs(self, block: SpotBlock) -> Inputs:
        view = self._view(block)
        keys, key_owners = (
            self.stored_reference("spots_view").cpu().numpy(),
            self.stored_reference("spots_owner").cpu().numpy(),
        )
        exemplars = nearest_of_others(view, owner_keys(block), keys, key_owners, self.exemplars)
        return {"embedding": tensor(block.embedding), "view": tensor(view), "exemplars": tensor(exemplars)}

    def forward(self, inputs: Inputs, rows: torch.Tensor) -> torch.Tensor:
        # Spots share exemplars: each is projected once.
        used, which = torch.unique(inputs["exemplars"][rows], return_inverse=True)
        expression = self.stored_reference("spots_expression")[used].nan_to_num()
        known = self.known(expression)[which]
        exemplars = self.exemplar(torch.cat([self.stored_reference("spots_view")[used], expression], dim=1))[
            which
        ]
        view = self.drop(self.view(inputs["view"][rows]))
        embedding = inputs["embedding"][rows]
        tokens = self.drop(torch.stack([p(embedding[:, m]) for m, p in enumerate(self.project)], dim=1))
        for layer, bridge in zip(self.layers, self.bridges, strict=True):
            tokens, view, exemplars = bridge(layer(tokens), view, exemplars, known)
        predicted: torch.Tensor = self.out(torch.cat([tokens.mean(dim=1), view], dim=1))
        return predicted

    def _view(self, block: SpotBlock) -> Array:
        """(k, M * c) principal components of each spot."""
        axes = Components(self.stored_reference("axes").cpu().numpy())
        return axes.of(block.embedding).reshape(len(block), -1)


class Bridge(nn.Module):
    """Exemplar bridging block: passes the expression of exemplars to a spot's tokens through its view."""

    def __init__(self, width: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.heads = heads
        self.gates = nn.Sequential(
            nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, 2 * width), nn.Sigmoid()
        )
        self.known = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.held = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.counts = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, tokens * heads), nn.Sigmoid())
        self.to_tokens = nn.Linear(width, width, bias=False)
        self.to_view = nn.Linear(width, width, bias=False)

    def forward(
        self, tokens: torch.Tensor, view: torch.Tensor, exemplars: torch.Tensor, known: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Update tokens (q, M, width), the view (q, width) and exemplars (q, K, width).

        `known` (q, K, width) is the expression of the exemplars, projected; K may be 0.
        """
        compared = torch.cat([view[:, None] - exemplars, exemplars], dim=2)
        to_view, to_exemplar = self.gates(compared).chunk(2, dim=2)
        passed = self.known(known)
        view = view + (to_view * passed).sum(dim=1) / max(1, exemplars.shape[1])
        exemplars = self.norm(exemplars + to_exemplar * passed)
        counts = self.counts(view).unflatten(1, (tokens.shape[1], self.heads, 1))
        held = (self.held(tokens).unflatten(2, (self.heads, -1)) * counts).flatten(2)
        return tokens + self.to_tokens(held), view + self.to_view(held.mean(dim=1)), exemplars


EGN = network_method(
    "egn",
    EgnSettings,
    EgnNetwork,
    summary="spots are guided by the training spots that look most like them (EGN 2023)",
)
