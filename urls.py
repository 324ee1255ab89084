"""Places on a disk, in object stores and on web servers: paths, ``s3://``, ``gs://``, ``az://``, ``https://``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote

from mmap_st.errors import RequestError

#: Of obstore, its own names for these are more.
SCHEMES = ("s3", "gs", "az", "http", "https")
_URL = re.compile(rf"(?P<scheme>{'|'.join(SCHEMES)})://?(?P<rest>.*)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class Url:
    """A place in an object store, or on a web server.

    Attributes
    ----------
    text
        Without a ``/`` at its end.
    """

    text: str

    def __str__(self) -> str:
        return self.text

    def __truediv__(self, key: str) -> Url:
        return Url(f"{self.text}/{key}".rstrip("/"))

    @property
    def scheme(self) -> str:
        """Such as ``s3``."""
        return self.text.partition("://")[0]

    @property
    def name(self) -> str:
        """The last part, as a file is named: web addresses may have it percent-encoded."""
        name = self.text.rpartition("/")[2]
        return name if self.lists else unquote(name)

    @property
    def parent(self) -> Url:
        """What it lies in."""
        return Url(self.text.rpartition("/")[0])

    def with_name(self, name: str) -> Url:
        """Its neighbour of another name."""
        return self.parent / name

    @property
    def lists(self) -> bool:
        """Whether the server can tell what there is, as object stores can and web servers cannot."""
        return self.scheme not in ("http", "https")


#: What a file system knows of a place, or an object store.
Place: TypeAlias = Path | Url


def url_of(place: object) -> Url | None:
    """The URL that a text or a path is; None for a place on a disk.

    ``Path("s3://bucket/x")`` has lost one of its slashes, and is one too.

    Raises
    ------
    RequestError
        If it holds a password, or names nothing.
    """
    if isinstance(place, Url):
        return place
    found = _URL.fullmatch(str(place))
    if found is None:
        return None
    scheme, rest = found["scheme"].lower(), found["rest"].strip("/")
    host, _, path = rest.partition("/")
    if "@" in host:
        raise RequestError(
            f"the {scheme} URL of {rest.rpartition('@')[2]} holds a name or a password, which would be shown;"
            " give credentials as docs/clusters.md says."
        )
    if "?" in rest or "#" in rest:
        raise RequestError(
            f"the {scheme} URL of {host} is a signed link, or names a part of a page, which is not taken;"
            " give the plain URL, or download the file."
        )
    if not host or not path:
        raise RequestError(f"{scheme}://{rest} names no file or folder; give {scheme}://BUCKET/PATH.")
    if {"", ".", ".."} & set(path.split("/")):
        raise RequestError(f"{scheme}://{rest} has an empty part, or dots; give the path as it is stored.")
    return Url(f"{scheme}://{host}/{path}")


def place_of(place: str | Path | Url) -> Place:
    """A path, or the URL that it is."""
    return url_of(place) or Path(str(place))


def place_named(text: str) -> Place | None:
    """The place that a file of others names; None for a URL that cannot be used."""
    try:
        return place_of(text)
    except RequestError:
        return None
