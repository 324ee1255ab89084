"""What the answers of the Hugging Face hub mean for the user, one sentence each.

`HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_ENDPOINT` and `HF_HUB_OFFLINE` are read by huggingface_hub itself.
"""

from __future__ import annotations

import errno
import logging
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from mmap_st.errors import first_line
from mmap_st.files import disk_advice

_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


@dataclass(frozen=True)
class HubRequest:
    """What is fetched from the hub, as messages put it.

    Attributes
    ----------
    name
        What the user calls it.
    repo, kind
        The repository, ``ORG/NAME``, and ``model`` or ``dataset``.
    files
        Names of files of which the repository should have one.
    alternative
        What else the user can do, such as ``give the weights with --weights FILE``; may be empty.
    revision
        The branch, tag or commit that is asked for.
    """

    name: str
    repo: str
    kind: str = "model"
    files: tuple[str, ...] = ()
    alternative: str = ""
    revision: str = "main"

    @property
    def page(self) -> str:
        """Address of the repository's page."""
        from huggingface_hub import constants

        return f"{constants.ENDPOINT}/{'datasets/' if self.kind == 'dataset' else ''}{self.repo}"

    def advise(self, *steps: str) -> str:
        """Join what the user can do to the end of a sentence."""
        *first, last = [step for step in (*steps, self.alternative) if step]
        return f"{', '.join(first)}, or {last}" if first else last


@contextmanager
def quiet_hub() -> Iterator[None]:
    """Keep huggingface_hub from logging its retries: what comes of them is in the error."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def hub_host_resolves() -> bool:
    """Whether the hub's host name can be looked up; behind a proxy that is left to the proxy.

    huggingface_hub would retry for half a minute before it says so.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except (OSError, UnicodeError):
        return False
    return True


def hub_sentence(error: Exception, request: HubRequest) -> str:
    """What an error of huggingface_hub means, and what to do.

    Subclasses are tested before their bases; an error that only says "not in the cache" by its cause.
    """
    from huggingface_hub import constants, errors

    name, page, advise = request.name, request.page, request.advise
    if isinstance(error, errors.DisabledRepoError):
        return f"{name}: the hub has disabled {page}; {advise('see the reason there')}."
    if isinstance(error, errors.GatedRepoError):
        if _token() is None:
            return f"{name} is gated: ask for access at {page}, then {advise(_LOG_IN)}."
        return (
            f"{name} is gated and your account has no access yet:"
            f" {advise(f'ask for it at {page} and wait for the answer')}."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        steps = advise("check the name", _LOG_IN)
        return f"{name}: {page} does not exist, or is private and you are not logged in; {steps}."
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name}: {page} has no revision {request.revision}; {advise('see there what it has')}."
    if isinstance(error, errors.LocalTokenNotFoundError):
        return f"{name}: no token is stored; {advise(_LOG_IN)}."
    if isinstance(error, errors.LocalEntryNotFoundError):
        return _not_cached(error, request)
    if isinstance(error, errors.EntryNotFoundError):
        files = ", ".join(request.files) or "requested"
        return f"{name}: {page} has none of the files {files}; {advise('see there what it has')}."
    if isinstance(error, errors.OfflineModeIsEnabled):
        return _offline(request)
    if isinstance(error, errors.HFValidationError):
        return f"{name}: {request.repo!r} is not a name of a hub repository; write ORG/NAME."
    if isinstance(error, errors.HfHubHTTPError):
        return _http(error, request)
    if isinstance(error, errors.CacheNotFound) or _is_disk(error):
        elsewhere = "set HF_HOME to another place"
        step = disk_advice(error, elsewhere) if isinstance(error, OSError) else elsewhere
        cache = f"the cache {constants.HF_HUB_CACHE} cannot be written ({first_line(error)})"
        return f"{name}: {cache}; {advise(step)}."
    problem = f"the hub at {constants.ENDPOINT} does not answer ({first_line(error)})"
    return f"{name}: {problem}; {_try_elsewhere(request)}"


def unreachable(request: HubRequest) -> str:
    """The sentence for a hub that cannot be reached."""
    from huggingface_hub import constants

    problem = f"the hub at {constants.ENDPOINT} cannot be reached from here"
    return f"{request.name}: {problem}; {_try_elsewhere(request)}"


def _not_cached(error: Exception, request: HubRequest) -> str:
    """Not in the cache and not fetched: the cause says why."""
    from huggingface_hub import constants, errors

    cause = error.__cause__
    if isinstance(cause, errors.OfflineModeIsEnabled) or (cause is None and constants.HF_HUB_OFFLINE):
        return _offline(request)
    if isinstance(cause, errors.HfHubHTTPError):
        return hub_sentence(cause, request)
    return unreachable(request)


def _offline(request: HubRequest) -> str:
    steps = request.advise("unset it", f"copy {request.repo} into the cache of this machine")
    return f"{request.name} is not in the hub's cache, and HF_HUB_OFFLINE forbids fetching it; {steps}."


def _try_elsewhere(request: HubRequest) -> str:
    steps = request.advise(
        "run the same command again later", f"fetch {request.repo} on a machine with network access"
    )
    return f"{steps} (HF_ENDPOINT names another hub, where a mirror is reachable)."


def _http(error: Exception, request: HubRequest) -> str:
    name, advise = request.name, request.advise
    status = getattr(getattr(error, "response", None), "status_code", 0)
    if status == 401 and _token() is None:
        return f"{name}: the hub asks who you are; {advise(_LOG_IN)}."
    if status == 401:
        steps = advise("renew it with `hf auth login` or in HF_TOKEN")
        return f"{name}: the hub does not accept your token; {steps}."
    if status == 403:
        permission = "give it the permission to read gated repositories (settings of the token on the hub)"
        return f"{name}: your token may not read {request.page}; {advise(permission)}."
    if status == 429:
        steps = advise("wait some minutes", "log in")
        return f"{name}: the hub has had too many requests from here; {steps}."
    if status >= 500:
        steps = advise("run the same command again later")
        return f"{name}: the hub has an error (status {status}); {steps}."
    problem = f"the hub refused {request.page} (status {status}: {first_line(error)})"
    return (
        f"{name}: {problem}; {advise('see that page') if not request.alternative else request.alternative}."
    )


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def _is_disk(error: Exception) -> bool:
    missing_folder = isinstance(error, OSError) and error.errno == errno.ENOENT and error.filename is not None
    return missing_folder or (isinstance(error, OSError) and error.errno in _DISK_ERRORS)
