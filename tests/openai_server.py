"""A real HTTP server on loopback with as much of OpenAI's chat API as tests need; it fails where they want it to.

Tests get it from the fixture `openai_server` of `conftest.py`.
"""

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Request:
    """What was sent: the number of the request, from 0, its JSON, its headers (in small letters), and when it came."""

    number: int
    body: dict[str, Any]
    headers: dict[str, str]
    path: str
    time: float

    @property
    def text(self) -> str:
        """The last message."""
        content = self.body["messages"][-1]["content"]
        assert isinstance(content, str)
        return content


@dataclass
class Reply:
    """What to answer.

    Attributes:
        text: The content of the answer.
        message: Further fields of the message.
        finish_reason: Why it ended.
        body: In place of an answer: an object, sent as JSON, or a text, sent as it is.
        status: Of HTTP.
        headers: Further headers.
        seconds: How long to wait first.
        drop: Whether to close the connection in the middle of the body.
        trickle: Seconds to wait before each byte of the body.
    """

    text: str | None = ""
    message: dict[str, Any] = field(default_factory=dict)
    finish_reason: str | None = "stop"
    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0
    drop: bool = False
    trickle: float = 0

    def written(self) -> bytes:
        if isinstance(self.body, str):
            return self.body.encode()
        message = {"role": "assistant", "content": self.text, **self.message}
        choices = [{"index": 0, "message": message, "finish_reason": self.finish_reason}]
        return json.dumps(
            self.body if self.body is not None else {"object": "chat.completion", "choices": choices}
        ).encode()


class OpenAIServer:
    """A server that runs until it is closed.

    Args:
        answer: What to reply to a request: a text, or the fields of a `Reply`.

    Attributes:
        requests: What was sent, in the order in which it came.
        most_at_once: The most requests that were being answered at the same time.
    """

    def __init__(self, answer: Callable[[Request], str | dict[str, Any]]) -> None:
        self._answer = answer
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._at_once = 0
        self._connections: list[socket.socket] = []
        self.requests: list[Request] = []
        self.most_at_once = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                super().setup()
                outer._connections.append(self.connection)

            def do_POST(self) -> None:
                outer._serve(self)

            def log_message(self, *args: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *args: Any) -> None:
                pass  # a client that goes away is what some tests want

        self._http = Quiet(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def base_url(self) -> str:
        """What clients call `base_url`."""
        return f"http://127.0.0.1:{self._http.server_port}/v1"

    def close(self) -> None:
        """Stop listening; who still waits for an answer gets none."""
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            request = Request(
                len(self.requests),
                body,
                {name.lower(): value for name, value in handler.headers.items()},
                handler.path,
                time.monotonic(),
            )
            self.requests.append(request)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            replied = self._answer(request)
            reply = Reply(text=replied) if isinstance(replied, str) else Reply(**replied)
            self._closing.wait(reply.seconds)
        finally:
            with self._lock:
                self._at_once -= 1
        self._send(handler, reply)

    def _send(self, handler: BaseHTTPRequestHandler, reply: Reply) -> None:
        written = reply.written()
        handler.send_response(reply.status)
        kind = "text/html" if isinstance(reply.body, str) and "<html" in reply.body else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(written)), **reply.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        if reply.trickle:
            for byte in written:
                handler.wfile.write(bytes([byte]))
                self._closing.wait(reply.trickle)
            return
        handler.wfile.write(written[: len(written) // 2] if reply.drop else written)
        if reply.drop:
            handler.wfile.flush()
            handler.connection.shutdown(socket.SHUT_RDWR)
            handler.close_connection = True
