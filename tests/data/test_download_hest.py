"""HEST-1k by id, from a hub on this machine."""

import errno
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anndata
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants

from mmap_st.data.download import DownloadReport, download, list_samples
from mmap_st.data.readers import open_cohort
from mmap_st.errors import RequestError
from mmap_st.progress import Silent

REPO = "datasets/MahmoodLab/hest"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to dataset MahmoodLab/hest is restricted"}
WANTED = ["HEST_v1_1_0.csv", "metadata/TENX95.json", "st/TENX95.h5ad", "wsis/TENX95.tif"]


@dataclass
class FakeHub:
    """HEST's repository; `refusal` answers requests for files, `refused` names those (all, where empty)."""

    files: dict[str, bytes] = field(default_factory=dict)
    refusal: tuple[int, dict[str, str]] | None = None
    refused: str = ""
    fetched: list[str] = field(default_factory=list)

    def handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.reply()

            def do_GET(self) -> None:
                self.reply()

            def reply(self) -> None:
                path = self.path.partition("?")[0].lstrip("/")
                if path.startswith(f"api/{REPO}/tree/"):
                    folder = path.removeprefix(f"api/{REPO}/tree/").partition("/")[2]
                    everything = "recursive=true" in self.path.lower()
                    self.answer(200, json.dumps(hub.tree(folder, everything)).encode())
                elif path == f"api/{REPO}" or path.startswith(f"api/{REPO}/revision/"):
                    self.answer(200, json.dumps({"id": "MahmoodLab/hest", "sha": COMMIT}).encode())
                elif path.startswith("api/"):
                    self.answer(404, b"")
                else:
                    name = path.removeprefix(f"{REPO}/resolve/{COMMIT}/")
                    if hub.refusal is not None and hub.refused in name:
                        self.answer(hub.refusal[0], b"", hub.refusal[1])
                        return
                    if self.command == "GET":
                        hub.fetched.append(name)
                    data = hub.files[name]
                    etag = f'"{hashlib.sha256(data).hexdigest()}"'
                    self.answer(200, data, {"ETag": etag, "X-Repo-Commit": COMMIT})

            def answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for key, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler

    def tree(self, folder: str, everything: bool) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in self.files.items()
            if everything or name.rpartition("/")[0] == folder
        ]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """Samples TENX95 and TENX96, and what else the repository has of them."""
    fake = FakeHub()
    sample = anndata.AnnData(np.ones((3, 2), np.float32), obsm={"spatial": np.ones((3, 2))})
    sample.write_h5ad(tmp_path / "sample.h5ad")
    for name in ("TENX95", "TENX96"):
        fake.files |= {
            f"st/{name}.h5ad": (tmp_path / "sample.h5ad").read_bytes(),
            f"wsis/{name}.tif": b"II*\0" + bytes(50_000),
            f"metadata/{name}.json": b'{"pixel_size_um_estimated": 0.25, "patient": "P1"}',
            f"thumbnails/{name}_downscaled_fullres.jpeg": b"thumbnail",
        }
    fake.files |= {"HEST_v1_1_0.csv": b"id,patient\nTENX95,P1\n", "README.md": b"HEST"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), fake.handler())
    use_hub(f"http://127.0.0.1:{server.server_port}", tmp_path, monkeypatch)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield fake
    server.shutdown()
    server.server_close()


def use_hub(address: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT and HF_HOME do when huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


def get(out: Path, *ids: str, progress: Silent | None = None) -> DownloadReport:
    return download("hest", out, ids=ids, progress=progress)


def test_a_sample_is_read_by_its_reader_and_not_fetched_twice(hub: FakeHub, tmp_path: Path) -> None:
    class Recorder(Silent):
        done = total = 0

        def start(self, items: int, total: int | None = None) -> None:
            self.total = total or 0

        def advance(self, amount: int) -> None:
            self.done += amount

    heard = Recorder()
    report = get(tmp_path / "hest", "tenx95", progress=heard)
    assert sorted(report.fetched) == sorted(hub.fetched) == WANTED
    assert not report.failed
    assert report.received == heard.done == heard.total == sum(len(hub.files[path]) for path in WANTED)
    slide = open_cohort(f"hest:{tmp_path / 'hest'}")["TENX95"]
    assert slide.image == tmp_path / "hest" / "wsis" / "TENX95.tif"
    assert (slide.mpp, slide.patient) == (0.25, "P1")
    again = get(tmp_path / "hest", "TENX95")
    assert sorted(again.kept) == WANTED
    assert sorted(get(tmp_path / "hest", "TENX95", "TENX96").kept) == WANTED
    assert len(hub.fetched) == len({*hub.fetched})


def test_files_that_were_there(hub: FakeHub, tmp_path: Path) -> None:
    for path, data in (("wsis/TENX95.tif", hub.files["wsis/TENX95.tif"]), ("st/TENX95.h5ad", b"mine")):
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_bytes(data)
    report = get(tmp_path, "TENX95")
    assert report.kept == ["wsis/TENX95.tif"]  # by its hash
    assert report.replaced == ["st/TENX95.h5ad"]
    assert (tmp_path / "st" / "TENX95.h5ad.old").read_bytes() == b"mine"


def test_samples_are_listed_with_their_size(hub: FakeHub) -> None:
    sizes = list_samples()
    assert list(sizes) == ["TENX95", "TENX96"]
    assert sizes["TENX95"] == sum(len(hub.files[path]) for path in WANTED[1:])


def test_an_id_that_is_unknown(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"hest has no sample TENX59 \(did you mean TENX9"):
        get(tmp_path, "TENX59")
    with pytest.raises(RequestError, match="No sample is named"):
        get(tmp_path)
    assert not hub.fetched


@pytest.mark.parametrize(
    ("status", "headers", "token", "sentence"),
    [
        (401, GATED, None, "hest is gated: ask for access at .*/datasets/MahmoodLab/hest, then log in with"),
        (403, GATED, "hf_x", "your account has no access yet: ask for it at .*/datasets/MahmoodLab/hest"),
        (401, {}, None, "the hub asks who you are; log in"),
        (403, {}, "hf_x", "your token may not read"),
        (503, {}, None, "the hub has an error"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    hub: FakeHub, tmp_path: Path, monkeypatch, status: int, headers: dict[str, str], token, sentence: str
) -> None:
    hub.refusal = (status, headers)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(RequestError, match=sentence) as error:
        get(tmp_path / "hest", "TENX95")
    assert "\n" not in str(error.value)
    assert "weights" not in str(error.value)
    assert not [path for path in WANTED if (tmp_path / "hest" / path).exists()]


def test_what_arrived_before_a_failure_is_kept(hub: FakeHub, tmp_path: Path) -> None:
    hub.refusal, hub.refused = (403, {}), "wsis"
    report = get(tmp_path, "TENX95")
    # Others may still have been on their way.
    assert "your token may not read" in report.failed["wsis/TENX95.tif"]
    hub.refusal = None
    report = get(tmp_path, "TENX95")
    assert "wsis/TENX95.tif" in report.fetched
    assert not report.failed


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("http://127.0.0.1:9", "http://no-such-host.invalid"):
        use_hub(address, tmp_path, monkeypatch)
        with pytest.raises(RequestError, match=f"hest: the hub at {address} .*run the same command again"):
            get(tmp_path / "hest", "TENX95")


def test_a_full_disk(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(RequestError, match="is full; make room and run the same command again"):
        get(tmp_path, "TENX95")
