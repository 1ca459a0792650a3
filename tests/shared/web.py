"""A web server on this machine."""

import http.server
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Web:
    """What is served, and what was asked for.

    Attributes:
        url: Address of the folder.
        asked: Path of each request, in order.
        delay: Seconds to wait before answering.
        cut: Bytes that are missing at the end of each answer, although its length is announced whole.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[str] = []
        self.delay = 0.0
        self.cut = 0


@contextmanager
def serve(folder: Path) -> Iterator[Web]:
    """Serve the files of a folder."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            web.asked.append(self.path)
            time.sleep(web.delay)
            path = folder / self.path.partition('?')[0].lstrip('/')
            if not path.is_file():
                self.send_error(404)
                return
            content = path.read_bytes()
            self.send_response(200)
            self.send_header('Content-Length', str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) - web.cut])

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as running:
        web = Web(f'http://127.0.0.1:{running.server_port}')
        thread = threading.Thread(target=running.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True)
        thread.start()
        try:
            yield web
        finally:
            running.shutdown()
            thread.join()
