"""Downloads: whole or not at all, checked, resumed, retried, against a server of our own that misbehaves on request."""

import fcntl
import hashlib
import http.server
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from plm_depth.download import DownloadError, back_off, download
from plm_depth.sequences import SourceError
from plm_depth.sequences.download import download as download_source
from plm_depth.sequences.download import main

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Serves CONTENT on 127.0.0.1; ``plan`` says how to answer the next requests, in order, and then it behaves.

    An answer of the plan is a number of bytes after which the connection is cut, or a function of the handler.
    """

    def __init__(self):
        self.plan: list[int | Callable] = []
        self.seen: list[dict] = []
        self.content, self.etag, self.modified, self.ranges = CONTENT, '"one"', None, True
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.seen.append(dict(self.headers))
                answer = outer.plan.pop(0) if outer.plan else None
                if callable(answer):
                    answer(self)
                else:
                    outer.serve(self, answer)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/data.fasta.gz"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def serve(self, handler, cut: int | None) -> None:
        start = 0
        asked = handler.headers.get("Range")
        mark = self.etag or self.modified
        if asked and self.ranges and handler.headers.get("If-Range", mark) == mark:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(self.content):
                handler.send_error(416)
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        else:
            handler.send_response(200)
        if self.etag:
            handler.send_header("ETag", self.etag)
        if self.modified:
            handler.send_header("Last-Modified", self.modified)
        body = self.content[start:]
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body if cut is None else body[:cut])

    def ranges_asked(self) -> list[str | None]:
        return [headers.get("Range") for headers in self.seen]


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def waits() -> list[float]:
    return []


def fetch(server: Server, output: Path, waits: list[float], **options) -> str:
    return download(server.url, output, sleep=waits.append, **({"timeout": 5.0} | options))


def refuse(code: int, **headers: str) -> Callable:
    def answer(handler):
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def stall_after(n: int, release: threading.Event) -> Callable:
    def answer(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        handler.wfile.write(CONTENT[:n])
        handler.wfile.flush()
        release.wait(10)

    return answer


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_good_file_arrives_whole_and_alone(server, tmp_path, waits):
    output = tmp_path / "new" / "file.gz"
    assert fetch(server, output, waits, sha256=SHA256.upper()) == SHA256
    assert output.read_bytes() == CONTENT
    assert names(output.parent) == ["file.gz"]
    assert waits == []
    assert server.seen[0]["User-Agent"].startswith("plm-depth/")


def test_without_a_digest_the_digest_is_logged(server, tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert download(server.url, tmp_path / "file") == SHA256
    assert f"300000 bytes, SHA-256 {SHA256} (none was given to check)" in caplog.text


def test_a_wrong_digest_is_an_error_and_leaves_nothing(server, tmp_path, waits):
    with pytest.raises(DownloadError, match=f"its SHA-256 is {SHA256}, expected {'0' * 64}"):
        fetch(server, tmp_path / "file", waits, sha256="0" * 64)
    assert names(tmp_path) == []


def test_a_failure_leaves_the_old_file_as_it_was(server, tmp_path, waits):
    output = tmp_path / "file"
    output.write_bytes(b"old")
    with pytest.raises(DownloadError):
        fetch(server, output, waits, sha256="0" * 64)
    assert output.read_bytes() == b"old"


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 501])
def test_a_refusal_is_final(server, tmp_path, waits, code):
    server.plan = [refuse(code)]
    with pytest.raises(DownloadError, match=rf"{server.url}: the server says {code} .*check the address"):
        fetch(server, tmp_path / "file", waits)
    assert waits == []
    assert names(tmp_path) == []


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(server, tmp_path, waits, code):
    server.plan = [refuse(code), refuse(code)]
    assert fetch(server, tmp_path / "file", waits) == SHA256
    assert waits == [1.0, 2.0]


def test_the_server_may_ask_for_a_longer_pause_within_reason(server, tmp_path, waits):
    server.plan = [refuse(503, Retry_After="17"), refuse(503, Retry_After="99999"), refuse(503, Retry_After="soon")]
    fetch(server, tmp_path / "file", waits)
    assert waits == [17.0, 300.0, 4.0]


def test_a_cut_connection_is_resumed_where_it_broke(server, tmp_path, waits):
    server.plan = [100_000, 50_000]
    assert fetch(server, tmp_path / "file", waits, sha256=SHA256) == SHA256
    assert server.ranges_asked() == [None, "bytes=100000-", "bytes=150000-"]
    assert [headers.get("If-Range") for headers in server.seen] == [None, '"one"', '"one"']
    assert names(tmp_path) == ["file"]


def test_a_connection_cut_without_a_stated_version_is_resumed_within_the_run(server, tmp_path, waits):
    server.etag = None
    server.plan = [100_000]
    assert fetch(server, tmp_path / "file", waits) == SHA256
    assert server.ranges_asked() == [None, "bytes=100000-"]


def test_failures_count_anew_when_something_arrived(server, tmp_path, waits):
    server.plan = [1000] * 20
    assert fetch(server, tmp_path / "file", waits, attempts=2) == SHA256
    assert waits == [1.0] * 20


def test_a_connection_that_always_breaks_at_once_ends_in_an_error_and_keeps_what_came(server, tmp_path, waits):
    server.plan = [1000] + [0] * 50
    with pytest.raises(
        DownloadError, match=r"cut at 1000 of 300000 bytes; 4 attempts in a row .*\(1000 bytes so far\)"
    ):
        fetch(server, tmp_path / "file", waits, attempts=4)
    assert waits == [1.0, 1.0, 2.0, 4.0]
    assert not (tmp_path / "file").exists()


def test_a_server_that_starts_over_each_time_and_never_gets_further_is_given_up(server, tmp_path, waits):
    server.ranges = False
    server.plan = [1000] * 50
    with pytest.raises(DownloadError, match="3 attempts in a row brought nothing new"):
        fetch(server, tmp_path / "file", waits, attempts=3)


def test_a_server_that_starts_over_and_gets_less_far_now_and_then_is_given_up_too(server, tmp_path, waits):
    server.ranges = False
    server.plan = [1000, 500] * 50
    with pytest.raises(DownloadError, match="3 attempts in a row brought nothing new"):
        fetch(server, tmp_path / "file", waits, attempts=3)


def test_a_weak_etag_is_no_mark_of_a_version(server, tmp_path, waits):
    server.etag = 'W/"one"'
    given_up(server, tmp_path, waits)
    assert fetch(server, tmp_path / "file", waits) == SHA256
    assert server.ranges_asked() == [None]


def test_a_later_run_goes_on_where_an_earlier_one_was_given_up(server, tmp_path, waits):
    server.plan = [200_000, 0]
    with pytest.raises(DownloadError):
        fetch(server, tmp_path / "file", waits, attempts=1)
    assert (tmp_path / "file.tmp.partial").stat().st_size == 200_000
    server.plan, server.seen = [], []
    assert fetch(server, tmp_path / "file", waits) == SHA256
    assert server.ranges_asked() == ["bytes=200000-"]
    assert names(tmp_path) == ["file"]


def given_up(server: Server, folder: Path, waits: list[float]) -> None:
    server.plan = [200_000, 0]
    with pytest.raises(DownloadError):
        fetch(server, folder / "file", waits, attempts=1)
    server.plan, server.seen = [], []


def test_a_file_that_changed_in_between_is_fetched_from_its_start(server, tmp_path, waits):
    given_up(server, tmp_path, waits)
    server.content, server.etag = CONTENT[::-1], '"two"'
    assert fetch(server, tmp_path / "file", waits) == hashlib.sha256(CONTENT[::-1]).hexdigest()


def test_a_file_that_changed_its_size_under_the_same_name_is_fetched_from_its_start(server, tmp_path, waits):
    given_up(server, tmp_path, waits)
    server.content = CONTENT[::-1] + b"more"
    assert fetch(server, tmp_path / "file", waits) == hashlib.sha256(CONTENT[::-1] + b"more").hexdigest()


def test_a_file_that_became_shorter_than_what_came_is_fetched_from_its_start(server, tmp_path, waits):
    given_up(server, tmp_path, waits)
    server.content = CONTENT[:1000]
    assert fetch(server, tmp_path / "file", waits) == hashlib.sha256(CONTENT[:1000]).hexdigest()


def test_the_date_of_change_marks_a_version_where_there_is_no_strong_etag(server, tmp_path, waits):
    server.etag, server.modified = None, "Wed, 25 Nov 2026 10:00:00 GMT"
    given_up(server, tmp_path, waits)
    assert fetch(server, tmp_path / "file", waits) == SHA256
    assert server.seen[0]["If-Range"] == server.modified


@pytest.mark.parametrize("about", [None, "{", "[]", '{"url": "http://other/", "size": 300000, "version": "\\"one\\""}'])
def test_a_partial_file_of_unknown_origin_is_not_used(server, tmp_path, waits, about):
    (tmp_path / "file.tmp.partial").write_bytes(b"foreign")
    if about is not None:
        (tmp_path / "file.tmp.partial.json").write_text(about)
    assert fetch(server, tmp_path / "file", waits) == SHA256
    assert server.ranges_asked() == [None]
    assert names(tmp_path) == ["file"]


def test_a_partial_file_of_a_server_without_versions_is_not_used_by_a_later_run(server, tmp_path, waits):
    server.etag = None
    given_up(server, tmp_path, waits)
    assert fetch(server, tmp_path / "file", waits) == SHA256
    assert server.ranges_asked() == [None]


def test_a_damaged_partial_file_is_found_by_the_digest_and_the_next_run_is_clean(server, tmp_path, waits):
    given_up(server, tmp_path, waits)
    with open(tmp_path / "file.tmp.partial", "r+b") as file:
        file.write(b"damage")
    with pytest.raises(DownloadError, match="wrong file"):
        fetch(server, tmp_path / "file", waits, sha256=SHA256)
    assert fetch(server, tmp_path / "file", waits, sha256=SHA256) == SHA256


def test_two_processes_do_not_write_the_same_file(server, tmp_path, waits):
    with open(tmp_path / "file.tmp.partial", "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="another process is fetching this file"):
            fetch(server, tmp_path / "file", waits)
    assert fetch(server, tmp_path / "file", waits) == SHA256


def test_a_stalled_connection_times_out_and_is_taken_up_again(server, tmp_path, waits, caplog):
    release = threading.Event()
    server.plan = [stall_after(1000, release)]
    started = time.monotonic()
    with caplog.at_level("INFO"):
        assert fetch(server, tmp_path / "file", waits, timeout=1) == SHA256
    release.set()
    assert time.monotonic() - started < 9
    assert "stalled: nothing came for 1 s; 1000 bytes so far" in caplog.text
    assert server.ranges_asked() == [None, "bytes=1000-"]


def test_a_server_that_does_not_answer_times_out(server, tmp_path, waits):
    release = threading.Event()
    server.plan = [lambda handler: release.wait(10)] * 2
    with pytest.raises(DownloadError, match=r"no answer .*2 attempts in a row"):
        fetch(server, tmp_path / "file", waits, timeout=0.2, attempts=2)
    release.set()


def test_nobody_there_is_an_error_after_all_attempts(server, tmp_path, waits):
    server.http.server_close()
    with pytest.raises(DownloadError, match=r"no connection .*3 attempts in a row brought nothing new"):
        fetch(server, tmp_path / "file", waits, attempts=3)
    assert waits == [1.0, 2.0]
    assert names(tmp_path) == []


def test_a_wrong_offer_of_bytes_is_not_taken(server, tmp_path, waits, caplog):
    def from_elsewhere(handler):
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 7-{len(CONTENT) - 1}/{len(CONTENT)}")
        handler.send_header("Content-Length", str(len(CONTENT) - 7))
        handler.end_headers()
        handler.wfile.write(CONTENT[7:])

    server.plan = [1000, from_elsewhere]
    with caplog.at_level("INFO"):
        assert fetch(server, tmp_path / "file", waits, sha256=SHA256) == SHA256
    assert "asked for byte 1000 on, offered 'bytes 7-299999/300000': starting over; 0 bytes so far" in caplog.text
    assert server.ranges_asked() == [None, "bytes=1000-", None]


def test_an_encoded_answer_is_refused(server, tmp_path, waits):
    server.plan = [refuse(200, Content_Encoding="gzip")]
    with pytest.raises(DownloadError, match="sends it as 'gzip' although asked for the plain file"):
        fetch(server, tmp_path / "file", waits)


def test_an_answer_that_is_no_file_is_refused(server, tmp_path, waits):
    server.plan = [refuse(204)]
    with pytest.raises(DownloadError, match="the server says 204"):
        fetch(server, tmp_path / "file", waits)


def test_a_redirect_is_followed(server, tmp_path, waits):
    server.plan = [refuse(302, Location="/elsewhere")]
    assert fetch(server, tmp_path / "file", waits) == SHA256


def test_a_login_is_told_to_the_server_asked_and_to_no_other(server, tmp_path, waits):
    server.plan = [refuse(302, Location="/elsewhere")]
    fetch(server, tmp_path / "file", waits, headers={"Authorization": "Bearer secret"})
    assert [headers.get("Authorization") for headers in server.seen] == ["Bearer secret", None]


def test_a_file_of_unstated_size_is_taken_and_said(server, tmp_path, waits, caplog):
    def unstated(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(CONTENT)

    server.plan = [unstated]
    with caplog.at_level("INFO"):
        assert fetch(server, tmp_path / "file", waits, sha256=SHA256) == SHA256
    assert "does not state the size" in caplog.text


def test_too_little_room_is_an_error_before_the_bytes_come(server, tmp_path, waits, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("plm_depth.download.shutil.disk_usage", lambda path: usage)
    with pytest.raises(DownloadError, match="1000 bytes free, 300000 more needed"):
        fetch(server, tmp_path / "file", waits)
    assert names(tmp_path) == []


@pytest.mark.parametrize("form", ["path", "file", "localhost"])
def test_paths_and_file_addresses_are_copied_and_checked(tmp_path, form):
    source = tmp_path / "some source%20.fasta"
    source.write_bytes(CONTENT)
    url = {"path": str(source), "file": source.as_uri(), "localhost": source.as_uri().replace("//", "//localhost", 1)}
    assert download(url[form], tmp_path / "out" / "file", sha256=SHA256) == SHA256
    assert (tmp_path / "out" / "file").read_bytes() == CONTENT
    with pytest.raises(DownloadError, match="wrong file: its SHA-256"):
        download(url[form], tmp_path / "other" / "file", sha256="1" * 64)
    assert names(tmp_path / "other") == []


def test_a_missing_path_is_an_error_that_names_it(tmp_path):
    with pytest.raises(DownloadError, match=r"nothing\.fasta: cannot be read as a file"):
        download((tmp_path / "nothing.fasta").as_uri(), tmp_path / "file")
    with pytest.raises(DownloadError, match="cannot be read as a file"):
        download(str(tmp_path), tmp_path / "file")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("url", "options", "text"),
    [
        ("ftp://127.0.0.1/x", {}, "not ftp://"),
        ("file://elsewhere/x", {}, "a file address with a host"),
        ("x", {"sha256": "abc"}, "expected 64 hexadecimal digits"),
        ("x", {"sha256": "z" * 64}, "expected 64 hexadecimal digits"),
        ("x", {"attempts": 0}, "--attempts 0"),
        ("x", {"timeout": 0.0}, r"--timeout 0\.0"),
    ],
)
def test_bad_options_are_errors(tmp_path, url, options, text):
    with pytest.raises(DownloadError, match=text):
        download(url, tmp_path / "file", **options)


def test_pauses_double_up_to_a_minute():
    assert [back_off(n) for n in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_the_stage_fetches_and_a_failure_ends_in_one_line(server, tmp_path):
    main(f"--url {server.url} --sha256 {SHA256} --output {tmp_path / 'file'}".split())
    assert (tmp_path / "file").read_bytes() == CONTENT
    main(f"--url {server.url} --sha256 none --output {tmp_path / 'file'}".split())
    server.plan = [refuse(404)]
    with pytest.raises(SystemExit) as caught:
        main(f"--url {server.url} --output {tmp_path / 'other'}".split())
    assert caught.value.code.startswith(f"download: {server.url}: the server says 404")
    assert "\n" not in caught.value.code
    assert names(tmp_path) == ["file"]


def test_what_is_noted_about_a_partial_file_is_enough_to_go_on(server, tmp_path, waits):
    given_up(server, tmp_path, waits)
    noted = json.loads((tmp_path / "file.tmp.partial.json").read_text())
    assert noted == {"url": server.url, "size": 300_000, "version": '"one"'}


def test_the_room_of_sequences_says_it_in_its_own_words(server, tmp_path):
    assert download_source(server.url, tmp_path / "file", sha256=SHA256) == SHA256
    server.plan = [refuse(404)]
    with pytest.raises(SourceError, match="the server says 404"):
        download_source(server.url, tmp_path / "other")
