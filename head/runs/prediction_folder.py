"""A folder of predictions: of one head only, and written by one process at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py

from mmap_st.errors import RequestError
from mmap_st.head.runs.run_folder import only_writer

#: Key in an .h5ad of what mmap writes there, and in it of the hash of the head's weights.
UNS, HEAD_SHA256 = "mmap", "head_sha256"


@contextmanager
def prediction_folder(
    out: Path, head_sha256: str, files: Sequence[Path], *, overwrite: bool = False
) -> Iterator[None]:
    """Hold the one right to write a head's predictions into a folder.

    A head may add slides to its own predictions, and replace them. Predictions of another head (or of a
    version that did not record it) are refused, so that a folder never mixes two.

    Parameters
    ----------
    out
        The folder; made where it is missing.
    head_sha256
        Of the head's weights.
    files
        What will be written, as far as it is known.
    overwrite
        Whether predictions of another head are replaced. Those that were not replaced are removed in the
        end.

    Raises
    ------
    RequestError
        If `out` is a file, is being written by another process, holds predictions of another head, or a file
        that is not a prediction is in the way.
    """
    if out.exists() and not out.is_dir():
        raise RequestError(f"--out {out} is a file; name a folder.")
    is_new = not out.exists()
    refusal = f"--out {out} is being written by another process; wait until it ends, or name another folder."
    try:
        with only_writer(out, out / ".lock", refusal):
            others = _of_other_heads(out, head_sha256, files)
            if others and not overwrite:
                raise RequestError(
                    f"--out {out} holds predictions that this head did not make (such as {others[0].name});"
                    " name another folder, or give --overwrite to replace them."
                )
            yield
            for file in others:
                if _head_of(file) != head_sha256:
                    file.unlink(missing_ok=True)
    finally:
        if is_new and out.is_dir() and not any(out.iterdir()):
            out.rmdir()


def _of_other_heads(out: Path, head_sha256: str, files: Sequence[Path]) -> list[Path]:
    """Predictions in a folder that another head made."""
    written = set(files)
    found = []
    for file in sorted(out.glob("*.h5ad")):
        head = _head_of(file)
        if head is None and file in written:
            raise RequestError(f"{file} is not a prediction, and would be replaced; name another folder.")
        if head is not None and head != head_sha256:
            found.append(file)
    return found


def _head_of(file: Path) -> str | None:
    """The hash of the head that made a prediction; empty if it is not recorded, None if it is not one."""
    try:
        with h5py.File(file) as opened:
            about = opened["uns"][UNS]
            return about[HEAD_SHA256].asstr()[()] if HEAD_SHA256 in about else ""
    except (OSError, KeyError, ValueError, TypeError):
        return None
