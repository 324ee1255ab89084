"""Predictions to look at, and requests as a browser makes them."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import mmap_st as mm
from mmap_st.data import Cohort
from mmap_st.report.viewer import Answers, Viewer, first_slide, open_catalogue
from tests.conftest import Tiny


@dataclass
class Client:
    """Asks a viewer for a path below its token, unless told otherwise."""

    viewer: Viewer

    @property
    def base(self) -> str:
        return urlsplit(self.viewer.url).path

    @property
    def port(self) -> int:
        port = urlsplit(self.viewer.url).port
        assert port is not None
        return port

    def __call__(
        self, path: str, *, method: str = "GET", whole: bool = False, host: str | None = None
    ) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.putrequest(method, path if whole else self.base + path, skip_host=host is not None)
            if host:
                connection.putheader("Host", host)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()}
        finally:
            connection.close()


@pytest.fixture(scope="session")
def shown(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predictions of three sections, with measured values."""
    out = tmp_path_factory.mktemp("shown")
    mm.predict(tiny.run, tiny.store, out, cohort=f"her2st:{tiny.her2st}", progress=False)
    return out


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., Client]]:
    """Serve a folder until the end."""
    viewers = []

    def begin(where: Path, cohort: Cohort | None = None, slide: str | None = None) -> Client:
        catalogue = open_catalogue(where, cohort)
        viewers.append(Viewer(Answers(catalogue, first_slide(catalogue, slide))))
        return Client(viewers[-1])

    yield begin
    for viewer in viewers:
        viewer.close()


@pytest.fixture(scope="session")
def client(serve: Callable[..., Client], shown: Path) -> Client:
    return serve(shown)
