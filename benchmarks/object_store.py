"""A feature store on an object store: requests, bytes and seconds of a slide, by obstore and by fsspec.

    python benchmarks/object_store.py --spots 2000 --wait-ms 20

The server is moto's, in a process of its own; it answers each request after `--wait-ms`, as one in the same
region does. The slide has random embeddings at three magnifications, and prototypes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from store_files import MPPS, made

from mmap_st.extract.store import FeatureStore
from mmap_st.extract.store.writing.publishing import Publication
from mmap_st.urls import Url

URL = Url("s3://lab/features.zarr")


class Slow:
    """A server's application that counts requests, and answers after a while."""

    def __init__(self, app: Callable[..., Any], wait_s: float) -> None:
        self.app, self.wait_s = app, wait_s
        self.methods: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __call__(self, request: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        """Answer one request."""
        time.sleep(self.wait_s)
        method = request["REQUEST_METHOD"]
        self.methods[method] += 1
        self.bytes["in"] += int(request.get("CONTENT_LENGTH") or 0)
        answer = b"".join(self.app(request, start))
        self.bytes["out"] += len(answer)
        return [answer]


def _serve(wait_s: float, line: Connection) -> None:
    import logging
    import threading

    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    slow = Slow(DomainDispatcherApplication(create_backend_app), wait_s)
    server = make_server("127.0.0.1", 0, slow, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    line.send(server.port)
    while line.recv() is not None:
        line.send((dict(slow.methods), dict(slow.bytes)))
        slow.methods.clear()
        slow.bytes.clear()


@contextmanager
def server(wait_s: float) -> Iterator[Callable[[], str]]:
    """Start a server with a bucket; yields a function that tells what was asked since it was asked last."""
    import boto3

    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(wait_s, there), daemon=True)
    process.start()
    address = f"http://127.0.0.1:{here.recv()}"
    os.environ |= {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_REGION": "us-east-1",
    }
    boto3.client("s3", endpoint_url=address).create_bucket(Bucket="lab")

    def asked() -> str:
        here.send(1)
        methods, sizes = here.recv()
        requests = ", ".join(f"{count} {method}" for method, count in sorted(methods.items()))
        return f"{requests}; {sizes.get('in', 0) / 1e6:.1f} MB in, {sizes.get('out', 0) / 1e6:.1f} MB out"

    asked()
    yield asked
    here.send(None)
    process.join(5)


def read_here() -> None:
    """Read all of the slide as the package does: each digest compared, chunks side by side."""
    slide = FeatureStore(URL)["slide"]
    for mpp in MPPS:
        slide.embedding("enc", mpp=mpp)


def read_by_zarr(store: Any) -> None:
    """Read the same arrays by Zarr alone; no digest is compared."""
    group = zarr.open_group(store, mode="r")
    for mpp in MPPS:
        array = group[f"slide/enc/{mpp:.4f}/embedding"]
        assert isinstance(array, zarr.Array)
        np.asarray(array[:])


def main() -> None:
    """Print a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--spots", type=int, default=2000)
    parser.add_argument("--width", type=int, default=1536)
    parser.add_argument("--wait-ms", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, server(options.wait_ms / 1000) as asked:
        publication = Publication.of(URL, Path(folder))
        local = publication.created()
        made(publication.folder, options.spots, options.width, 1024)
        began = time.perf_counter()
        with publication.lease("slide", lambda: False, patient=True) as lease:
            asked()
            publication.publish(local, "slide", "enc", MPPS, lease)
        print(f"publish: {time.perf_counter() - began:.2f} s; {asked()}", flush=True)
        ways = {
            "mmap, by obstore": read_here,
            "Zarr, by obstore": _obstore,
            "Zarr, by fsspec (s3fs)": _fsspec,
        }
        for _ in range(options.rounds):
            for name, read in ways.items():
                began = time.perf_counter()
                read()
                print(f"read, {name}: {time.perf_counter() - began:.2f} s; {asked()}", flush=True)


def _obstore() -> None:
    from obstore.store import from_url
    from zarr.storage import ObjectStore

    store = from_url(URL.text, client_options={"allow_http": True})
    read_by_zarr(ObjectStore(store, read_only=True))


def _fsspec() -> None:
    from zarr.storage import FsspecStore

    options = {"endpoint_url": os.environ["AWS_ENDPOINT_URL"], "skip_instance_cache": True}
    read_by_zarr(FsspecStore.from_url(URL.text, storage_options=options, read_only=True))


if __name__ == "__main__":
    sys.exit(main())
