"""head.json: what a trained head is, and what it was trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from mmap_st.data import NORMALISATIONS
from mmap_st.errors import HeadError, counted, first_line
from mmap_st.files import sha256_of_json
from mmap_st.head.runs.run_folder import HEAD_JSON, WEIGHTS
from mmap_st.head.runs.suitability import TrainingSlides
from mmap_st.head.scoring import OMITTED, Calibration, from_json, read_json

#: Of head.json, and of that of a head of several encoders.
FORMAT_VERSION, JOINED_FORMAT_VERSION = 1, 2
_FORMAT_VERSIONS = (FORMAT_VERSION, JOINED_FORMAT_VERSION)


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


@dataclass(frozen=True)
class MemberCard:
    """What head.json says of one of several encoders; the keys are those of `HeadCard`."""

    encoder: Mapping[str, object]
    shape: Mapping[str, int]
    tokens: int = field(default=0, metadata=OMITTED)
    training_slides: TrainingSlides | None = field(default=None, metadata=OMITTED)


@dataclass(frozen=True, kw_only=True)
class HeadCard:
    """Contents of head.json.

    Attributes
    ----------
    format_version, package_version
        Of the file, and of the package that wrote it. A head of several encoders has another format, which
        versions of the package that know nothing of these refuse.
    weights_sha256
        Of head.safetensors; empty in runs of earlier versions.
    head, head_code_sha256
        Name of the head, and the hash of its code where users brought it.
    settings, chosen, seed
        As given, and what was chosen within training.
    shape
        Numbers of magnifications and genes, width of embeddings (and of tokens); of several encoders, the
        sum of these widths.
    tokens
        Side of the grids of tokens that the head was trained on; 0 where it uses none.
    panel, normalisation
        Genes, and normalisation of targets and embeddings.
    encoder
        What of the recipe of the embeddings a head depends on; of several encoders, their names.
    magnifications
        In micrometres per pixel, finest first.
    slides
        Of each part of the split.
    calibration
        What intervals and the judgement of genes rest on; None in runs of earlier versions.
    training_slides
        Scale of the training slides; None in runs of earlier versions.
    members
        What is of one encoder alone, for each of several; empty for a head of one.
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
    members: tuple[MemberCard, ...] = field(default=(), metadata=OMITTED)

    @property
    def encoder_name(self) -> str:
        """Name of the encoder; of several, with commas between them."""
        return name_of_encoder(self.encoder)

    @property
    def by_encoder(self) -> tuple[HeadCard, ...]:
        """The card of the head of each encoder alone."""
        if not self.members:
            return (self,)
        alone = replace(self, format_version=FORMAT_VERSION, members=())
        return tuple(replace(alone, **vars(member)) for member in self.members)

    @property
    def encoder_names(self) -> tuple[str, ...]:
        """Names of the encoders, one or several."""
        return tuple(card.encoder_name for card in self.by_encoder)


def join_cards(cards: Sequence[HeadCard], chosen: Mapping[str, object]) -> HeadCard:
    """The card of a joined head, of those of the heads of its encoders; of one encoder: its card.

    Parameters
    ----------
    chosen
        By the joined head.
    """
    first, *others = cards
    if not others:
        return first
    shared = [field.name for field in fields(MemberCard)]
    return replace(
        first,
        format_version=JOINED_FORMAT_VERSION,
        chosen=chosen,
        shape={
            "magnifications": first.shape["magnifications"],
            "width": sum(card.shape["width"] for card in cards),
            "genes": first.shape["genes"],
        },
        tokens=0,
        training_slides=None,
        encoder={"encoder": {"name": ",".join(card.encoder_name for card in cards)}},
        members=tuple(MemberCard(**{name: getattr(card, name) for name in shared}) for card in cards),
    )


def name_of_encoder(recipe: Mapping[str, object]) -> str:
    """The encoder's name in what of a recipe a head depends on."""
    encoder = recipe["encoder"]
    assert isinstance(encoder, Mapping)
    return str(encoder["name"])


#: Key of head.json with the sha256 of the others, but for those that are about the program.
SHA256 = "sha256"
_ABOUT_THE_PROGRAM = (SHA256, "format_version", "package_version", "head", "head_code_sha256")


def sha256_of_card(content: Mapping[str, object]) -> str:
    """The sha256 of what head.json holds, but for what is about the program."""
    return sha256_of_json({key: value for key, value in content.items() if key not in _ABOUT_THE_PROGRAM})


def read_card(folder: Path) -> HeadCard:
    """Read what head.json says of a trained head, and load nothing else.

    Raises
    ------
    HeadError
        If `folder` is not a run, or one of a format that this version does not know.
    """
    if not folder.exists():
        raise HeadError(f"{folder} does not exist; name a folder that `mmap fit-head` wrote.")
    if not (folder / HEAD_JSON).is_file() or not (folder / WEIGHTS).is_file():
        raise HeadError(f"{folder} is not a run of `mmap fit-head`: {HEAD_JSON} or {WEIGHTS} is missing.")
    try:
        content = read_json(folder / HEAD_JSON)
    except HeadError as error:
        raise damaged(folder, first_line(error)) from error
    if content.get("format_version") not in _FORMAT_VERSIONS:
        raise HeadError(
            f"{folder} has format version {content.get('format_version')}; this program reads"
            f" {' and '.join(map(str, _FORMAT_VERSIONS))}."
        )
    if SHA256 in content and content[SHA256] != sha256_of_card(content):
        raise damaged(folder, f"{HEAD_JSON} is not the one that was written")
    try:
        card = from_json(HeadCard, content)
    except TypeError as error:
        raise damaged(folder, first_line(error)) from error
    wrong = _what_is_wrong_with_encoders(card)
    for alone in () if wrong else card.by_encoder:
        wrong = wrong or _what_is_wrong(alone)
    if wrong:
        raise damaged(folder, f"{HEAD_JSON} {wrong}")
    return card


def damaged(folder: Path, what: str) -> HeadError:
    """What to say of a run that is not as it was written."""
    return HeadError(f"{folder} is damaged and cannot be loaded ({what}); restore it from a copy.")


def _what_is_wrong_with_encoders(card: HeadCard) -> str | None:
    """What of the encoders of head.json contradicts itself."""
    if (card.format_version == JOINED_FORMAT_VERSION) != (len(card.members) > 1) or len(card.members) == 1:
        return f"is of format version {card.format_version} and of {counted(len(card.members), 'member')}"
    recipes = [card.encoder, *(member.encoder for member in card.members)]
    found = [recipe.get("encoder") for recipe in recipes]
    if not all(isinstance(encoder, Mapping) and isinstance(encoder.get("name"), str) for encoder in found):
        return "names no encoder"
    if card.members and card.encoder_name != ",".join(card.encoder_names):
        return f"is of {card.encoder_name}, and its members of {', '.join(card.encoder_names)}"
    return None


def _what_is_wrong(card: HeadCard) -> str | None:
    """What of head.json contradicts itself; runs of earlier versions have no sha256 that would tell."""
    panel, mpps = card.panel, card.magnifications
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
    if card.normalisation.targets not in NORMALISATIONS:
        return f"has targets {card.normalisation.targets!r}, which this version does not know"
    return None
