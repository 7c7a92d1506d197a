"""An HTTP server for a folder, in a thread, that injects faults and records the requests."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lcm.data import remote

ALWAYS = 10**6


class Server:
    """faults:   what happens to the next requests of a file, by its name: a status, "truncated", "wrong", "longer",
              "endless" (longer, and no length is sent), "stalled" or "slow"
    requests: the names of the requested files, in order
    dead_for: only requests with this X-Rank meet the faults
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: dict[str, list[int | str]] = defaultdict(list)
        self.dead_for: str | None = None
        self.requests: list[str] = []
        self.over = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def fails(self, name: str, *faults: int | str, times: int = 1) -> None:
        self.faults[name] = list(faults) * times

    def requested_shards(self) -> list[str]:
        return [name for name in self.requests if name.endswith(".tar")]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = self.folder / request.path.lstrip("/")
        self.requests.append(path.name)
        meets = self.dead_for in (None, request.headers.get("X-Rank"))
        fault = self.faults[path.name].pop(0) if meets and self.faults[path.name] else None
        if isinstance(fault, int) or not path.is_file():
            request.send_error(fault if isinstance(fault, int) else 404)
            return
        data = path.read_bytes()
        request.send_response(200)
        if fault == "wrong":
            data = data[:-1] + bytes([data[-1] ^ 1])
        if fault in ("longer", "endless"):
            data += data
        if fault != "endless":
            request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        try:
            if fault == "slow":
                time.sleep(0.2)
            if fault in ("truncated", "stalled"):
                request.wfile.write(data[: len(data) // 2])
                request.wfile.flush()
                if fault == "stalled":
                    self.over.wait(60)
                request.close_connection = True
                return
            request.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            pass


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.http.shutdown()
        server.http.server_close()
        thread.join()


@contextmanager
def quick_waits() -> Iterator[list[float]]:
    """Retries without waiting. Yields the list of the seconds that they would have waited."""
    waited: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "sleep", waited.append)
        yield waited
