"""HTTP for the provider and for the proxy before it: HTTP/1.1 with connections that stay open, a thread for each."""

import socket
import sys
from abc import abstractmethod
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """Reads requests whole, and writes each answer at once."""

    protocol_version = "HTTP/1.1"
    # Head and body in one packet; or the second waits 40 ms for the acknowledgement of the first.
    wbufsize = -1
    disable_nagle_algorithm = True

    @abstractmethod
    def respond(self, content: bytes) -> None:
        """Answer the request that was read."""

    def handle_any(self) -> None:
        """Read a request's body and answer it."""
        self.respond(self.rfile.read(int(self.headers.get("Content-Length", "0"))))

    do_GET = do_POST = do_DELETE = handle_any  # noqa: N815 - the names that the base class looks for

    def write(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        """Write an answer. The client may have left."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if status != 204:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Be silent: tests send thousands of requests."""


class HttpServer(ThreadingHTTPServer):
    """Listens on 127.0.0.1."""

    daemon_threads = True
    request_queue_size = 512

    def __init__(self, port: int, handler: type[Handler]) -> None:
        super().__init__(("127.0.0.1", port), handler)

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Leave out the traceback of a client that hung up."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def server_bind(self) -> None:
        """Bind without asking DNS for our name, which takes seconds where there is none."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
