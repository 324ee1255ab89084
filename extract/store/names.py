"""Names of slides and encoders as folders of a store."""

from __future__ import annotations

import re

from mmap_st.errors import EncoderError

_SAFE = re.compile(r"[^A-Za-z0-9._-]")


def encode_name(name: str) -> str:
    """Percent-encode all but ``[A-Za-z0-9._-]``, so that a name is one safe path segment."""
    if name in (".", ".."):
        return name.replace(".", "%2E")
    return _SAFE.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), name)


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
