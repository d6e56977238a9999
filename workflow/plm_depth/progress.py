"""What a long stage says while it works: a log line with share, rate and time left."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterator


def start_log(stage: str) -> logging.Logger:
    """Return the logger of a stage, writing plain lines with the time to stderr (the rule sends them to its log)."""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO,
        format="%(asctime)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        force=True,
    )
    return logging.getLogger(stage)


@contextlib.contextmanager
def stage_log(stage: str, *foreseen: type[Exception]) -> Iterator[logging.Logger]:
    """Yield the logger of a stage; a foreseen error ends the process with one message, the stage's name first."""
    log = start_log(stage)
    try:
        yield log
    except foreseen as error:
        raise SystemExit(f"{stage}: {error}") from error


class Progress:
    """Report how far a stage is, at most once every ``interval`` seconds, and once at the end.

        progress = Progress(log, total=len(batches), unit="batches")
        for batch in batches:
            ...
            progress.advance()
        progress.finish()

    ``total`` may be None (a stream of unknown length): then the rate is given but no time left.
    """

    def __init__(self, log: logging.Logger, total: int | None, unit: str, interval: float = 5.0):
        self.log, self.total, self.unit, self.interval = log, total, unit, interval
        self.done = 0
        self.started = self.last = time.monotonic()

    def advance(self, n: int = 1) -> None:
        self.done += n
        now = time.monotonic()  # never the wall clock: it may jump
        if now - self.last >= self.interval:
            self.last = now
            self.log.info(self.line(now))

    def finish(self) -> None:
        self.log.info(self.line(time.monotonic()))

    def line(self, now: float) -> str:
        elapsed = max(now - self.started, 1e-9)
        rate = self.done / elapsed
        text = f"{self.done}" + (f"/{self.total}" if self.total is not None else "") + f" {self.unit}, {rate:.3g}/s"
        if self.total is not None and 0 < self.done < self.total:
            text += f", about {clock((self.total - self.done) / rate)} left"
        elif self.done == self.total:
            text += f", done in {clock(elapsed)}"
        return text


def clock(seconds: float) -> str:
    """Return seconds as 12s, 3m20s or 2h05m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
