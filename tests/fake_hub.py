"""A Hugging Face hub that replays files and refusals, without a network."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model org/model is restricted"}


@dataclass
class FakeHub:
    """A hub that holds files and, where `answer` is set, refuses all with it."""

    files: dict[str, bytes] = field(default_factory=dict)
    answer: tuple[int, dict[str, str]] | None = None
    cut: bool = False
    asked: list[str] = field(default_factory=list)
    address: str = ""
    commits: dict[str, str] = field(default_factory=dict)

    def put(self, repo: str, name: str, data: bytes, revision: str = "main", commit: str = COMMIT) -> None:
        for known in (revision, commit):
            self.files[f"/{repo}/resolve/{known}/{name}"] = data
            self.commits[f"/{repo}/resolve/{known}/{name}"] = commit


def serve(hub: FakeHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.reply(body=False)

        def do_GET(self) -> None:
            self.reply(body=True)

        def reply(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            hub.asked.append(path)
            if hub.answer is not None:
                self.head(*hub.answer, b"")
            elif path.startswith("/api/"):
                repo = path.removeprefix("/api/models/").split("/revision")[0].split("/tree")[0]
                names = [
                    k.rpartition("/main/")[2] for k in hub.files if k.startswith(f"/{repo}/resolve/main/")
                ]
                known: Any = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
                if "/tree" in path:
                    known = [
                        {
                            "type": "file",
                            "path": name,
                            "size": 1,
                            "oid": hashlib.sha1(name.encode()).hexdigest(),
                        }
                        for name in names
                    ]
                data = json.dumps(known).encode()
                self.head(200, {"Content-Type": "application/json"}, data)
                self.wfile.write(data)
            elif path not in hub.files:
                self.head(404, {"X-Error-Code": "EntryNotFound"}, b"")
            else:
                data = hub.files[path]
                etag = f'"{hashlib.sha256(data).hexdigest()}"'
                self.head(200, {"ETag": etag, "X-Repo-Commit": hub.commits[path]}, data)
                if body:
                    self.wfile.write(data[: len(data) // 2] if hub.cut else data)

        def head(self, status: int, headers: dict[str, str], data: bytes) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()

    return Handler


def look_at(hub: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT and HF_HOME do, which huggingface_hub reads when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", hub)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


@contextmanager
def running_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub on this machine, which huggingface_hub asks meanwhile."""
    fake = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), serve(fake))
    fake.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    look_at(fake.address, cache, monkeypatch)
    yield fake
    server.shutdown()
    server.server_close()
