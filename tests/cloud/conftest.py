"""A server that speaks S3, for the tests of everything that takes URLs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from mmap_st.extract.store.writing.lease import _knows_conditions
from mmap_st.object_stores import Bucket
from mmap_st.urls import Url
from tests.s3_server import S3Server


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="session")
def _served() -> Iterator[tuple[S3Server, str]]:
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = S3Server(DomainDispatcherApplication(create_backend_app))
    http = make_server("127.0.0.1", 0, server, threaded=True, request_handler=_Quiet)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield server, f"http://127.0.0.1:{http.port}"
    http.shutdown()


@pytest.fixture
def server(
    _served: tuple[S3Server, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[S3Server]:
    """The server, which commands find by their environment; its bucket `lab` is new."""
    found, address = _served
    for name, value in {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "AKIATEST",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=address)
    client.create_bucket(Bucket="lab")
    _knows_conditions.cache_clear()
    found.requests.clear()
    found.bytes_sent = 0
    yield found
    found.fault = lambda method, path, request: None
    for page in client.get_paginator("list_objects_v2").paginate(Bucket="lab"):
        for one in page.get("Contents", ()):
            client.delete_object(Bucket="lab", Key=one["Key"])
    client.delete_bucket(Bucket="lab")


@pytest.fixture
def bucket(server: S3Server) -> Bucket:
    """A place in the server's bucket."""
    return Bucket(Url("s3://lab/place"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
