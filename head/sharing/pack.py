"""A trained head as one file: a zip archive of a run without its predictions, each file with its sha256.

Files are not compressed, so that the same run gives the same bytes everywhere, and none can become larger
than the archive.
"""

from __future__ import annotations

import hashlib
import io
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path

import mmap_st
from mmap_st.errors import HeadError, RequestError
from mmap_st.files import check_file_out, replacing, sha256_of_file, writing
from mmap_st.head.registry import HEADS
from mmap_st.head.runs import GENES, HEAD_JSON, METRICS, WEIGHTS, read_card, read_head, read_metrics
from mmap_st.head.scoring import json_text
from mmap_st.head.sharing.card_files import README
from mmap_st.head.sharing.composing import card_files, card_of_run
from mmap_st.head.sharing.places import run_at
from mmap_st.head.sharing.unpacking import MANIFEST, MOST_BYTES, Manifest, PackedFile, copy_bytes, is_packed

# The first that an archive can have.
_DATE = (1980, 1, 1, 0, 0, 0)


def pack_run(run: Path, out: Path, *, overwrite: bool = False) -> None:
    """Write a run into one file, from which it can be loaded; the same run gives the same bytes.

    Parameters
    ----------
    run
        Folder of a run, or a packed one.
    out
        The file; its folder is made where it does not exist.
    overwrite
        Whether a packed head that is there may be replaced.

    Raises
    ------
    RequestError
        If `run` is not a run or is damaged, or `out` holds something else, or cannot be written.
    """
    check_file_out(out, "FILE")
    if out.exists() and not overwrite:
        raise RequestError(f"FILE {out} exists; name another file, or give --overwrite to replace it.")
    if out.exists() and not is_packed(out):
        raise RequestError(f"FILE {out} is not a packed head, and would be replaced; name another file.")
    with run_at(run) as folder:
        small, weights = _contents(folder)
        with writing(out, "FILE", "file"):
            out.parent.mkdir(parents=True, exist_ok=True)
            with replacing(out) as draft:
                _write(draft, small, folder / WEIGHTS, weights)


def _contents(run: Path) -> tuple[dict[str, bytes], PackedFile]:
    """The small files of a run by name, and what its weights are; a damaged run is refused."""
    links = [name for name in MOST_BYTES if (run / name).is_symlink()]
    if links:  # to what may be nobody else's to see
        raise HeadError(f"{run / links[0]} is a link; put the file itself there.")
    card = read_card(run)
    if not (run / METRICS).is_file():
        raise HeadError(f"{run} is not finished: {METRICS} is missing; fit it again.")
    read_metrics(run / METRICS)
    weights = PackedFile(sha256_of_file(run / WEIGHTS), (run / WEIGHTS).stat().st_size)
    if card.head in HEADS:  # others would have their code run
        read_head(run)
    elif card.weights_sha256 not in ("", weights.sha256):
        raise HeadError(f"{run} is damaged ({WEIGHTS} is not the one that {HEAD_JSON} is of).")
    small = card_files(card_of_run(run))
    for name in (README, GENES, HEAD_JSON, METRICS):  # a user's own README.md too
        if (run / name).is_file():
            small[name] = (run / name).read_bytes()
    for name, content in small.items():
        if len(content) > (MOST_BYTES[name] or 0):
            raise HeadError(f"{run / name} has {len(content):,} bytes, which is too much to be packed.")
    return small, weights


def _write(file: Path, small: Mapping[str, bytes], weights: Path, of_weights: PackedFile) -> None:
    packed = {name: PackedFile(hashlib.sha256(data).hexdigest(), len(data)) for name, data in small.items()}
    packed[WEIGHTS] = of_weights
    manifest = Manifest(package_version=mmap_st.__version__, files=dict(sorted(packed.items())))
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        every = {**small, MANIFEST: json_text(manifest).encode()}
        for name in sorted((*every, WEIGHTS)):
            info = zipfile.ZipInfo(name, _DATE)
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            info.create_system = 3  # Unix, which the mode above is of
            info.file_size = of_weights.bytes if name == WEIGHTS else len(every[name])
            with (
                weights.open("rb") if name == WEIGHTS else io.BytesIO(every[name]) as source,
                archive.open(info, "w") as target,
            ):
                found = copy_bytes(source, target)
            if name == WEIGHTS and found != of_weights:
                raise HeadError(f"{weights} was changed meanwhile; run the same command again.")
