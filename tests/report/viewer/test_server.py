"""The viewer's server: who may ask, what is refused, and that nothing a client does ends it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmap_st.errors import RequestError
from mmap_st.report.viewer import Answers, Viewer, first_slide, open_catalogue, server
from tests.report.viewer.conftest import Client

ABOUT = "slides/0/about.json"


def raw(client: Client, request: bytes, wait: float = 5.0) -> bytes:
    with socket.create_connection(("127.0.0.1", client.port), timeout=wait) as opened:
        opened.sendall(request)
        opened.shutdown(socket.SHUT_WR)
        found = b""
        while part := opened.recv(65536):
            found += part
        return found


def test_it_listens_on_this_machine_alone(client: Client) -> None:
    assert client.viewer.url.startswith("http://127.0.0.1:")
    assert client.viewer._server.server_address[0] == "127.0.0.1"
    token = client.base.strip("/")
    assert len(token) >= 43  # 256 bits


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "OPTIONS"])
@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/wrong/",
        "/wrong/slides.json",
        "/slides.json",
        "",
        "*",
        "//",
        "/..",
        "/%2e%2e/",
        "http://example.org/",
    ],
)
def test_without_the_token_nothing_is_said(client: Client, method: str, path: str) -> None:
    status, body, headers = client(path, method=method, whole=True)
    assert (status, body) == (403, b"")
    assert "access-control-allow-origin" not in headers
    assert client.base.strip("/") not in str(headers)


def test_part_of_a_token_or_more_is_none(client: Client) -> None:
    token = client.base.strip("/")
    for wrong in (
        token[:-1],
        token + "x",
        token.swapcase(),
        token[:-1] + "%00",
        f"{token}%2f",
        "é" * len(token),
    ):
        request = f"GET /{wrong}/slides.json HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\n\r\n".encode()
        assert raw(client, request).startswith(b"HTTP/1.0 403")


@pytest.mark.parametrize(
    "host",
    ["example.org", "127.0.0.1", "localhost", "127.0.0.1:1", "[::1]:{port}", "localhost.example.org:{port}", "",
     "127.0.0.1:{port}.example.org", "127.1:{port}", "0.0.0.0:{port}"],
)  # fmt: skip
def test_another_name_of_this_machine_is_refused(client: Client, host: str) -> None:
    """As a page elsewhere uses, whose name is made to point here."""
    status, body, _ = client(ABOUT, host=host.format(port=client.port))
    assert (status, body) == (403, b"")


def test_two_names_are_refused_and_both_names_are_known(client: Client) -> None:
    for name in ("127.0.0.1", "localhost"):
        assert client(ABOUT, host=f"{name}:{client.port}")[0] == 200
    both = f"Host: 127.0.0.1:{client.port}\r\nHost: example.org\r\n"
    assert raw(client, f"GET {client.base}{ABOUT} HTTP/1.1\r\n{both}\r\n".encode()).startswith(
        b"HTTP/1.0 403"
    )


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_only_reading_is_allowed(client: Client, method: str) -> None:
    status, body, headers = client(ABOUT, method=method)
    assert (status, body, headers["allow"]) == (405, b"", "GET, HEAD")


@pytest.mark.parametrize(
    "path", ["", "slides.json", ABOUT, "viewer.js", "slides/0/spots", "slides/0/tiles/0/0/0"]
)
def test_answers_may_be_used_by_this_page_alone(client: Client, path: str) -> None:
    status, body, headers = client(path)
    assert status == 200
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe-eval" not in headers["content-security-policy"]
    assert "script-src 'self';" in headers["content-security-policy"]
    assert not [name for name in headers if name.startswith("access-control")]
    assert int(headers["content-length"]) == len(body) > 0
    head = client(path, method="HEAD")
    assert head[:2] == (200, b"")
    assert head[2]["content-length"] == str(len(body))


PASSWD = "etc/passwd"


@pytest.mark.parametrize(
    "path",
    [
        f"../../../../{PASSWD}", f"..%2f..%2f..%2f{PASSWD}", f"%2e%2e/%2e%2e/{PASSWD}", f"/{PASSWD}", f"%2f{PASSWD}",
        f"slides/../{PASSWD}", "slides/0/../../server.py", "viewer.js/../server.py", "server.py", "..", ".", "slides",
        "slides/", "slides/0", "slides/0/", "viewer.js/", "viewer.js%00", "viewer.js%00.css", "%00", "viewer%2ejs/x",
        "slides/0/tiles/0/0/..%2f..%2fabout.json", "slides/A1/about.json", "slides/99/about.json", "slides/-1/about.json",
        "slides/00/about.json", "slides/0/nothing", "slides/0/about.json/x", "slides/0/__class__", "__init__.py",
        "slides/0/values", "slides/0/values/predicted", "slides/0/values/predicted/NOGENE", "slides/0/values/no/G",
        "slides/0/values/predicted/G/more", "slides/0/values/predicted/..%2f", "slides/0/tiles", "slides/0/tiles/0/0",
        "slides/0/tiles/0/0/0/0", "slides/0/tiles/0/0/1", "slides/0/tiles/0/1/0", "slides/0/tiles/99/0/0",
        "slides/0/tiles/-1/0/0", "slides/0/tiles/0/-1/0", "slides/0/tiles/0/0/0.jpg", "slides/0/tiles/x/y/z",
        "slides/0/tiles/1e3/0/0", "slides/0/tiles/%C2%B2/0/0", "slides/0/tiles/0/0/99999999999999999999", "%ff", "%", "%zz",
    ],
)  # fmt: skip
def test_what_is_not_there_is_not_found(client: Client, path: str) -> None:
    status, body, _ = client(path)
    assert (status, body) == (404, b"")
    assert client(ABOUT)[0] == 200


def test_a_question_after_a_path_changes_nothing(client: Client) -> None:
    assert client(f"{ABOUT}?x=/../..")[1] == client(ABOUT)[1]


@pytest.mark.parametrize(
    "request_of",
    [
        lambda c: b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
        lambda c: f"GET {c.base} HTTP/1.1\r\n".encode() + b"X: y\r\n" * 200 + b"\r\n",
        lambda c: f"GET {c.base} HTTP/1.1\r\nX: ".encode() + b"y" * 70_000 + b"\r\n\r\n",
        lambda c: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        lambda c: b"<script>alert(1)</script> / HTTP/1.1\r\n\r\n",
        lambda c: b"GET / HTTP/99.9\r\n\r\n",
        lambda c: b"GET / nonsense\r\n\r\n",
        lambda c: b"GET\r\n\r\n",
        lambda c: b"GET /\r\n",
        lambda c: b"\r\n\r\n",
        lambda c: b"",
    ],
    ids=["long line", "many headers", "long header", "TLS", "script", "version", "protocol", "short", "0.9", "empty", "none"],
)  # fmt: skip
def test_what_is_no_request_is_refused_without_repeating_it(
    client: Client, request_of: Callable[[Client], bytes]
) -> None:
    found = raw(client, request_of(client))
    assert b"script>" not in found
    assert b"200 OK" not in found
    assert found.endswith(b"\r\n\r\n") or not found  # no body
    assert client(ABOUT)[0] == 200


def test_many_connections_are_answered_and_threads_are_bounded(client: Client) -> None:
    most = 0
    with ThreadPoolExecutor(60) as pool:
        waiting = [pool.submit(client, "slides/0/spots") for _ in range(240)]
        while not all(one.done() for one in waiting):
            named = [t for t in threading.enumerate() if "process_request_thread" in t.name]
            most = max(most, len(named))
            time.sleep(0.002)
    assert {one.result()[0] for one in waiting} == {200}
    assert most <= server.MOST_THREADS


def test_clients_that_say_nothing_do_not_keep_others_out(
    serve: Callable[..., Client], shown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server._Handler, "timeout", 0.3)
    client = serve(shown)
    silent = [socket.create_connection(("127.0.0.1", client.port)) for _ in range(2 * server.MOST_THREADS)]
    try:
        assert client(ABOUT)[0] == 200
    finally:
        for one in silent:
            one.close()


def test_a_client_that_leaves_ends_nothing(client: Client, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", client.port)) as opened:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            opened.sendall(
                f"GET {client.base}bokeh.min.js HTTP/1.1\r\nHost: 127.0.0.1:{client.port}\r\n\r\n".encode()
            )
    assert client(ABOUT)[0] == 200
    assert capfd.readouterr() == ("", "")


def test_closing_ends_it_and_frees_the_port(shown: Path) -> None:
    catalogue = open_catalogue(shown)
    before = threading.active_count()
    viewer = Viewer(Answers(catalogue, first_slide(catalogue, None)))
    client = Client(viewer)
    assert client("slides/0/tiles/0/0/0")[0] == 200
    port = client.port
    viewer.close()
    viewer.close()
    assert "closed" in repr(viewer)
    assert "iframe" not in viewer._repr_html_()
    viewer.wait()
    assert threading.active_count() <= before + 1
    assert not viewer._answers.tiles._open
    with pytest.raises(OSError, match="refused"):
        client(ABOUT)
    with Viewer(Answers(catalogue, first_slide(catalogue, None)), port) as again:  # at once
        assert Client(again)(ABOUT)[0] == 200


def test_a_port_that_is_taken_is_one_sentence(client: Client, shown: Path) -> None:
    catalogue = open_catalogue(shown)
    with pytest.raises(RequestError, match=f"--port {client.port} cannot be listened on .*; name another"):
        Viewer(Answers(catalogue, first_slide(catalogue, None)), client.port)


def test_each_viewer_has_a_secret_of_its_own(
    client: Client, serve: Callable[..., Client], shown: Path
) -> None:
    other = serve(shown)
    assert other.base != client.base
    assert other(client.base + ABOUT, whole=True)[0] == 403


def test_a_notebook_shows_the_viewer(client: Client) -> None:
    html = client.viewer._repr_html_()
    assert f'<iframe src="{client.viewer.url}"' in html
    assert "title=" in html
