"""Progress of what is measured in bytes."""

import logging

from plm_depth.progress import Progress


class Megabytes(Progress):
    """A ``Progress`` in whole megabytes (10^6 bytes) that is told bytes."""

    def __init__(self, log: logging.Logger, total_bytes: int | None, unit: str = "MB", interval: float = 5.0):
        super().__init__(log, None if total_bytes is None else total_bytes // 10**6, unit, interval)
        self.n_bytes = 0

    def add(self, n_bytes: int) -> None:
        self.n_bytes += n_bytes
        self.advance(self.n_bytes // 10**6 - self.done)
