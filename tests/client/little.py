"""A little HTTP server whose answers a test writes, for what the real one never says."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Answer(NamedTuple):
    """`claims` is the Content-Length where it is not that of the body; the connection is then cut."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = {}  # noqa: RUF012
    claims: int | None = None


def of(value: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(
        status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers}
    )


def problem(status: int, code: str = "some_code", **fields: Any) -> Answer:
    return of(
        {"title": "t", "status": status, "code": code, "detail": f"{code} it is", **fields}, status
    )


CUT = Answer(status=0)


class Little:
    """Answers with what `answer` says to each request, and remembers the requests."""

    def __init__(self, answer: Callable[[Request], Answer]) -> None:
        self.answer, self.requests, self.url = answer, list[Request](), ""

    def paths(self) -> list[str]:
        return [f"{r.method} {r.path}" for r in self.requests]


@contextlib.contextmanager
def serving(answer: Callable[[Request], Answer]) -> Iterator[Little]:
    little = Little(answer)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = Request(self.command, self.path, dict(self.headers), body)
            little.requests.append(request)
            self.reply(little.answer(request))

        def reply(self, answer: Answer) -> None:
            if answer is CUT:
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            claims = len(answer.body) if answer.claims is None else answer.claims
            self.send_header("Content-Length", str(claims))
            self.end_headers()
            self.wfile.write(answer.body)
            self.close_connection = self.close_connection or answer.claims is not None

        do_GET = do_HEAD = do_POST = do_PATCH = do_DELETE = handle_one  # noqa: N815

        def log_message(self, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    little.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield little
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def in_turn(*answers: Answer) -> Callable[[Request], Answer]:
    """Each answer once, the last one for ever."""
    left = list(answers)
    return lambda request: left.pop(0) if len(left) > 1 else left[0]
