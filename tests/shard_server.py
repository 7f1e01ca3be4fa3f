"""A web server on this machine that serves a folder, counts what is asked of it and misbehaves on demand."""

import contextlib
import http.server
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

Answer = Callable[[http.server.BaseHTTPRequestHandler, bytes], None]


class ShardServer:
    """`asked` counts GETs by file name; `answers` replaces the answer for a name, as long as its function is there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: Counter[str] = Counter()
        self.answers: dict[str, Answer] = {}
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.rpartition("/")[2]
                server.asked[name] += 1
                path = folder / name
                data = path.read_bytes() if path.is_file() else b""
                if name in server.answers:
                    server.answers[name](self, data)
                else:
                    send(self, 200 if path.is_file() else 404, data)

            def do_HEAD(self) -> None:
                server.asked["HEAD"] += 1
                self.send_error(405)

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.http.server_port}/shards"


def send(handler: http.server.BaseHTTPRequestHandler, status: int, data: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def send_half(handler: http.server.BaseHTTPRequestHandler, data: bytes) -> None:
    """Announce all of it, send half, hang up."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.close_connection = True


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[ShardServer]:
    server = ShardServer(folder)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()
