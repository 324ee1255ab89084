"""The Hugging Face hub: files in its cache, files to fetch, and what its errors mean for the user.

`HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` are huggingface_hub's own, and are
heeded.
"""

from __future__ import annotations

import errno
import logging
import socket
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from mmap_st.errors import EncoderError, first_line
from mmap_st.extract.encoders.spec import Hub

_ELSE = "or give the weights with --weights"
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
_ENVIRONMENT = "HF_ENDPOINT names another hub, where a mirror is reachable"


def cached_file(hub: Hub) -> Path | None:
    """The weights in the hub's cache, with all that must lie beside them; None where they are not there."""
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
    """Fetch the weights of the encoder `name`, and what must lie beside them, into the hub's cache.

    Raises
    ------
    EncoderError
        In one sentence that says what to do.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    missing: Exception | None = None
    if not _name_is_known():  # else the hub's library would ask for half a minute
        raise EncoderError(_unreachable(hub, name))
    chatter = logging.getLogger("huggingface_hub")
    level = chatter.level
    chatter.setLevel(logging.ERROR)  # of its retries: what comes of them is said below
    try:
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
        raise EncoderError(hub_sentence(error, hub, name)) from error
    finally:
        chatter.setLevel(level)
    assert missing is not None
    raise EncoderError(hub_sentence(missing, hub, name)) from missing


def hub_sentence(error: Exception, hub: Hub, name: str) -> str:
    """What an error of the hub means, and what to do.

    The order is that of the table of hub errors: subclasses first, and what looks like being offline by its
    cause.
    """
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{'datasets/' if hub.kind == 'dataset' else ''}{hub.repo}"
    path = f"{_ELSE} FILE"
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, errors.DisabledRepoError):
        return f"{name}: the hub has switched off {page}; take another encoder, {path}."
    if isinstance(error, errors.GatedRepoError):
        if _token() is None:
            return f"{name} is gated: ask for access at {page}, then {log_in}, {path}."
        return (
            f"{name} is gated and your account has no access yet: ask for it at {page} and wait for the"
            " answer,"
            f" {path}."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{name}: {page} does not exist, or is private and you are not logged in; check the name,"
            f" {log_in},"
            f" {path}."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name}: {page} has no revision main; look there what it has, {path}."
    if isinstance(error, errors.LocalTokenNotFoundError):
        return f"{name}: no token is stored; {log_in}, {path}."
    if isinstance(error, errors.LocalEntryNotFoundError):
        return _not_cached(error, hub, name)
    if isinstance(error, errors.EntryNotFoundError):
        return f"{name}: {page} has none of the files {', '.join(hub.files)}; look there what it has, {path}."
    if isinstance(error, errors.OfflineModeIsEnabled):
        return _offline(hub, name)
    if isinstance(error, errors.HFValidationError):
        return f"{name}: {hub.repo!r} is no name of a hub repository; write ORG/NAME."
    if isinstance(error, errors.HfHubHTTPError):
        return _http(error, name, page)
    if isinstance(error, errors.CacheNotFound) or _is_disk(error):
        where = constants.HF_HUB_CACHE
        return f"{name}: the cache {where} cannot be written ({error}); set HF_HOME to another place, {path}."
    return f"{name}: the hub at {constants.ENDPOINT} does not answer ({first_line(error)}); {_try(hub)}"


def _not_cached(error: Exception, hub: Hub, name: str) -> str:
    """The weights are not in the cache and cannot be fetched: why, is in the cause."""
    from huggingface_hub import constants, errors

    cause = error.__cause__
    if isinstance(cause, errors.OfflineModeIsEnabled) or (cause is None and constants.HF_HUB_OFFLINE):
        return _offline(hub, name)
    if isinstance(cause, errors.HfHubHTTPError):
        return hub_sentence(cause, hub, name)
    return _unreachable(hub, name)


def _unreachable(hub: Hub, name: str) -> str:
    from huggingface_hub import constants

    return f"{name}: the hub at {constants.ENDPOINT} cannot be reached from here; {_try(hub)}"


def _name_is_known() -> bool:
    """Whether the hub's name can be looked up here; behind a proxy that is the proxy's business."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except (OSError, UnicodeError):
        return False
    return True


def _offline(hub: Hub, name: str) -> str:
    return (
        f"{name} is not in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it; unset it, copy"
        f" {hub.repo} into"
        f" the cache of this machine, {_ELSE} FILE."
    )


def _try(hub: Hub) -> str:
    return (
        f"run the same command again later, fetch {hub.repo} on a machine with network, {_ELSE} FILE"
        f" ({_ENVIRONMENT})."
    )


def _http(error: Exception, name: str, page: str) -> str:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", 0)
    if status == 401 and _token() is None:
        return f"{name}: the hub asks who you are; log in with `hf auth login` or set HF_TOKEN, {_ELSE} FILE."
    if status == 401:
        return (
            f"{name}: the hub does not accept your token; renew it with `hf auth login` or in"
            f" HF_TOKEN, {_ELSE} FILE."
        )
    if status == 403:
        return (
            f"{name}: your token may not read {page}; give it the permission to read gated repositories"
            " (settings of"
            f" the token on the hub), {_ELSE} FILE."
        )
    if status == 429:
        return (
            f"{name}: the hub has had too many requests from here; wait some minutes, or log in,"
            f" {_ELSE} FILE."
        )
    if status >= 500:
        return (
            f"{name}: the hub is out of order (status {status}); run the same command again later,"
            f" {_ELSE} FILE."
        )
    return (
        f"{name}: the hub refused {page} (status {status}: {first_line(error)});"
        f" {_ELSE.removeprefix('or ')} FILE."
    )


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def _is_disk(error: Exception) -> bool:
    local = isinstance(error, OSError) and error.errno == errno.ENOENT and error.filename is not None
    return local or (isinstance(error, OSError) and error.errno in _OF_THE_DISK)
