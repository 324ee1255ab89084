"""A trained head on disk: head.json, which says what it is, and head.safetensors.

Nothing that head.json names is executed: a head that is code of a file is loaded from the user's file.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmap_st.data import NORMALISATIONS
from mmap_st.errors import HeadError, counted, first_line, printable
from mmap_st.files import sha256_of_file, sha256_of_json
from mmap_st.head.domain import Domain, is_domain, saved_domain
from mmap_st.head.interface import SPOTS, FittedHead, HeadMethod, Shape, saved_settings
from mmap_st.head.registry import HEADS, recorded_head
from mmap_st.head.runs.run_folder import HEAD_JSON, HISTORY, WEIGHTS, write_table
from mmap_st.head.runs.suitability import TrainingSlides
from mmap_st.head.scoring import (
    OMITTED,
    Calibration,
    GeneTrust,
    Spread,
    as_json,
    from_json,
    is_spread,
    is_trust,
    read_json,
    saved_spread,
    saved_trust,
    write_json,
)

FORMAT_VERSION = 1

_LOG = logging.getLogger(__name__)


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
    weights_sha256
        Of head.safetensors; empty in runs of earlier versions.
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
    calibration
        What intervals and the judgement of genes rest on; None in runs of earlier versions.
    training_slides
        Scale of the training slides; None in runs of earlier versions.
    """

    format_version: int = FORMAT_VERSION
    package_version: str = ""
    weights_sha256: str = field(default="", metadata=OMITTED)
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
    calibration: Calibration | None = field(default=None, metadata=OMITTED)
    training_slides: TrainingSlides | None = field(default=None, metadata=OMITTED)

    @property
    def encoder_name(self) -> str:
        """Name of the encoder."""
        encoder = self.encoder["encoder"]
        assert isinstance(encoder, Mapping)
        return str(encoder["name"])


@dataclass(frozen=True)
class SavedHead:
    """A trained head with all that it needs to predict.

    Attributes
    ----------
    head
        The head itself.
    method, settings
        What it is.
    card
        Contents of head.json.
    spread
        Of its predictions; None where it was not calibrated.
    trust
        Which genes to trust; None in runs of earlier versions.
    domain
        Where the training tissue lies; None in runs of earlier versions.
    sha256
        Of its weights, which predictions name.
    """

    head: FittedHead
    method: HeadMethod
    settings: Any
    card: HeadCard
    spread: Spread | None
    trust: GeneTrust | None
    domain: Domain | None
    sha256: str

    @property
    def genes(self) -> list[str]:
        """The panel, in order."""
        return list(self.card.panel.genes)

    @property
    def encoder(self) -> str:
        """Name of the encoder."""
        return self.card.encoder_name

    @property
    def mpps(self) -> tuple[float, ...]:
        """Magnifications, finest first."""
        return self.card.magnifications

    @property
    def tokens(self) -> int:
        """Side of the grids of tokens that it was trained on; 0 where it needs none."""
        return self.card.tokens


def write_head(
    folder: Path,
    head: FittedHead,
    card: HeadCard,
    spread: Spread | None = None,
    trust: GeneTrust | None = None,
    domain: Domain | None = None,
) -> str:
    """Write head.safetensors, head.json and history.csv; returns the sha256 of the first."""
    import numpy as np
    from safetensors.numpy import save_file

    tensors = head.tensors()
    for extra in (spread, trust, domain):
        tensors = tensors if extra is None else {**tensors, **extra.tensors()}
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / WEIGHTS)
    sha256 = sha256_of_file(folder / WEIGHTS)
    content = as_json(replace(card, weights_sha256=sha256))
    assert isinstance(content, dict)
    write_json(folder / HEAD_JSON, {**content, _SHA256: _sha256_of_card(content)})
    write_table(folder / HISTORY, head.history, ("epoch",))
    return sha256


#: Key of head.json with the sha256 of the others, but for those that are about the program.
_SHA256 = "sha256"
_ABOUT_THE_PROGRAM = (_SHA256, "format_version", "package_version", "head", "head_code_sha256")


def _sha256_of_card(content: Mapping[str, object]) -> str:
    return sha256_of_json({key: value for key, value in content.items() if key not in _ABOUT_THE_PROGRAM})


def read_card(folder: Path) -> HeadCard:
    """Read what head.json says of a trained head, and load nothing else.

    Raises
    ------
    HeadError
        If `folder` is not a run, or one of a format that this version does not know.
    """
    if not (folder / HEAD_JSON).is_file() or not (folder / WEIGHTS).is_file():
        raise HeadError(f"{folder} is not a run of `mmap fit-head`: {HEAD_JSON} or {WEIGHTS} is missing.")
    try:
        content = read_json(folder / HEAD_JSON)
    except HeadError as error:
        raise _damaged(folder, first_line(error)) from error
    if content.get("format_version") != FORMAT_VERSION:
        raise HeadError(
            f"{folder} has format version {content.get('format_version')}; this program reads"
            f" {FORMAT_VERSION}."
        )
    if _SHA256 in content and content[_SHA256] != _sha256_of_card(content):
        raise _damaged(folder, f"{HEAD_JSON} is not the one that was written")
    try:
        card = from_json(HeadCard, content)
    except TypeError as error:
        raise _damaged(folder, first_line(error)) from error
    wrong = _what_is_wrong(card)
    if wrong:
        raise _damaged(folder, f"{HEAD_JSON} {wrong}")
    return card


