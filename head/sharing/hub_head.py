"""A head on the Hugging Face hub, ``hf-hub:ORG/NAME`` or ``hf-hub:ORG/NAME@REVISION``.

The repository holds a packed head, or the files of a run; no others are fetched.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmap_st.errors import HeadError
from mmap_st.head.runs import HEAD_JSON
from mmap_st.hub import HubRequest, hub_host_resolves, hub_sentence, quiet_hub, unreachable

HUB_PREFIX = "hf-hub:"
#: What a repository holds: this file, or those of a run.
PACKED = "head.zip"
_MAIN = "main"
_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([A-Za-z0-9][\w./-]*))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ALTERNATIVE = "give the head's folder or its file instead"


@dataclass(frozen=True)
class HubHead:
    """Where on the hub a head is.

    Attributes
    ----------
    repo
        ``ORG/NAME``.
    revision
        A branch, a tag or a commit.
    """

    repo: str
    revision: str = _MAIN

    def __str__(self) -> str:
        """As the user writes it."""
        return f"{HUB_PREFIX}{self.repo}" + ("" if self.revision == _MAIN else f"@{self.revision}")

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which is the same for ever."""
        return _COMMIT.fullmatch(self.revision) is not None


def is_on_hub(path: Path) -> bool:
    """Whether a path stands for a repository of the hub."""
    return str(path).startswith(HUB_PREFIX)


def hub_head(path: Path) -> HubHead | None:
    """The head on the hub that a path stands for; None: it is a path.

    Raises
    ------
    HeadError
        If it begins as one and is none.
    """
    text = str(path)
    if not is_on_hub(path):
        return None
    found = _NAME.fullmatch(text.removeprefix(HUB_PREFIX))
    if found is None or ".." in text:
        raise HeadError(
            f"{text!r:.200} is not the name of a hub repository; write {HUB_PREFIX}ORG/NAME or"
            f" {HUB_PREFIX}ORG/NAME@REVISION."
        )
    return HubHead(found[1], found[2] or _MAIN)


def fetch_first(head: HubHead) -> tuple[Path, HubHead]:
    """Fetch the packed head, else head.json, into the hub's cache.

    Where the hub is out of reach it is what the cache has of that revision.

    Returns
    -------
    The file, and the head pinned to the commit that it is of.

    Raises
    ------
    HeadError
        In one sentence that says what to do.
    """
    found = _fetch(head, (PACKED, HEAD_JSON))
    assert found is not None
    # The cache has a folder for each commit.
    return found, replace(head, revision=found.parent.name)


def fetch_further(head: HubHead, name: str) -> Path | None:
    """Fetch another file of the run; None where the repository has none of that name."""
    return _fetch(head, (name,), optional=True)


def _fetch(head: HubHead, names: Sequence[str], *, optional: bool = False) -> Path | None:
    """The first of these files that the repository has."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    request = HubRequest(
        str(head), head.repo, files=tuple(names), alternative=_ALTERNATIVE, revision=head.revision
    )
    is_reachable = hub_host_resolves()
    missing: list[Exception] = []
    try:
        with quiet_hub():
            for name in names:
                try:
                    return Path(
                        hf_hub_download(
                            head.repo, name, revision=head.revision, local_files_only=not is_reachable
                        )
                    )
                except EntryNotFoundError as error:
                    missing.append(error)
    except Exception as error:  # of HTTP, of the cache, of the disk, of names, by huggingface_hub's version
        raise HeadError(hub_sentence(error, request)) from error
    not_asked = [error for error in missing if isinstance(error, LocalEntryNotFoundError)]
    if optional and not not_asked:
        return None
    cause = (not_asked or missing)[-1]
    raise HeadError(hub_sentence(cause, request) if is_reachable else unreachable(request)) from cause
