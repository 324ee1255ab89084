"""A server that speaks S3, in the process of the tests: it counts requests, and fails as it is told to."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

Answer = Callable[..., Any]
#: Given a request's method and path: a status to answer with, seconds to wait, ``"drop"``, or None to go on.
Fault = Callable[[str, str, dict[str, Any]], int | float | str | None]


@dataclass
class S3Server:
    """What it was asked, and how it is to fail."""

    app: Answer
    requests: list[tuple[str, str]] = field(default_factory=list)
    bytes_sent: int = 0
    fault: Fault = lambda method, path, request: None

    def __call__(self, request: dict[str, Any], start: Answer) -> Iterable[bytes]:
        method, path = request["REQUEST_METHOD"], request["PATH_INFO"]
        self.requests.append((method, path))
        wrong = self.fault(method, path, request)
        if isinstance(wrong, float):
            time.sleep(wrong)
        elif isinstance(wrong, int):
            start(f"{wrong} Fault", [("Content-Type", "application/xml")])
            return [
                f"<Error><Code>{'NotImplemented' if wrong == 501 else 'SlowDown'}</Code></Error>".encode()
            ]
        elif wrong == "drop":
            request["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionAbortedError("dropped")
        answer = b"".join(self.app(request, start))
        self.bytes_sent += len(answer)
        return [answer]
