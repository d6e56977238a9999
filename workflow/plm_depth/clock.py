"""Files from the future: written while a clock ran ahead that has been set right since.

Snakemake takes an output that is older than its input for a mistake and removes it after the job: hours of work are
lost, run after run, until the clock has caught up. So a run first sets such times to the present.
"""

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

SLACK_S = 60.0  # by which clocks of a file server and its clients may disagree


def ahead(paths: Iterable[str | Path], *, now: float | None = None) -> list[Path]:
    """Return the files and folders at and below ``paths`` whose time of change lies in the future.

    Args:
        paths: those that do not exist count for nothing; links are not followed.
        now: seconds since the epoch; the present by default.
    """
    limit = (time.time() if now is None else now) + SLACK_S
    return [path for path, changed in _times(paths) if changed > limit]


def settle(paths: Iterable[str | Path], *, now: float | None = None) -> list[Path]:
    """Set the times of what ``ahead`` returns to the present, and return those for which this was possible."""
    now = time.time() if now is None else now
    settled = []
    for path in ahead(paths, now=now):
        try:
            os.utime(path, (now, now), follow_symlinks=False)
        except OSError:  # of another owner, or on a file system that cannot be written: as it was
            continue
        settled.append(path)
    return settled


def _times(paths: Iterable[str | Path]) -> Iterator[tuple[Path, float]]:
    for path in map(Path, paths):
        try:
            yield path, path.stat(follow_symlinks=False).st_mtime
            entries = list(os.scandir(path)) if path.is_dir() and not path.is_symlink() else []
        except OSError:  # not there, or gone meanwhile
            continue
        yield from _times(entry.path for entry in entries)
