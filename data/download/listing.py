"""Names of files that are only known to the server: the list of a repository's files, as GitHub gives it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmap_st.data.download.datasets import RemoteFile
from mmap_st.data.download.transfer import Transfer, discard
from mmap_st.errors import DownloadError

_FOLDER = "data/ST-imgs/{patient}/{section}/"
_IMAGE = re.compile(r"[^./\\][^/\\]*\.(jpe?g|png|tiff?)", re.IGNORECASE)


def find_images(
    sections: Sequence[str], address: str, out: Path, sums: Mapping[str, str], transfer: Transfer
) -> tuple[list[RemoteFile], dict[str, str]]:
    """Find the images of sections of her2st.

    Parameters
    ----------
    sections
        The sections.
    address
        Where the list is.
    out
        The folder of the download.
    sums
        What was recorded in it: an image that was fetched before needs no list.
    transfer
        What fetches the list.

    Returns
    -------
    tuple
        The images, and, by its folder, why a section's image is not among them.
    """
    paths = {path: RemoteFile(path, "images") for path in sums}
    found = {section: _of_section(section, paths) for section in sections}
    if not all(found.values()):
        try:
            listed = _read(address, out, transfer)
        except DownloadError as error:
            reason = f"the image's name is in a list of files that cannot be had: {error}"
        else:
            found |= {section: _of_section(section, listed) for section in sections if not found[section]}
            reason = f"{address} lists no image of this section."
    images = [image for section in sections for image in found[section]]
    missing = {_folder(section): reason for section in sections if not found[section]}
    return images, missing


def _read(address: str, out: Path, transfer: Transfer) -> dict[str, RemoteFile]:
    part = out / ".listing.part"
    discard(part)
    try:
        transfer.fetch(address, part, lambda done, total: None)
        entries = json.loads(part.read_text("utf-8"))["tree"]
        return {
            entry["path"]: RemoteFile(entry["path"], "images", None, entry["size"], git_sha1=entry["sha"])
            for entry in entries
            if entry["type"] == "blob"
        }
    except (ValueError, KeyError, TypeError) as error:
        raise DownloadError(f"{address} is no list of files as GitHub gives it.") from error
    finally:
        discard(part)


def _of_section(section: str, files: Mapping[str, RemoteFile]) -> list[RemoteFile]:
    folder = _folder(section)
    return [
        RemoteFile(path, "images", section, file.size, git_sha1=file.git_sha1)
        for path, file in sorted(files.items())
        # Names come from the network: none may lead out of the section's folder.
        if path.startswith(folder) and _IMAGE.fullmatch(path.removeprefix(folder))
    ]


def _folder(section: str) -> str:
    return _FOLDER.format(patient=section.rstrip("0123456789"), section=section)
