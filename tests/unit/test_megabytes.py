"""Progress in bytes."""

import logging

from plm_depth.megabytes import Megabytes


def test_bytes_are_reported_in_whole_megabytes():
    progress = Megabytes(logging.getLogger("x"), 10_500_000)
    for _ in range(5):
        progress.add(1_300_000)
    assert progress.line(progress.started + 2).startswith("6/10 MB, 3/s, about 1s left")


def test_small_steps_are_not_lost():
    progress = Megabytes(logging.getLogger("x"), None, unit="MB of files")
    for _ in range(3000):
        progress.add(999)
    assert progress.line(progress.started + 1) == "2 MB of files, 2/s"
