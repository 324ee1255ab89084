"""What identifies stored embeddings: names as folders, and recipes of what changes their numbers."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmap_st.data import Spots
from mmap_st.errors import EncoderError
from mmap_st.files import MOST_BYTES, canonical_json, refuse_clashes, shortened

_SAFE = re.compile(r"[^A-Za-z0-9._-]")
#: Of a shortened name: with it, endings of locks, pictures and predictions are not too long either.
_SHORT = 200
#: Times that windows may be enlarged and count as not: scales are measured, and rounded.
_NOT_ENLARGED = 1.001


def encode_name(name: str) -> str:
    """Percent-encode all but ``[A-Za-z0-9._-]``, so that a name is one safe path segment.

    What is too long for a folder's name then is cut, and ends in ``~`` and a hash, which no other name does.
    """
    if name in (".", ".."):
        return name.replace(".", "%2E")
    if name == "zarr.json":  # what Zarr calls a group's own file
        return "%7Aarr.json"
    encoded = _SAFE.sub(_percent, name)
    return encoded if len(encoded) <= MOST_BYTES else shortened(encoded, _SHORT)


def _percent(match: re.Match[str]) -> str:
    # File names, and so the words of a command, may hold what is no character.
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogatepass"))


#: Names that mean something else in a slide's group, or in an encoder's, or to Zarr.
_RESERVED = ("spots", "prototypes", "zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")


def check_encoder_name(name: str) -> None:
    """Refuse a name that no encoder can have in a store, since something else has it there.

    Raises
    ------
    EncoderError
        Saying so.
    """
    key = name.strip().lower()  # some file systems do not distinguish case
    if key in _RESERVED or key.startswith("__") or key.endswith(".partial") or not key.strip("."):
        raise EncoderError(
            f"{name!r} cannot be the name of an encoder: a store reserves it; choose another name."
        )


def check_slide_names(store: Path, names: Iterable[str]) -> None:
    """Refuse slides that would share a folder of a store, on a file system that ignores capitals.

    Raises
    ------
    WriteError
        Naming two of them.
    """
    there = os.listdir(store) if store.is_dir() else []
    refuse_clashes([*there, *map(encode_name, names)], store)


#: Raised only when the numbers of an import change.
IMPORT_VERSION = 1

#: Stands before the sha256 of random weights, so that nobody takes them for others.
RANDOM = "random"

Recipe = dict[str, object]

#: Parts of a recipe that belong to one slide; the others are the same for all slides of a run.
_SLIDE_PARTS = ("source_mpp", "spots_sha256", "image", "features")
#: Parts that must agree for a head to take the embeddings.
_HEAD_PARTS = ("encoder", "weights_sha256")


def imported_recipe(
    encoder: str,
    mpp: float,
    precision: str,
    spots: Spots,
    features_sha256: str,
    matched: str,
    rows: NDArray[np.int64],
) -> Recipe:
    """The whole recipe of a magnification that was taken from a file.

    It holds which row of the file went to which spot, and not the tolerance or the slide's mpp that led to
    it: those change nothing where the rows are the same.

    Parameters
    ----------
    encoder, mpp
        What the user says that made the embeddings.
    precision
        Type of the file's numbers, such as ``float16``.
    features_sha256
        Of the whole file.
    matched
        How rows were given to spots.
    rows
        (n,) row of the file for each spot, -1 for none.
    """
    return {
        "encoder": {"name": encoder, "imported": True},
        "weights_sha256": None,
        "precision": precision,
        "algorithm_version": IMPORT_VERSION,
        "mpp": mpp,
        "source_mpp": None,
        "spots_sha256": sha256_of_spots(spots),
        "image": None,
        "features": {
            "sha256": features_sha256,
            "matched": matched,
            "rows_sha256": hashlib.sha256(np.ascontiguousarray(rows, dtype="<i8").tobytes()).hexdigest(),
        },
    }


def enlargement(recipe: Mapping[str, object]) -> float | None:
    """How many times windows are enlarged from their slide's pixels; None where they are not, or unknown."""
    source, mpp = recipe.get("source_mpp"), recipe.get("mpp")
    if source is None or mpp is None or is_imported(recipe):
        return None
    factor = float(str(source)) / float(str(mpp))
    return factor if factor > _NOT_ENLARGED else None


def is_imported(recipe: Mapping[str, object]) -> bool:
    """Whether embeddings were made elsewhere and taken from a file."""
    encoder = recipe.get("encoder")
    return isinstance(encoder, Mapping) and encoder.get("imported") is True


def encoder_of(recipe: Mapping[str, object]) -> str:
    """Name of the encoder that a recipe is of."""
    encoder = recipe["encoder"]
    assert isinstance(encoder, Mapping)
    return str(encoder["name"])


def matched_by(recipe: Mapping[str, object]) -> str:
    """How the rows of an imported file were given to spots."""
    features = recipe["features"]
    assert isinstance(features, Mapping)
    return str(features["matched"])


def sha256_of_spots(spots: Spots) -> str:
    """Hex sha256 of the ids and coordinates, in order."""
    digest = hashlib.sha256(canonical_json(list(spots.ids)).encode())
    digest.update(np.ascontiguousarray(spots.xy, dtype="<f8").tobytes())
    return digest.hexdigest()


def run_part(recipe: Mapping[str, object]) -> Recipe:
    """What of a recipe the slides of a run share, magnification apart."""
    return {k: v for k, v in recipe.items() if k not in (*_SLIDE_PARTS, "mpp")}


def slide_part(recipe: Mapping[str, object]) -> Recipe:
    """What of a recipe belongs to the slide: its image, scale and spots, the file it was imported from."""
    return {k: recipe[k] for k in _SLIDE_PARTS if k in recipe}


def head_part(recipe: Mapping[str, object]) -> Recipe:
    """What of a recipe a head compares: encoder with pooling, preprocessing and input_px; weights."""
    return {k: recipe[k] for k in _HEAD_PARTS}


def differences(stored: Mapping[str, object], wanted: Mapping[str, object]) -> list[str]:
    """``"precision: stored fp32, asked bf16"`` for every value that differs.

    Where one was imported and the other extracted they have little in common: that alone is said.
    """
    kinds = [_kind(recipe) for recipe in (stored, wanted)]
    if kinds[0] != kinds[1]:
        return [f"embeddings: stored {kinds[0]}, asked {kinds[1]}"]
    flat_stored, flat_wanted = _flatten(stored), _flatten(wanted)
    return [
        f"{key}: stored {_short(flat_stored.get(key))}, asked {_short(flat_wanted.get(key))}"
        for key in sorted(flat_stored.keys() | flat_wanted.keys())
        if flat_stored.get(key) != flat_wanted.get(key)
    ]


def _kind(recipe: Mapping[str, object]) -> str:
    return "imported" if is_imported(recipe) else "extracted"


def _flatten(value: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            flat.update(_flatten(inner, f"{prefix}{key}."))
        else:
            flat[prefix + key] = inner
    return flat


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
