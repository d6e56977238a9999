"""Fetch one file from an address or copy it from a path, and check it; what the rooms' own download stages share.

The address is https://, http://, file:// or a plain path. The file appears under its name only when it is whole: the
size is checked where the server states it, the SHA-256 where it is given (else it is logged, to be written down).

A connection that breaks or stalls is taken up again where it stopped, also by a later run: what has come so far waits
in ``F.tmp.partial``. The server is asked for the rest only of the very file that was begun (its ETag, or date of last
change); if that has changed, or cannot be told, the download starts over.
"""

import fcntl
import hashlib
import http.client
import json
import logging
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

import plm_depth
from plm_depth.megabytes import Megabytes
from plm_depth.tables import replacing, write_text

BLOCK = 1 << 20
ATTEMPTS = 6  # in a row that bring nothing new
TIMEOUT = 60.0  # seconds without a byte
TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
LONGEST_PAUSE = 300.0  # seconds, whatever the server asks for


class DownloadError(ValueError):
    """A file that cannot be had; the text says what was expected, what came, where, and the mend."""


class _Interrupted(Exception):
    """A failure that may pass; ``pause`` is how long the server asks to wait, in seconds."""

    def __init__(self, text: str, pause: float | None = None):
        super().__init__(text)
        self.pause = pause


def back_off(failures: int) -> float:
    """Return the seconds to wait after so many failures in a row: 1, 2, 4, ... at most 60."""
    return float(min(60, 2 ** (failures - 1)))


def download(
    url: str,
    output: str | Path,
    *,
    sha256: str | None = None,
    headers: Mapping[str, str] | None = None,
    room_for: int = 1,
    attempts: int = ATTEMPTS,
    timeout: float = TIMEOUT,
    pause: Callable[[int], float] = back_off,
    sleep: Callable[[float], None] = time.sleep,
    log: logging.Logger | None = None,
) -> str:
    """Fetch ``url`` to ``output``, whole or not at all; return its SHA-256 in hexadecimal.

    Args:
        url: https://, http://, file:// or a plain path.
        output: where the file goes.
        sha256: expected digest, 64 hexadecimal digits; None: not checked.
        headers: what else the server of this address is told (a login); a server that it redirects to is not.
        room_for: how many times the size of the file must be free before it comes: more than once for what is unpacked.
        attempts: how often to try in a row without receiving anything new.
        timeout: seconds without a byte until a connection counts as stalled.
        pause: seconds to wait after n failures in a row, unless the server asks for more.
        sleep: waits so many seconds.
        log: where progress goes.

    Raises:
        DownloadError: bad options, no such file, a refusal of the server, a failure that stays, a wrong size or digest.
    """
    log = log or logging.getLogger(__name__)
    output = Path(output)
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise DownloadError(f"--sha256 {sha256!r}: expected 64 hexadecimal digits")
    if attempts < 1 or not timeout > 0:
        raise DownloadError(f"--attempts {attempts} --timeout {timeout}: expected at least 1, and more than 0 seconds")
    scheme = urllib.parse.urlsplit(url).scheme.lower()
    if scheme in ("", "file"):
        with replacing(output) as temporary:
            _copy(_path_of(url), temporary, log, room_for)
            return _checked(temporary, url, sha256, log)
    if scheme not in ("http", "https"):
        raise DownloadError(f"{url}: expected https://, http://, file:// or a path, not {scheme}://")

    output.parent.mkdir(parents=True, exist_ok=True)
    with _Partial(url, output, headers or {}, timeout, log, room_for) as partial:
        failures, most = 0, partial.reached
        while True:
            try:
                partial.receive()
                break
            except _Interrupted as error:
                failures = 0 if partial.reached > most else failures + 1
                most = max(most, partial.reached)
                if failures >= attempts:
                    raise DownloadError(
                        f"{url}: {error}; {attempts} attempts in a row brought nothing new ({partial.reached} bytes so "
                        "far). Run again to go on, or fetch the file by other means and give its path"
                    ) from error
                seconds = min(max(pause(max(failures, 1)), error.pause or 0.0), LONGEST_PAUSE)
                log.info("%s; %d bytes so far, next attempt in %.0f s", error, partial.reached, seconds)
                sleep(seconds)
        return partial.finish(sha256)


