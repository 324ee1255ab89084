"""A trained head on disk: head.json, which says what it is, and head.safetensors.

Nothing that head.json names is executed: a head that is code of a file is loaded from the user's file.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmap_st.errors import HeadError, first_line, printable
from mmap_st.files import sha256_of_file
from mmap_st.head.domain import Domain, is_domain
from mmap_st.head.interface import SPOTS, FittedHead, HeadMethod, Shape, saved_settings
from mmap_st.head.joined import JoinedDomain, load_joined, own_name, saved_joined_domain
from mmap_st.head.registry import HEADS, recorded_head
from mmap_st.head.runs.head_card import SHA256, HeadCard, damaged, read_card, sha256_of_card
from mmap_st.head.runs.run_folder import HEAD_JSON, HISTORY, WEIGHTS, write_table
from mmap_st.head.scoring import (
    GeneTrust,
    Spread,
    as_json,
    from_json,
    is_spread,
    is_trust,
    saved_spread,
    saved_trust,
    write_json,
)

_LOG = logging.getLogger(__name__)


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
    domain: Domain | JoinedDomain | None
    sha256: str

    @property
    def genes(self) -> list[str]:
        """The panel, in order."""
        return list(self.card.panel.genes)

    @property
    def encoder(self) -> str:
        """Name of the encoder; of several, with commas between them."""
        return self.card.encoder_name

    @property
    def encoders(self) -> tuple[str, ...]:
        """Names of the encoders, one or several."""
        return self.card.encoder_names

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
    domain: Domain | JoinedDomain | None = None,
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
    write_json(folder / HEAD_JSON, {**content, SHA256: sha256_of_card(content)})
    write_table(folder / HISTORY, head.history, ("epoch",))
    return sha256


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
        raise damaged(folder, first_line(error)) from error
    if card.weights_sha256 and card.weights_sha256 != sha256:
        raise damaged(folder, f"{WEIGHTS} is not the one that {HEAD_JSON} is of")
    if card.head_code_sha256 != method.code:
        _LOG.warning(
            "%s was trained with other code of the head %s than there is now.",
            printable(str(folder)),
            printable(method.name),
        )
    try:
        settings = saved_settings(method, card.settings)
    except HeadError as error:
        raise damaged(folder, first_line(error).rstrip(".")) from error
    try:
        shapes = [from_json(Shape, dict(member.shape)) for member in card.by_encoder]
        head = load_joined(method, card.encoder_names, tensors, settings, shapes)
        spread, trust = saved_spread(tensors), saved_trust(tensors)
        domain = saved_joined_domain(tensors, len(shapes))
        _check_shapes(spread, trust, domain, shapes)
    except (
        KeyError,
        ValueError,
        TypeError,
        IndexError,
        AttributeError,
        RuntimeError,
        AssertionError,
    ) as error:
        raise damaged(folder, f"its tensors do not fit: {first_line(error)}") from error
    return SavedHead(head, method, settings, card, spread, trust, domain, sha256)


def _check_shapes(
    spread: Spread | None,
    trust: GeneTrust | None,
    domain: Domain | JoinedDomain | None,
    shapes: Sequence[Shape],
) -> None:
    """Refuse what is saved beside a head if it is of other genes or embeddings."""
    for of_genes in (spread, trust):
        for key, value in {} if of_genes is None else vars(of_genes).items():
            if value.shape != ((2,) if key == "by_distance" else (shapes[0].genes,)):
                raise ValueError(f"{key} is of shape {value.shape}")
    parts = domain.parts if isinstance(domain, JoinedDomain) else (domain,) * len(shapes)
    for part, shape in zip(parts, shapes, strict=True):
        if part is not None and not part.fits(shape.magnifications, shape.width):
            raise ValueError("where the training tissue lies is of another shape")


def count_parameters(folder: Path) -> int:
    """How many numbers a trained head consists of; training spots that it refers to are not counted."""
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, framework="numpy") as tensors:
        shapes = {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118
    beside = (is_spread, is_trust, is_domain)
    of_head = (
        key for key in shapes if not any(is_it(own_name(key)) for is_it in beside) and SPOTS not in key
    )
    return sum(math.prod(shapes[key]) for key in of_head)
