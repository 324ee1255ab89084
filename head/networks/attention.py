"""The network of the `mmap` head: local attention over magnifications, global attention over prototypes.

After MMAP (arXiv 2510.11344), on frozen embeddings; the steps are numbered as in docs/head.md.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Pre-norm multi-head attention; keys and values are projected separately, once for many queries."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.drop = nn.Dropout(dropout)
        self.norm_query = nn.LayerNorm(width)
        self.norm_key = nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def keys(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values (..., heads, t, width / heads) of tokens (..., t, width)."""
        key, value = self.key_value(self.norm_key(tokens)).chunk(2, dim=-1)
        return self._split(key), self._split(value)

    def queries(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return queries (..., heads, t, width / heads), scaled so that products with keys are logits."""
        query = self._split(self.query(self.norm_query(tokens)))
        scaled: torch.Tensor = query * query.shape[-1] ** -0.5
        return scaled

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attend from tokens (..., q, width) to keys and values (..., heads, t, width / heads)."""
        weight = torch.softmax(self.queries(query) @ key.transpose(-2, -1), dim=-1)
        return self.join(self.drop(weight) @ value)

    def join(self, attended: torch.Tensor) -> torch.Tensor:
        """Join the output (..., heads, t, width / heads) of the heads into (..., t, width)."""
        joined: torch.Tensor = self.out(attended.transpose(-2, -3).flatten(-2))
        return joined

    def _split(self, tokens: torch.Tensor) -> torch.Tensor:
        *leading, width = tokens.shape
        return tokens.reshape(*leading, self.heads, width // self.heads).transpose(-2, -3)


class MmapNetwork(nn.Module):
    """Predicts expression from the embeddings of spots and of their slide's candidates.

    Parameters
    ----------
    magnifications, embedding_width
        M and d of the embeddings.
    genes
        Length of the panel.
    width, heads
        D and the number of attention heads.
    dropout, input_dropout
        In the attentions and after the projections; on the embeddings.
    prototypes
        False: no global attention; the output is that of the local layer.
    learned_prototypes
        Number of prototypes that are learned and shared by all slides, instead of candidates.
    concatenate
        Join the magnifications and project them together, instead of local attention.
    """

    def __init__(
        self,
        magnifications: int,
        embedding_width: int,
        genes: int,
        *,
        width: int,
        heads: int,
        dropout: float,
        input_dropout: float,
        prototypes: bool,
        learned_prototypes: int = 0,
        concatenate: bool = False,
    ) -> None:
        super().__init__()
        self.concatenate = concatenate
        if concatenate:
            magnifications, embedding_width = 1, magnifications * embedding_width
        self.project = nn.ModuleList(nn.Linear(embedding_width, width) for _ in range(magnifications))
        self.input_dropout = nn.Dropout(input_dropout)
        self.dropout = nn.Dropout(dropout)
        self.local_attention = Attention(width, heads, dropout) if magnifications > 1 else None
        self.global_attention = Attention(width, heads, dropout) if prototypes else None
        self.local_out = nn.Linear(width, genes)
        self.global_out = nn.Linear(width, genes) if prototypes else None
        self.learned = (
            nn.Parameter(torch.randn(learned_prototypes, width) * 0.5) if learned_prototypes else None
        )

    def local(self, embedding: torch.Tensor) -> torch.Tensor:
        """Step 1: (n, M, d) to (n, D): the finest magnification plus what it attends to in all."""
        # One mask for all spots of the call regularises as well as one for each, and is much cheaper.
        dropped = embedding * self.input_dropout(torch.ones_like(embedding[:1]))
        if self.concatenate:
            dropped = dropped.flatten(1)[:, None]
        tokens = torch.stack([p(dropped[:, m]) for m, p in enumerate(self.project)], dim=1)
        tokens = self.dropout(tokens)
        finest: torch.Tensor = tokens[:, 0]
        if self.local_attention is None:
            return finest
        key, value = self.local_attention.keys(tokens)
        attended: torch.Tensor = self.local_attention.attend(tokens[:, :1], key, value)[:, 0]
        return finest + attended

    def forward(
        self,
        embedding: torch.Tensor,
        centre: torch.Tensor | None,
        selected: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Predict spots of ONE slide.

        Parameters
        ----------
        embedding
            (n, M, d).
        centre
            (K, M, d) candidates of the slide, projected once for all spots; None: not used.
        selected
            (n, K) bool, the candidates that each spot attends to; the others are masked.

        Returns
        -------
        Expression (n, G), local z (n, D) and global g (n, D).
        """
        z = self.local(embedding)
        if self.global_attention is None or self.global_out is None:
            return self.local_out(z), z, z
        if self.learned is not None:
            prototypes: torch.Tensor = self.learned
            selected = torch.ones(len(z), len(prototypes), dtype=torch.bool, device=z.device)
        else:
            assert centre is not None
            assert selected is not None
            prototypes = self.local(centre)
        g = z + self._attend_to_prototypes(z, prototypes, selected)
        return 0.5 * (self.local_out(z) + self.global_out(g)), z, g

    def _attend_to_prototypes(
        self, z: torch.Tensor, prototypes: torch.Tensor, selected: torch.Tensor
    ) -> torch.Tensor:
        """Step 4: attention from z over z itself and the selected prototypes; (n, D)."""
        attention = self.global_attention
        assert attention is not None
        key, value = attention.keys(prototypes)  # (h, K, D/h): once for all spots
        own_key, own_value = attention.keys(z)  # (h, n, D/h): each spot's own
        query = attention.queries(z)
        logit = torch.cat([(query * own_key).sum(-1, keepdim=True), query @ key.transpose(-2, -1)], dim=-1)
        mask = F.pad(selected, (1, 0), value=True)
        weight = attention.drop(torch.softmax(logit.masked_fill(~mask, -torch.inf), dim=-1))
        return attention.join(weight[..., :1] * own_value + weight[..., 1:] @ value)


def masked_mse(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error over the entries of `target` that are not NaN."""
    defined = torch.isfinite(target)
    error = torch.where(defined, predicted - torch.nan_to_num(target), 0.0)
    return error.square().sum() / defined.sum().clamp(min=1)


def contrastive_similarity(z: torch.Tensor, g: torch.Tensor, margin: float) -> torch.Tensor:
    """Loss that pulls the cosine similarity of g and z to 1 for the same spot, below `margin` for others."""
    similarity = F.normalize(g, dim=-1) @ F.normalize(z, dim=-1).T
    n = len(similarity)
    own = (1.0 - similarity.diagonal()).mean()
    if n < 2:
        return own
    others = F.relu(similarity - margin).square()
    return own + (others.sum() - others.diagonal().sum()) / (n * (n - 1))
