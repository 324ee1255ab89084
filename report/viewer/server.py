"""The server of a viewer: on this machine alone, for those who know its address."""

from __future__ import annotations

import hmac
import html
import http.server
import logging
import os
import secrets
import socketserver
import sys
import threading
from http import HTTPStatus
from types import TracebackType
from typing import Any

from mmap_st.errors import MmapError, RequestError, first_line, of_one_slide
from mmap_st.report.viewer.answers import Answer, Answers, NothingThereError, refusal

_LOG = logging.getLogger(__name__)
HOST = "127.0.0.1"
#: Requests that are answered at a time, seconds that one may take to arrive, and that one waits for its turn.
MOST_THREADS, _ARRIVES_S, _TURN_S = 32, 10.0, 2.0
#: Everything is from this server; Bokeh adds style sheets of its own.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:;"
    " connect-src 'self'; font-src 'self' data:; base-uri 'none'; form-action 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_KEPT, _NOT_KEPT = "private, max-age=3600", "no-store"


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request: those without the token, or by another name of this machine, learn nothing."""

    server: _Server
    timeout = _ARRIVES_S
    server_version, sys_version = "mmap", ""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _refuse_method(self) -> None:
        if self._is_allowed() is None:
            self._send(HTTPStatus.FORBIDDEN)
        else:
            self._send(HTTPStatus.METHOD_NOT_ALLOWED)

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _refuse_method  # noqa: N815

    def _is_allowed(self) -> str | None:
        """The path after the token; None for those who may not ask."""
        if self.headers.get_all("Host", []) not in ([name] for name in self.server.names):
            return None
        path = self.path.partition("?")[0]
        slash, token, rest = path[:1], *path[1:].partition("/")[::2]
        given, wanted = token.encode(errors="replace"), self.server.token.encode()
        return rest if slash == "/" and hmac.compare_digest(given, wanted) else None

    def _answer(self) -> None:
        path = self._is_allowed()
        if path is None:
            self._send(HTTPStatus.FORBIDDEN)
            return
        try:
            answer = self.server.answers(path)
        except NothingThereError:
            self._send(HTTPStatus.NOT_FOUND)
        except MmapError as error:
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, refusal(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, other requests are answered
            _LOG.debug("a request failed: %s", first_line(error))
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, refusal(of_one_slide(error)))
        else:
            self._send(HTTPStatus.OK, answer)

    def _send(self, status: HTTPStatus, answer: Answer | None = None) -> None:
        body = b"" if answer is None else answer.body
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        if answer is not None:
            self.send_header("Content-Type", answer.kind)
        kept = answer is not None and answer.keep and status == HTTPStatus.OK
        self.send_header("Cache-Control", _KEPT if kept else _NOT_KEPT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what is no request, without repeating any of it."""
        self.close_connection = True
        if self.request_version == "HTTP/0.9":  # has no headers, and nobody speaks it
            return
        self.command = self.command or "HEAD"
        self._send(HTTPStatus(code))

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the address holds the token."""


class _Server(http.server.ThreadingHTTPServer):
    """A bounded number of threads, each of which answers one request."""

    daemon_threads = True
    block_on_close = False
    #: Elsewhere than on Windows this takes no port from others, only one that was closed a moment ago.
    allow_reuse_address = os.name != "nt"
    request_queue_size = 128

    def __init__(self, port: int, answers: Answers) -> None:
        self.answers, self.token = answers, secrets.token_urlsafe()
        self._room = threading.BoundedSemaphore(MOST_THREADS)
        super().__init__((HOST, port), _Handler)
        self.names = (f"{HOST}:{self.server_port}", f"localhost:{self.server_port}")

    def server_bind(self) -> None:
        """Bind, without asking a name server what this machine is called."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread; where all are busy for long, not at all."""
        if not self._room.acquire(timeout=_TURN_S):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and make room for another."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log it: as a rule a browser went away before it had its answer."""
        error = sys.exc_info()[1]
        if error is not None:
            _LOG.debug("a request ended early: %s", first_line(error))


class Viewer:
    """A viewer that is being served; a context manager, which closes it.

    Attributes
    ----------
    url
        Its address. Whoever knows it sees the slides, on this machine alone.
    failed
        Why slides that were to be shown are not, by name.

    Examples
    --------
    >>> with mm.view(store, open_browser=False) as viewer:
    ...     viewer.url.startswith("http://127.0.0.1:")
    True
    """

    def __init__(self, answers: Answers, port: int = 0) -> None:
        try:
            self._server = _Server(port, answers)
        except (OSError, OverflowError) as error:
            answers.close()
            raise RequestError(
                f"--port {port} cannot be listened on ({first_line(error)}); name another, or leave it out"
                " for a free one."
            ) from error
        self._answers, self.failed = answers, answers.failed
        self.url = f"http://{HOST}:{self._server.server_port}/{self._server.token}/"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="mmap viewer", daemon=True
        )
        self._closing = threading.Lock()
        self._closed = False
        self._thread.start()

    def __repr__(self) -> str:
        return f"Viewer {'(closed)' if self._closed else self.url}"

    def _repr_html_(self) -> str:
        """What a notebook shows: the viewer itself."""
        if self._closed:
            return "<p>The viewer is closed.</p>"
        return (
            f'<iframe src="{html.escape(self.url)}" title="Slides with expression" width="100%"'
            ' height="720" style="border: 0"></iframe>'
        )

    def __enter__(self) -> Viewer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wait(self) -> None:
        """Wait until it is closed, or Ctrl-C."""
        while self._thread.is_alive():
            self._thread.join(0.5)

    def close(self) -> None:
        """Serve no more; a second time does nothing."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._answers.close()
