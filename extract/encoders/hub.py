"""Weights from the Hugging Face hub: files in its cache, and files to fetch into it."""

from __future__ import annotations

from pathlib import Path

from mmap_st.errors import EncoderError
from mmap_st.extract.encoders.spec import Hub
from mmap_st.hub import HubRequest, hub_host_resolves, hub_sentence, quiet_hub, unreachable


def cached_file(hub: Hub) -> Path | None:
    """The weights in the hub's cache, with every file that must lie next to them; else None."""
    from huggingface_hub import try_to_load_from_cache

    for name in hub.files:
        found = try_to_load_from_cache(hub.repo, name, repo_type=hub.kind)
        if isinstance(found, str) and all(_matches(Path(found), name, other) for other in hub.beside):
            return Path(found)
    return None


def _matches(found: Path, name: str, pattern: str) -> bool:
    snapshot = found.parents[name.count("/")]
    return any(snapshot.glob(pattern))


def fetch(hub: Hub, name: str) -> Path:
    """Fetch the weights of the encoder `name`, and the files that must lie next to them, into the cache.

    Raises
    ------
    EncoderError
        In one sentence that says what to do.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    request = HubRequest(name, hub.repo, hub.kind, hub.files, "give the weights with --weights FILE")
    missing: Exception | None = None
    if not hub_host_resolves():
        raise EncoderError(unreachable(request))
    try:
        with quiet_hub():
            for file in hub.files:
                try:
                    found = hf_hub_download(hub.repo, file, repo_type=hub.kind)
                except EntryNotFoundError as error:
                    if isinstance(error, LocalEntryNotFoundError):
                        raise
                    missing = error
                    continue
                if hub.beside:
                    snapshot_download(hub.repo, repo_type=hub.kind, allow_patterns=list(hub.beside))
                return Path(found)
    except Exception as error:  # of HTTP, of the cache, of the disk, of names, by huggingface_hub's version
        raise EncoderError(hub_sentence(error, request)) from error
    assert missing is not None
    raise EncoderError(hub_sentence(missing, request)) from missing