def _path_of(url: str) -> Path:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme.lower() != "file":
        return Path(url)
    if parts.netloc not in ("", "localhost"):
        raise DownloadError(f"{url}: a file address with a host; expected file:///absolute/path")
    return Path(urllib.request.url2pathname(parts.path))


def _copy(source: Path, target: Path, log: logging.Logger, room_for: int) -> None:
    try:
        with open(source, "rb") as read, open(target, "wb") as write:
            _check_room(target.parent, room_for * os.fstat(read.fileno()).st_size, str(source))
            progress = Megabytes(log, os.fstat(read.fileno()).st_size, "MB")
            while block := read.read(BLOCK):
                write.write(block)
                progress.add(len(block))
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise DownloadError(f"{error.filename}: cannot be read as a file ({error.strerror})") from error
    progress.finish()


def _check_room(folder: Path, needed: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(f"{folder}: {free} bytes free, {needed} more needed for {what}; make room")


def _checked(path: Path, url: str, sha256: str | None, log: logging.Logger) -> str:
    """Return the SHA-256 of a file, or raise if it is not the expected one."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = path.stat().st_size
    if sha256 is None:
        log.info("%d bytes, SHA-256 %s (none was given to check)", size, digest)
    elif digest != sha256.lower():
        raise DownloadError(
            f"{url}: wrong file: its SHA-256 is {digest}, expected {sha256.lower()} ({size} bytes came); it was "
            "damaged on the way, or another release stands there now: run again, then check address and digest"
        )
    else:
        log.info("%d bytes, SHA-256 as expected", size)
    return digest


class _Partial:
    """A download under way: the bytes so far, in a file of its own, and which version of which file they belong to."""

    def __init__(
        self,
        url: str,
        output: Path,
        headers: Mapping[str, str],
        timeout: float,
        log: logging.Logger,
        room_for: int,
    ):
        self.url, self.output, self.headers, self.timeout, self.log = url, output, headers, timeout, log
        self.room_for = room_for
        self.path = output.with_name(output.name + ".tmp.partial")
        self.about = output.with_name(output.name + ".tmp.partial.json")
        self.size: int | None = None  # as the server states it
        self.version: str | None = None  # its strong ETag, or else its date of last change

    def __enter__(self) -> "_Partial":
        self.file = open(self.path, "ab")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.file.close()
            raise DownloadError(f"{self.path}: another process is fetching this file; wait for it") from error
        try:
            begun = json.loads(self.about.read_text(encoding="utf-8"))
            known = begun["url"] == self.url and begun["version"] is not None
            self.size, self.version = begun["size"], begun["version"]
        except (OSError, ValueError, KeyError, TypeError):
            known = False
        if not known:
            self.start_over()
        elif self.reached:
            self.log.info("going on with %s, %d bytes so far", self.path, self.reached)
        return self

    def __exit__(self, *_) -> None:
        self.file.close()
        if self.path.exists() and not self.path.stat().st_size:
            self.path.unlink()
            self.about.unlink(missing_ok=True)

    @property
    def reached(self) -> int:
        """Return the number of bytes so far."""
        return self.file.seek(0, os.SEEK_END)

    def start_over(self) -> None:
        self.file.truncate(0)
        self.size = self.version = None

    def receive(self) -> None:
        """Fetch what is missing; return when the file is whole.

        Raises:
            _Interrupted: what may pass; the bytes that came are kept.
            DownloadError: what will not.
        """
        start = self.reached
        if start and start == self.size:
            return
        request = urllib.request.Request(
            self.url, headers={"User-Agent": f"plm-depth/{plm_depth.__version__}", "Accept-Encoding": "identity"}
        )
        for name, value in self.headers.items():
            request.add_unredirected_header(name, value)
        if start:
            request.add_header("Range", f"bytes={start}-")
            if self.version is not None:
                request.add_header("If-Range", self.version)
        with self._open(request) as response:
            start = self._agree(response, start)
            progress = Megabytes(self.log, None if self.size is None else self.size - start, "MB")
            while block := self._read(response):
                self.file.write(block)
                progress.add(len(block))
        if self.size is not None and self.reached < self.size:
            raise _Interrupted(f"the connection was cut at {self.reached} of {self.size} bytes")
        if self.size is not None and self.reached > self.size:
            n_bytes = self.reached
            self.start_over()
            raise _Interrupted(f"{n_bytes} bytes came, the server stated fewer")
        progress.finish()

    def _open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        try:
            return urllib.request.urlopen(request, timeout=self.timeout)
        except urllib.error.HTTPError as error:
            error.close()
            text = f"the server says {error.code} {error.reason}"
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                self.start_over()
                raise _Interrupted(f"{text}: it does not have what was begun") from error
            if error.code in TRY_AGAIN:
                asked = error.headers.get("Retry-After", "")
                raise _Interrupted(text, float(asked) if asked.isdecimal() else None) from error
            raise DownloadError(
                f"{self.url}: {text}; expected the file: check the address and who may read it"
            ) from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise DownloadError(
                    f"{self.url}: the server's certificate cannot be trusted ({error.reason})"
                ) from error
            raise _Interrupted(f"no connection ({error.reason})") from error
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(f"no answer ({type(error).__name__}: {error})") from error

    def _agree(self, response: http.client.HTTPResponse, start: int) -> int:
        """Note size and version of what the server sends; return the place of its first byte, where writing goes on."""
        headers = response.headers
        encoding = headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise DownloadError(f"{self.url}: the server sends it as {encoding!r} although asked for the plain file")
        length = headers.get("Content-Length", "")
        if response.status == http.HTTPStatus.PARTIAL_CONTENT:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", "").strip())
            if not found or int(found[1]) != start or (self.size is not None and int(found[2]) != self.size):
                self.start_over()
                raise _Interrupted(
                    f"asked for byte {start} on, offered {headers.get('Content-Range')!r}: starting over"
                )
            self.size = int(found[2])
            self.log.info("going on at byte %d of %d", start, self.size)
        elif response.status == http.HTTPStatus.OK:
            if start:
                self.log.info("the server sends the file from its start: it cannot resume, or the file has changed")
            self.start_over()
            start = 0
            self.size = int(length) if length.isdecimal() else None
            etag = headers.get("ETag", "")
            self.version = etag if etag.startswith('"') else headers.get("Last-Modified")
            if self.size is None:
                self.log.info("the server does not state the size: a cut can only be seen by the SHA-256")
        else:
            raise DownloadError(f"{self.url}: the server says {response.status} {response.reason}, expected the file")
        _check_room(self.path.parent, self.room_for * (self.size or 0) - self.reached, self.url)
        write_text(json.dumps({"url": self.url, "size": self.size, "version": self.version}), self.about)
        return start

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read1(BLOCK)
        except TimeoutError as error:
            raise _Interrupted(f"stalled: nothing came for {self.timeout:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise _Interrupted(f"the connection broke ({type(error).__name__}: {error})") from error

    def finish(self, sha256: str | None) -> str:
        """Check the whole file and give it its name; a wrong one is removed. Return its SHA-256."""
        self.file.flush()
        self.about.unlink(missing_ok=True)
        try:
            digest = _checked(self.path, self.url, sha256, self.log)
        except DownloadError:
            self.path.unlink()
            raise
        os.replace(self.path, self.output)
        return digest