def _damaged(folder: Path, what: str) -> HeadError:
    return HeadError(f"{folder} is damaged and cannot be loaded ({what}); restore it from a copy.")


def _what_is_wrong(card: HeadCard) -> str | None:
    """What of head.json contradicts itself; runs of earlier versions have no sha256 that would tell."""
    panel, mpps, encoder = card.panel, card.magnifications, card.encoder.get("encoder")
    if len(set(panel.genes)) != len(panel.genes) or not all(panel.genes):
        return "names a gene twice, or an empty one"
    if panel.gene_ids is not None and len(panel.gene_ids) != len(panel.genes):
        return f"has {counted(len(panel.gene_ids), 'gene id')} for {counted(len(panel.genes), 'gene')}"
    if not mpps or list(mpps) != sorted(set(mpps)) or not all(math.isfinite(m) and m > 0 for m in mpps):
        return f"has magnifications {list(mpps)}"
    shape = card.shape
    if any(type(n) is not int or n < 0 for n in shape.values()):
        return f"has shape {dict(shape)}"
    if (shape.get("genes"), shape.get("magnifications")) != (len(panel.genes), len(mpps)):
        genes, scales = counted(len(panel.genes), "gene"), counted(len(mpps), "magnification")
        return f"has shape {dict(shape)}, {genes} and {scales}"
    if shape.get("width", 0) < 1 or card.tokens < 0 or card.seed < 0 or isinstance(card.seed, bool):
        return f"has width {shape.get('width')}, tokens {card.tokens} and seed {card.seed}"
    if not isinstance(encoder, Mapping) or not isinstance(encoder.get("name"), str):
        return "names no encoder"
    if card.normalisation.targets not in NORMALISATIONS:
        return f"has targets {card.normalisation.targets!r}, which this version does not know"
    return None


def built_in_settings(card: HeadCard) -> Any:
    """Settings of a built-in head; None for others, whose code would have to be run."""
    return saved_settings(HEADS[card.head], card.settings) if card.head in HEADS else None


def read_head(folder: Path, head_code: str | None = None, *, allow_changed_code: bool = False) -> SavedHead:
    """Load a trained head.

    Parameters
    ----------
    folder
        The run.
    head_code, allow_changed_code
        ``FILE.py:NAME`` of a head that is code of a file; see `mmap_st.head.registry.recorded_head`.

    Raises
    ------
    HeadError
        If `folder` is not a run, or one of a format that this version does not know; if its head is code of
        a file, and that was not given.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    card = read_card(folder)
    try:
        method = recorded_head(
            card.head, card.head_code_sha256, head_code, allow_changed_code=allow_changed_code
        )
    except HeadError as error:
        raise HeadError(f"{folder}: {error}") from error
    try:
        tensors = load_file(folder / WEIGHTS)
        sha256 = sha256_of_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise _damaged(folder, first_line(error)) from error
    if card.weights_sha256 and card.weights_sha256 != sha256:
        raise _damaged(folder, f"{WEIGHTS} is not the one that {HEAD_JSON} is of")
    if card.head_code_sha256 != method.code:
        _LOG.warning(
            "%s was trained with other code of the head %s than there is now.",
            printable(str(folder)),
            printable(method.name),
        )
    try:
        settings = saved_settings(method, card.settings)
    except HeadError as error:
        raise _damaged(folder, first_line(error).rstrip(".")) from error
    try:
        shape = from_json(Shape, dict(card.shape))
        head = method.load(tensors, settings, shape)
        spread, trust, domain = saved_spread(tensors), saved_trust(tensors), saved_domain(tensors)
        _check_shapes(spread, trust, domain, shape)
    except (
        KeyError,
        ValueError,
        TypeError,
        IndexError,
        AttributeError,
        RuntimeError,
        AssertionError,
    ) as error:
        raise _damaged(folder, f"its tensors do not fit: {first_line(error)}") from error
    return SavedHead(head, method, settings, card, spread, trust, domain, sha256)


def _check_shapes(
    spread: Spread | None, trust: GeneTrust | None, domain: Domain | None, shape: Shape
) -> None:
    """Refuse what is saved beside a head if it is of other genes or embeddings."""
    for of_genes in (spread, trust):
        for key, value in {} if of_genes is None else vars(of_genes).items():
            if value.shape != ((2,) if key == "by_distance" else (shape.genes,)):
                raise ValueError(f"{key} is of shape {value.shape}")
    if domain is not None and not domain.fits(shape.magnifications, shape.width):
        raise ValueError("where the training tissue lies is of another shape")


def count_parameters(folder: Path) -> int:
    """How many numbers a trained head consists of; training spots that it refers to are not counted."""
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, framework="numpy") as tensors:
        shapes = {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118
    beside = (is_spread, is_trust, is_domain)
    of_head = (key for key in shapes if not any(is_it(key) for is_it in beside) and SPOTS not in key)
    return sum(math.prod(shapes[key]) for key in of_head)
