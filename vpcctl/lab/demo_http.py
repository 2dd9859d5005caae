"""What the demo runs inside instances: a web server and two clients.  Of the standard library alone, run as a file.

    serve PORT TEXT      answer every request with TEXT; /pieces is a download that never ends
    get ADDRESS:PORT     print the page; exit 28 where nothing answers, 7 where the connection is refused, as curl(1)
    watch ADDRESS:PORT   the endless download, each piece printed as it arrives

`serve` prints ``ready`` and then ``heard NUMBER`` for each request, NUMBER being the client's $DEMO_PROBE.  A piece is
``piece NUMBER TIME``, where TIME is when the server sent it (CLOCK_MONOTONIC, which all namespaces share).
"""

from __future__ import annotations

import http.client
import os
import socketserver
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from itertools import count

PATIENCE = 1.5  # seconds: one SYN and the first that is sent again, after 1 (RFC 6298)
PIECES_PER_SECOND = 50
REFUSED, SILENT = 7, 28
HEADER = "Demo-Probe"


class _Server(socketserver.ThreadingTCPServer):
    """Not http.server's own, which asks the DNS for its name before it listens."""

    allow_reuse_address = True
    daemon_threads = True
    text = ""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        print("heard", self.headers.get(HEADER), flush=True)
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.end_headers()
        if self.path == "/pieces":
            self._send_pieces()
        else:
            self.wfile.write(f"{self.server.text}\n".encode())

    def _send_pieces(self) -> None:
        for number in count():
            self.wfile.write(f"piece {number} {time.monotonic()}\n".encode())
            time.sleep(1 / PIECES_PER_SECOND)

    def log_message(self, *_: object) -> None:
        """Say nothing; `heard` is all the log there is."""


def serve(port: str, text: str) -> int:
    """Answer on `port` of every address until killed."""
    with _Server(("", int(port)), _Handler) as server:
        server.text = text
        print("ready", flush=True)
        server.serve_forever()
    return 0


def get(place: str) -> int:
    """Print the page at `place`."""
    with _asked(place, "/") as answer:
        print(answer.read().decode().strip())
    return 0


def watch(place: str) -> int:
    """Print the pieces that come from `place`, for as long as the connection lasts, even if it is silent."""
    with _asked(place, "/pieces") as answer:
        for line in answer:
            print(line.decode().strip(), flush=True)
    return 0


def _asked(place: str, path: str) -> http.client.HTTPResponse:
    address, _, port = place.rpartition(":")
    connection = http.client.HTTPConnection(address, int(port), timeout=PATIENCE)
    connection.request("GET", path, headers={HEADER: os.environ.get("DEMO_PROBE", "-")})
    connection.sock.settimeout(None if path == "/pieces" else PATIENCE)
    return connection.getresponse()


def main(words: list[str]) -> int:
    """Run one of the three, and say in a word what else came of it."""
    programs: dict[str, Callable[..., int]] = {"serve": serve, "get": get, "watch": watch}
    try:
        return programs[words[0]](*words[1:])
    except TimeoutError:
        print("no answer", file=sys.stderr)
        return SILENT
    except ConnectionRefusedError:
        print("refused", file=sys.stderr)
        return REFUSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
