"""A stand-in of the hub on 127.0.0.1: the few routes that its client asks, and ways to misbehave."""

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = 1000  # bytes from which a file is kept as LFS does


class Hub:
    """One repository, ``org/name``, of ``files``; large ones come by a redirect to another host, as from a CDN.

    ``plan[name]`` says how to answer the next requests for the bytes of a file, in order: a number of bytes after
    which the connection is cut, or a function of the handler; then it behaves. ``refusals[path]`` does so for any path.
    """

    def __init__(self, files: dict[str, bytes]):
        self.files = dict(files)
        self.stated = dict(files)  # what the listing says is there
        self.plan: dict[str, list[int | Callable]] = {}
        self.refusals: dict[str, list[Callable]] = {}
        self.gate: tuple[int, str] | None = None
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.answer(self, body=True)

            def do_HEAD(self):
                outer.answer(self, body=False)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()

    def asked(self, name: str) -> list[str | None]:
        """Return the ranges asked of a file's bytes."""
        ends = (f"/resolve/{COMMIT}/{name}", f"/cdn/{name}")
        gets = [(path, headers) for method, path, headers in self.seen if method == "GET" and path.endswith(ends)]
        last = "/cdn/" if any(path.startswith("/cdn/") for path, _ in gets) else "/"
        return [headers.get("Range") for path, headers in gets if path.startswith(last)]

    def answer(self, handler: http.server.BaseHTTPRequestHandler, *, body: bool) -> None:
        path = handler.path.split("?")[0]
        self.seen.append((handler.command, path, dict(handler.headers)))
        if self.refusals.get(path):
            self.refusals[path].pop(0)(handler)
        elif path.startswith("/api/models/"):
            self._describe(handler, path.removeprefix("/api/models/"))
        elif path.startswith("/cdn/"):
            self._send(handler, path.removeprefix("/cdn/"), body)
        elif path.startswith("/org/name/resolve/"):
            commit, _, name = path.removeprefix("/org/name/resolve/").partition("/")
            if self.gate:
                refuse(*self.gate)(handler)
            elif commit not in (COMMIT, "main"):
                refuse(404, "RevisionNotFound")(handler)
            elif name not in self.files:
                refuse(404, "EntryNotFound")(handler)
            elif len(self.stated[name]) >= LARGE:
                handler.send_response(302)
                self._about(handler, name, linked=True)
                handler.send_header("Location", f"http://localhost:{self.http.server_port}/cdn/{name}")
                handler.send_header("Content-Length", "0")
                handler.end_headers()
            else:
                self._send(handler, name, body)
        else:
            refuse(404, "RepoNotFound")(handler)

    def _describe(self, handler: http.server.BaseHTTPRequestHandler, rest: str) -> None:
        repo, _, revision = rest.partition("/revision/")
        if repo != "org/name":
            refuse(401, "RepoNotFound")(handler)
        elif revision not in ("main", COMMIT):
            refuse(404, "RevisionNotFound")(handler)
        else:
            siblings = []
            for name, content in self.stated.items():
                about = {"rfilename": name, "size": len(content)}
                if len(content) >= LARGE:
                    about["lfs"] = {"size": len(content), "pointerSize": 130, "sha256": sha256(content)}
                about["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                siblings.append(about)
            about = {"id": repo, "sha": COMMIT, "siblings": siblings, "gated": "manual" if self.gate else False}
            about |= {"cardData": {"license": "mit"}, "tags": []}
            content = json.dumps(about).encode()
            handler.send_response(200)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content)

    def _about(self, handler: http.server.BaseHTTPRequestHandler, name: str, *, linked: bool) -> None:
        handler.send_header("X-Repo-Commit", COMMIT)
        content = self.stated[name]
        if linked:
            handler.send_header("X-Linked-Etag", f'"{sha256(content)}"')
            handler.send_header("X-Linked-Size", str(len(content)))
        else:
            handler.send_header("ETag", f'"{sha256(content)}"')

    def _send(self, handler: http.server.BaseHTTPRequestHandler, name: str, body: bool) -> None:
        steps = self.plan.get(name) if body else None
        step = steps.pop(0) if steps else None
        if callable(step):
            step(handler)
            return
        content, start = self.files[name], 0
        if asked := handler.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            handler.send_response(200)
        self._about(handler, name, linked=False)
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        if body:
            handler.wfile.write(content[start:] if step is None else content[start:][:step])
            handler.close_connection = step is not None


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def refuse(code: int, error: str = "", text: str = "no") -> Callable:
    """Return an answer that refuses, with the hub's own error code."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        if error:
            handler.send_header("X-Error-Code", error)
        handler.send_header("X-Error-Message", text)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def stall(n_bytes: int, size: int, release: threading.Event) -> Callable:
    """Return an answer that stops after ``n_bytes`` of ``size``: zeros, and then silence until released."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(size))
        handler.end_headers()
        handler.wfile.write(bytes(n_bytes))
        handler.wfile.flush()
        release.wait(10)
        handler.close_connection = True

    return answer


@contextlib.contextmanager
def running(files: dict[str, bytes]) -> Iterator[Hub]:
    """Yield a running hub of ``files``."""
    hub = Hub(files)
    try:
        yield hub
    finally:
        hub.close()
