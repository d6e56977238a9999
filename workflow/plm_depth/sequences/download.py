"""Fetch one source of sequences, by plm_depth.download.

python -m plm_depth.sequences.download --url U [--sha256 S|none] --output F
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from plm_depth import download as shared
from plm_depth.download import ATTEMPTS, TIMEOUT, DownloadError
from plm_depth.progress import stage_log
from plm_depth.sequences import SourceError


def download(url: str, output: str | Path, **options: object) -> str:
    """Fetch ``url`` to ``output``; return its SHA-256. Options as of ``plm_depth.download.download``.

    Raises:
        SourceError: the file cannot be had; see there.
    """
    try:
        return shared.download(url, output, **options)
    except DownloadError as error:
        raise SourceError(str(error)) from error


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m plm_depth.sequences.download", description=__doc__.split("\n")[0])
    parser.add_argument("--url", required=True, help="https://, http://, file:// or a path")
    parser.add_argument("--sha256", help="expected digest, 64 hexadecimal digits; none: not checked")
    parser.add_argument("--output", required=True, help="where the file goes")
    parser.add_argument("--attempts", type=int, default=ATTEMPTS, help="tries in a row that bring nothing new")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds without a byte that count as a stall")
    options = vars(parser.parse_args(argv))
    if options["sha256"] == "none":
        options["sha256"] = None
    with stage_log("download", SourceError, OSError) as log:
        download(**options, log=log)


if __name__ == "__main__":
    main()
