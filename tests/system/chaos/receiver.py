"""What webhooks are sent to: a real HTTP server that checks each signature, and fails now and then."""

from __future__ import annotations

import json
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from .records import Record

SECRET = "whsec_Y2hhb3MtY2hhb3MtY2hhb3MtY2hhb3M="


class Receiver(ThreadingHTTPServer):
    """Listens on a free port of loopback until it is closed."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, record: Record, seed: int) -> None:
        self.record = record
        self.chance = random.Random(seed)
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, name="receiver", daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A worker that was killed in the middle: it will send again."""


class _Handler(BaseHTTPRequestHandler):
    server: Receiver
    # A worker that is stopped in the middle of a request must not keep a thread for ever.
    timeout = 30

    def do_POST(self) -> None:
        length = int(self.headers["content-length"])
        body = self.rfile.read(length)
        if len(body) < length:
            # Its sender was killed in the middle. Nothing was received.
            self.close_connection = True
            return
        verdict = self._verdict(body)
        if verdict == "late":
            time.sleep(1.5)
        self.send_response({"good": 204, "busy": 503, "broken": 500, "late": 204, "forged": 400}[verdict])
        self.send_header("content-length", "0")
        self.end_headers()

    def _verdict(self, body: bytes) -> str:
        try:
            Webhook(SECRET).verify(body, dict(self.headers.items()))
        except WebhookVerificationError:
            self.server.record.write("forged", self.headers.get("webhook-id"))
            return "forged"
        (verdict,) = self.server.chance.choices(("good", "busy", "broken", "late"), (90, 4, 4, 2))
        # One that is answered too late has come all the same.
        if verdict in ("good", "late"):
            event = json.loads(body)
            self.server.record.write("received", self.headers["webhook-id"], event["id"], event["type"])
        return verdict

    def log_message(self, format: str, *args: Any) -> None:
        """Its record is enough."""
