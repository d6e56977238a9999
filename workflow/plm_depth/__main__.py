"""Commands for people: ``python -m plm_depth COMMAND``. Stages have their own doors; see docs/architecture.md."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from plm_depth import __version__, choose, digest, published


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; importing it loads no model library."""
    top = argparse.ArgumentParser(prog="python -m plm_depth", description="How protein language models use depth.")
    top.add_argument("--version", action="version", version=f"plm-depth {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    verify = commands.add_parser(
        "verify",
        help="compare a checkpoint with expected numbers",
        description="Load a checkpoint, run the cases of a folder of expected numbers (expected.json beside "
        "expected.safetensors), and print the largest difference of every tensor beside its tolerance. Exit status: 0 "
        "all within tolerance, 1 something beyond it, 2 unusable input.",
    )
    verify.add_argument("family", metavar="FAMILY", help="a family of plm_depth.models.registry")
    verify.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="folder of the checkpoint")
    verify.add_argument("expected", metavar="EXPECTED", type=Path, help="folder of the expected numbers")
    verify.add_argument("--layout", help="on-disk layout of the checkpoint, if the folder holds several")
    verify.add_argument("--device", default="cpu", help="where to run (default: %(default)s)")

    published.add_options(
        commands.add_parser(
            "models",
            help="print the sheet of published models",
            description="Print one line a published model: objective, what it reads, layout, sizes, memory, licence, "
            "and what pins its weights.",
        )
    )

    digest_parser = commands.add_parser(
        "digest",
        help="print digests of what tables hold, to compare two runs",
        description="Print one line a Parquet table: digest of its rows, whatever their order and shards, rows, name.",
    )
    digest.add_options(digest_parser)

    choose_parser = commands.add_parser(
        "choose",
        help="which layer of a model serves a table of labels",
        description="Fit a probe on every layer, recommend the shallowest that is as good as the best, say how far to "
        "trust that, and on request write the checkpoint that ends there.",
    )
    choose.add_options(choose_parser)

    commands.add_parser(
        "resume",
        add_help=False,
        help="go on after a run was lost: cancel what is left of it on a cluster, unlock, start again",
    )
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["resume"]:  # passes options of Snakemake on, which are not known here
        from plm_depth import resume

        return resume.main(arguments[1:])
    options = parser().parse_args(arguments)
    if options.command == "choose":
        return choose.run(options)
    if options.command == "models":
        return published.run(options.sheet)
    if options.command == "digest":
        return digest.run(options.paths, keys=options.keys)
    from plm_depth.models.verify import run

    return run(options.family, options.checkpoint, options.expected, layout=options.layout, device=options.device)


if __name__ == "__main__":
    sys.exit(main())
