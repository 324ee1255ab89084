"""What head.json says of a trained head: all that is needed to use it, and what it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mmap_st.head.scoring import OMITTED

FORMAT_VERSION = 1


@dataclass(frozen=True)
class PanelCard:
    """The genes that a head predicts, in order, how they were chosen and on which slides.

    `gene_ids` is None where the count tables have none.
    """

    genes: tuple[str, ...]
    gene_ids: tuple[str, ...] | None
    how: str
    slides: tuple[str, ...]


@dataclass(frozen=True)
class NormalisationCard:
    """How targets and embeddings were normalised."""

    targets: str
    embeddings: str


@dataclass(frozen=True)
class SplitCard:
    """Names of the slides of each part of the split."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class HeadCard:
    """Contents of head.json.

    Attributes
    ----------
    format_version, package_version
        Of the file, and of the package that wrote it.
    head, head_code_sha256
        Name of the head, and the hash of its code where users brought it.
    settings, chosen, seed
        As given, and what was chosen within training.
    shape
        Numbers of magnifications and genes, width of embeddings (and of tokens).
    tokens
        Side of the grids of tokens that the head was trained on; 0 where it uses none.
    panel, normalisation
        Genes, and normalisation of targets and embeddings.
    encoder
        What of the recipe of the embeddings a head depends on.
    magnifications
        In micrometres per pixel, finest first.
    slides
        Of each part of the split.
    """

    format_version: int = FORMAT_VERSION
    package_version: str = ""
    head: str
    head_code_sha256: str = field(default="", metadata=OMITTED)
    settings: Mapping[str, object]
    chosen: Mapping[str, object] = field(default_factory=dict)
    seed: int
    shape: Mapping[str, int]
    tokens: int = field(default=0, metadata=OMITTED)
    panel: PanelCard
    normalisation: NormalisationCard
    encoder: Mapping[str, object]
    magnifications: tuple[float, ...]
    slides: SplitCard

    @property
    def encoder_name(self) -> str:
        """Name of the encoder."""
        encoder = self.encoder["encoder"]
        assert isinstance(encoder, Mapping)
        return str(encoder["name"])
