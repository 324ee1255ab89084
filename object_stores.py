"""Object stores and web servers: reading, writing, conditions, and what servers say.

All of it is obstore's, which Zarr uses too; it finds credentials where each provider's own tools look for
them. It is an extra: nothing is imported before the first URL is opened.
"""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from mmap_st.errors import (
    MissingDependencyError,
    RefusedError,
    RemoteError,
    StoppedError,
    first_line,
)
from mmap_st.urls import Url

if TYPE_CHECKING:
    from obstore.store import ObjectStore

#: No request that writes may last longer: a lease must outlive those that were begun while it was held.
LONGEST_REQUEST_S = 20.0
_READ_FOR_S, _LONGEST_READ_S = 60.0, 300.0
_DELETED_AT_A_TIME = 1000


@dataclass(frozen=True)
class Stat:
    """What a server says of an object: bytes, version, and when it was written by the server's clock."""

    size: int
    version: str | None
    modified: datetime


class Conflict(Exception):  # noqa: N818 - an answer, not a failure
    """A conditional write found another version, or that something is there already."""


class NoConditions(Exception):  # noqa: N818
    """The server does not know conditional writes."""


class NoRangesError(RemoteError):
    """The server gives files whole only, as the simplest web servers do."""


@dataclass(frozen=True)
class Bucket:
    """What lies at a URL and below; keys are relative to it, ``""`` is the place itself.

    Every method raises `RemoteError` where the server refuses, or does not answer after all retries.
    """

    url: Url

    def __reduce__(self) -> tuple[type[Bucket], tuple[Url]]:
        return type(self), (self.url,)

    @cached_property
    def _reading(self) -> ObjectStore:
        return _opened(self._root, _READ_FOR_S, _LONGEST_READ_S)

    @cached_property
    def _writing(self) -> ObjectStore:
        return _opened(self._root, LONGEST_REQUEST_S / 2, LONGEST_REQUEST_S / 2)

    @cached_property
    def _once(self) -> ObjectStore:
        return _opened(self._root, LONGEST_REQUEST_S / 2, LONGEST_REQUEST_S / 2, retries=0)

    @cached_property
    def _root(self) -> Url:
        """The bucket; of Azure, a container of the account that the environment names."""
        return Url("/".join(self.url.text.split("/")[:3]))

    def _path(self, key: str) -> str:
        own = self.url.text.removeprefix(self._root.text)
        return f"{own if self.url.lists else unquote(own)}/{key}".strip("/")

    def get(self, key: str = "", start: int | None = None, stop: int | None = None) -> bytes | None:
        """Bytes of an object, or a part of them; None where there is none."""
        import obstore
        from obstore.exceptions import NotSupportedError

        with self._errors(key):
            try:
                found = obstore.get(self._reading, self._path(key), options=_range(start, stop))
                return bytes(found.bytes())
            except FileNotFoundError:
                return None
            except NotSupportedError as error:
                raise self._without_parts(key) from error

    def _without_parts(self, key: str) -> NoRangesError:
        return NoRangesError(f"{self._shown(key)}: its server gives no part of a file; download it.")

    def stream(self, key: str = "") -> Iterator[bytes]:
        """An object by one request, as it comes: of servers that give files whole only.

        Raises
        ------
        RemoteError
            If it is not there, too; or if the connection ends before it does.
        """
        import obstore

        with self._errors(key):
            found = obstore.get(self._reading, self._path(key))
            for piece in found.stream(min_chunk_size=1 << 20):
                yield bytes(piece)

    async def get_async(
        self, key: str = "", start: int | None = None, stop: int | None = None
    ) -> bytes | None:
        """The same, among others at a time."""
        import obstore
        from obstore.exceptions import NotSupportedError

        with self._errors(key):
            try:
                found = await obstore.get_async(self._reading, self._path(key), options=_range(start, stop))
                return bytes(await found.bytes_async())
            except FileNotFoundError:
                return None
            except NotSupportedError as error:
                raise self._without_parts(key) from error

    def stat(self, key: str = "") -> Stat | None:
        """What is known of an object; None where there is none."""
        import obstore

        with self._errors(key):
            try:
                found = obstore.head(self._reading, self._path(key))
            except FileNotFoundError:
                return None
        return Stat(found["size"], found.get("e_tag"), found["last_modified"])

    def put(self, key: str, content: bytes | Path) -> str | None:
        """Write an object, whole or not at all, in place of what is there; returns its version."""
        import obstore

        with self._errors(key, "written"):
            return obstore.put(self._writing, self._path(key), content).get("e_tag")

    def put_if(self, key: str, content: bytes, version: str | None) -> str | None:
        """Write an object only if it is still of a version; None: only if there is none.

        Raises
        ------
        Conflict
            If not.
        NoConditions
            If the server does not know such requests.
        """
        import obstore
        from obstore import exceptions

        mode: Any = "create" if version is None else {"e_tag": version}
        until = time.monotonic() + LONGEST_REQUEST_S / 2
        with self._errors(key, "written"):
            # Not by obstore's own retries: what a server does not know, it does not know the next time.
            for wait in itertools.chain((0.1, 0.3, 1.0), itertools.repeat(2.0)):
                try:
                    return obstore.put(self._once, self._path(key), content, mode=mode).get("e_tag")
                except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
                    raise Conflict from error
                except exceptions.NotSupportedError as error:
                    raise NoConditions from error
                except exceptions.GenericError as error:
                    if re.search(r"code: 501|NotImplemented", str(error)):
                        raise NoConditions from error
                    if _REFUSED.search(str(error)) or time.monotonic() + wait > until:
                        raise
                    time.sleep(wait)
        raise AssertionError

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are not there are fine."""
        import obstore

        for first in range(0, len(keys), _DELETED_AT_A_TIME):
            with self._errors(keys[first], "removed"):
                part = [self._path(key) for key in keys[first : first + _DELETED_AT_A_TIME]]
                try:
                    obstore.delete(self._writing, part)
                except FileNotFoundError:
                    continue

    def keys(self, below: str = "") -> Iterator[tuple[str, int]]:
        """Every object below a key, with its bytes."""
        import obstore

        with self._errors(below, "listed"):
            for found in obstore.list(self._reading, self._path(below)):
                for one in found:
                    yield one["path"].removeprefix(self._path("")).lstrip("/"), one["size"]

    def stats(self, below: str = "") -> Iterator[tuple[str, Stat]]:
        """Every object below a key, with what the server says of it."""
        import obstore

        with self._errors(below, "listed"):
            for found in obstore.list(self._reading, self._path(below)):
                for one in found:
                    key = one["path"].removeprefix(self._path("")).lstrip("/")
                    yield key, Stat(one["size"], one.get("e_tag"), one["last_modified"])

    def folders(self, below: str = "") -> list[str]:
        """Names of the folders right below a key."""
        import obstore

        with self._errors(below, "listed"):
            found = obstore.list_with_delimiter(self._reading, self._path(below))
        return [prefix.rstrip("/").rpartition("/")[2] for prefix in found["common_prefixes"]]

    def download(self, key: str, target: Path, stop: Callable[[], bool] = lambda: False) -> None:
        """Write an object to a file, piece by piece.

        Raises
        ------
        RemoteError
            If it is not there, too.
        OSError
            If the file cannot be written.
        StoppedError
            If `stop` requests it.
        """
        with target.open("wb") as file:
            for piece in self.pieces(key):
                if stop():
                    raise StoppedError("stopped while a file was fetched")
                file.write(piece)

    def pieces(self, key: str = "", size: int = 8 << 20) -> Iterator[bytes]:
        """An object, piece by piece; each is asked for on its own, so that one that fails is asked for again.

        Raises
        ------
        RemoteError
            If it is not there, or was replaced meanwhile.
        """
        found = self.stat(key)
        if found is None:
            raise RemoteError(f"{self._shown(key)} does not exist; look at its spelling.")
        for start in range(0, found.size, size):
            piece = self.get(key, start, min(start + size, found.size))
            if piece is None or len(piece) != min(size, found.size - start):
                raise RemoteError(f"{self._shown(key)} was changed while it was read; run the command again.")
            yield piece
        if found.size and (now := self.stat(key)) is not None and now.version != found.version:
            raise RemoteError(f"{self._shown(key)} was changed while it was read; run the command again.")

    def _shown(self, key: str) -> Url:
        return self.url / key

    @contextmanager
    def _errors(self, key: str, done: str = "read") -> Iterator[None]:
        """Turn what a server says into one sentence."""
        from obstore import exceptions

        try:
            yield
        except FileNotFoundError as error:
            raise RemoteError(f"{self._shown(key)} does not exist; look at its spelling.") from error
        except exceptions.BaseError as error:
            raise _as_told(self._shown(key), done, error) from error


def _range(start: int | None, stop: int | None) -> Any:
    if start is None:
        return {}
    return {"range": {"offset": start} if stop is None else (start, stop)}


#: Where obstore looks for the credentials of a machine that has none of its own: nobody answers elsewhere.
_OF_MACHINE = re.compile(r"169\.254\.169\.254|metadata\.google|credential|Missing \w*Key", re.IGNORECASE)
#: What S3 and its kin say in the body of an answer.
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_REFUSED = re.compile(r"code: 40[13]\b|AccessDenied|InvalidAccessKeyId|SignatureDoesNot")
_ADDRESS = re.compile(r"https?://[^\s\"')]*")


def _as_told(url: Url, done: str, error: BaseException) -> RemoteError:
    """What a server or a client said, as one sentence."""
    whole = str(error)
    if url.lists and _OF_MACHINE.search(whole):
        return RefusedError(
            f"{url} cannot be {done}: no credentials were found; give them as docs/clusters.md says, or"
            " for a public bucket of S3 set AWS_SKIP_SIGNATURE=true."
        )
    if _REFUSED.search(whole):
        return RefusedError(
            f"{url} cannot be {done}: the server refuses these credentials; look whether they are of an"
            " account that may, see docs/clusters.md."
        )
    said = _CODE.search(whole)
    # Requests that are signed have their signature in the address.
    cause = said[1] if said else _ADDRESS.sub("the server", re.sub(r"^.*?error[: ]+", "", first_line(error)))
    return RemoteError(
        f"{url} cannot be {done} ({cause[:160]}); look at its spelling, the network and the server."
    )


def check_obstore(url: Url) -> None:
    """Refuse a URL before any work where what opens it is not installed.

    Raises
    ------
    MissingDependencyError
        Saying what to install.
    """
    try:
        import obstore.store  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f'{url} needs obstore; pip install "mmap-st[cloud]", or name a place on a disk.'
        ) from error


def _opened(root: Url, try_s: float, retry_s: float, retries: int = 15) -> ObjectStore:
    """A client that tries each request for `try_s`, and again what fails for a moment, for `retry_s`."""
    check_obstore(root)
    from obstore.store import from_url

    client: Any = {
        "timeout": timedelta(seconds=try_s),
        "connect_timeout": timedelta(seconds=5),
        "allow_http": root.scheme == "http" or _endpoint().startswith("http://"),
    }
    backoff = {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=5), "base": 2}
    patience: Any = {"max_retries": retries, "retry_timeout": timedelta(seconds=retry_s), "backoff": backoff}
    more: dict[str, Any] = {}
    if root.scheme == "s3" and (provider := _credentials_of_aws_profile()) is not None:
        more["credential_provider"] = provider
    return from_url(root.text, client_options=client, retry_config=patience, **more)


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _credentials_of_aws_profile() -> Any:
    """Those of the AWS tools' own files, where no others are set and boto3 is there to read them."""
    files = (os.environ.get("AWS_SHARED_CREDENTIALS_FILE"), os.environ.get("AWS_CONFIG_FILE"))
    folder = Path.home() / ".aws"
    named = "AWS_PROFILE" in os.environ or any(files) or folder.is_dir()
    if "AWS_ACCESS_KEY_ID" in os.environ or "AWS_SKIP_SIGNATURE" in os.environ or not named:
        return None
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        if "AWS_PROFILE" not in os.environ:
            return None
        raise MissingDependencyError(
            "AWS_PROFILE names a profile, which boto3 reads; pip install boto3, or set AWS_ACCESS_KEY_ID and"
            " AWS_SECRET_ACCESS_KEY."
        ) from error
    return Boto3CredentialProvider()
