"""Which layer of one model serves one table of labels, without Snakemake: the stages of rules/choice.smk, one by one.

    python -m plm_depth choose --model DIR --family esm2 --table my.csv --label score --output DIR

In the output folder: ``recommendation.html`` and ``.md``, ``scores.svg``, ``.csv`` and ``.html``, ``choice.parquet``
with the score of every layer, and with ``--truncate auto`` (or a number of blocks) the checkpoint that ends there. The
numbers are those of the workflow with the same settings, because the same stages make them; what the workflow adds is
that nothing is made twice.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from plm_depth.config import CHOICE_DEFAULTS
from plm_depth.sequences import labels

KEPT = 64  # residues of a protein whose states are kept, for labels of residues


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command; see ``sequences.labels`` for those of the table."""
    parser.add_argument("--model", required=True, type=Path, help="folder of the checkpoint")
    parser.add_argument("--family", required=True, help="a family of plm_depth.models.registry")
    parser.add_argument("--output", required=True, type=Path, help="folder of the results")
    labels.add_options(parser)
    parser.add_argument("--name", default="choice", help="of the question (default: %(default)s)")
    parser.add_argument("--identity", type=float, default=0.3, help="from which proteins are relatives (%(default)s)")
    parser.add_argument("--coverage", type=float, default=0.5, help="of the shorter one (default: %(default)s)")
    parser.add_argument("--tool", default="auto", choices=("auto", "builtin", "mmseqs"), help="that finds them (auto)")
    parser.add_argument("--folds", type=int, default=5, help="of whole clusters (default: %(default)s)")
    parser.add_argument("--tolerance", type=float, default=0.02, help="share of the best score (default: %(default)s)")
    parser.add_argument("--direction", default="n2c", choices=("n2c", "c2n", "both"), help="of autoregressive models")
    probes, defaults = CHOICE_DEFAULTS["probes"], CHOICE_DEFAULTS
    parser.add_argument("--probes", nargs="+", default=probes, choices=probes, help="the first decides (default: both)")
    parser.add_argument("--neighbours", type=int, default=defaults["neighbours"], help="of knn (%(default)s)")
    parser.add_argument(
        "--capacity", type=int, default=defaults["capacity"], help="of linear: components (%(default)s)"
    )
    parser.add_argument("--norm", default="final", choices=("final", "none"), help="of the states (%(default)s)")
    parser.add_argument("--residues", type=int, default=KEPT, help="of a protein, for labels of residues (%(default)s)")
    parser.add_argument("--resamples", type=int, default=2000, help="of clusters (default: %(default)s)")
    parser.add_argument("--truncate", default="none", help="none, auto, or how many blocks stay (default: none)")
    parser.add_argument("--keep", default="read_out", choices=("read_out", "embedding"), help="of a truncated model")
    parser.add_argument("--dtype", default="float32", help="of the weights in the passes (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--token-budget", type=int, default=4096, help="tokens of a batch (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of folds, residues and resamples (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Make everything and return 0.

    Raises:
        SystemExit: a stage ended with its message; what earlier stages wrote stays.
    """
    from plm_depth.activations import embed, savings
    from plm_depth.figures import choice as picture
    from plm_depth.metrics import choice
    from plm_depth.models import describe, registry, truncate
    from plm_depth.sequences import cluster
    from plm_depth.tables import TableError, read_metadata, write_text

    if options.truncate not in ("none", "auto") and not options.truncate.isdecimal():
        raise SystemExit(f"--truncate {options.truncate}: expected none, auto, or how many blocks stay")
    folder, model = options.output, options.model.resolve().name

    def at(name: str) -> str:
        return str(folder / name)

    def stage(main: Callable[[Sequence[str]], None], *words: object) -> None:
        main([str(word) for word in words])

    # The cheap stages first: a table that cannot be used is refused before a model is loaded.
    given = {key: getattr(options, key.replace("-", "_")) for key in _TABLE}
    words = [f"--{key}={value}" for key, value in given.items() if value not in (None, "")]
    where = ("--sequences", at("sequences.parquet"), "--labels", at("labels.parquet"))
    stage(labels.main, *words, "--label", *options.label, *where)
    grouped = []
    if not options.cluster:
        where = ("--sample", at("sequences.parquet"), "--output", at("clusters.parquet"))
        stage(
            cluster.main, *where, "--identity", options.identity, "--coverage", options.coverage, "--tool", options.tool
        )
        grouped = ["--clusters", at("clusters.parquet")]
    keys = ("folds", "probes", "neighbours", "tolerance", "capacity", "direction")
    settings = {key: getattr(options, key) for key in keys}
    try:
        task = choice.read_task(at("labels.parquet"))
        choice.parted(
            task, grouped[1] if grouped else None, choice.Settings.of(json.dumps(settings)), seed=options.seed
        )
    except (choice.ChoiceError, TableError) as error:
        raise SystemExit(f"choice: {error}") from error
    stage(
        *(describe.main, "--model", model, "--family", options.family, "--folder", options.model),
        *("--dtype", options.dtype, "--output", at("card.json")),
    )
    kind = read_metadata(at("labels.parquet"))["kind"]
    residues = options.residues if kind.startswith("residue-") else "none"
    stage(
        *(embed.main, "--card", at("card.json"), "--sequences", at("sequences.parquet"), "--residues", residues),
        *("--norm", options.norm, "--seed", options.seed, "--token-budget", options.token_budget),
        *("--device", options.device, "--output", at("stream.parquet")),
    )
    stage(
        *(choice.main, "--labels", at("labels.parquet"), "--stream", at("stream.parquet"), *grouped),
        *("--name", options.name, "--settings", json.dumps(settings), "--resamples", options.resamples),
        *("--seed", options.seed, "--output", at("choice.parquet")),
    )
    stage(savings.main, "--card", at("card.json"), "--output", at("savings.parquet"))
    cut = []
    if options.truncate != "none":
        stage(
            *(truncate.main, "--card", at("card.json"), "--choice", at("choice.parquet"), "--keep", options.keep),
            *("--blocks", options.truncate, "--output", at(f"truncated/{model}")),
        )
        cut = ["--blocks", options.truncate, "--truncated", at("truncated")]
    entry = registry.FAMILIES[options.family]
    listed = {"model": model, "display_name": model, "family": options.family, "family_name": entry.name}
    write_text(json.dumps([{**listed, "objective": entry.objective}]) + "\n", at("models.json"))
    stage(
        *(picture.main, "--choices", at("choice.parquet"), "--savings", at("savings.parquet")),
        *("--models", at("models.json"), *cut, "--svg", at("scores.svg"), "--csv", at("scores.csv")),
        *("--html", at("scores.html"), "--page", at("recommendation.html"), "--markdown", at("recommendation.md")),
    )
    return 0


_TABLE = (  # options that the first stage takes as they are
    *("table", "sequence", "mutant", "wild-type", "kind", "identifier", "split", "cluster"),
    *("max-length", "too-long", "unknown"),
)
