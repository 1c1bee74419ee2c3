"""An S3 server on loopback: moto's HTTP server, behind middleware that counts, refuses and delays requests."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

KEY, SECRET = "AKIDEXAMPLE", "a-secret-that-must-not-be-seen"
BUCKET = "experts"


class S3Server:
    """The server's request counts, and the faults that it injects."""

    def __init__(self) -> None:
        self.app = DomainDispatcherApplication(create_backend_app)
        self.lock = threading.Lock()
        self.methods: Counter[str] = Counter()
        self.inside = self.peak = 0
        self.refusals = 0
        """Number of further requests to answer with 503."""
        self.delay = 0.0
        """Seconds added to each put."""
        self.server: Any = None
        self.port = 0

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        with self.lock:
            self.methods[environ["REQUEST_METHOD"]] += 1
            self.inside += 1
            self.peak = max(self.peak, self.inside)
            refuse = self.refusals > 0
            self.refusals -= refuse
        try:
            if environ["REQUEST_METHOD"] == "PUT":
                time.sleep(self.delay)
            if refuse:
                start_response("503 Slow Down", [("Content-Type", "application/xml")])
                return [b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"]
            if KEY not in environ.get("HTTP_AUTHORIZATION", ""):
                start_response("403 Forbidden", [("Content-Type", "application/xml")])
                return [b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]
            return [b"".join(self.app(environ, start_response))]
        finally:
            with self.lock:
                self.inside -= 1

    def start(self) -> None:
        """Start listening, on the previous port if there was one; stored objects stay."""
        self.server = make_server("127.0.0.1", self.port, self, threaded=True)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def reset(self) -> None:
        """Reset the counts and the faults."""
        self.methods, self.peak, self.refusals, self.delay = Counter(), 0, 0, 0.0

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that point a client at this server."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextmanager
def s3_server() -> Iterator[S3Server]:
    server = S3Server()
    server.start()
    try:
        yield server
    finally:
        server.stop()
