"""Cut a checkpoint after one of its blocks and write it in the layout that its family publishes.

    python -m plm_depth.models.truncate --card P --blocks K --keep read_out --output DIR [--choice P]

With the table of a layer choice (``metrics.choice``) ``--blocks auto`` is the depth recommended there, and the model
card tells what was measured.

What is written loads wherever the whole checkpoint does. Its last state is h_K of the whole model, and its logits are
the whole model's read-out of h_K (logit lens): both are compared after loading the written files again, and nothing is
kept if they differ. What a library calls the last hidden state is h_K after the final norm, for the families that have
one.

Two things need care. ESM C and ESM3 divide every update by a number that they compute from the count of blocks, so
that a file with fewer blocks would be read with another one: the ratio of the two is multiplied into the last matrix of
each branch. And the contact regression of the ESM families reads the attention maps of all blocks: it is set to zero.

``--keep embedding`` silences the head too (zeros, except for a matrix that is the embedding's as well): the head was
trained on the last layer only, and whoever wants embeddings should not find predictions by accident.
"""

import argparse
import json
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from plm_depth import __version__
from plm_depth.progress import start_log
from plm_depth.tables import CHOICE, TableError, read_metadata, read_table, replacing_folder, write_text

if TYPE_CHECKING:
    from plm_depth.models.base import Adapter

log = logging.getLogger("models.truncate")

KEEP = ("read_out", "embedding")
CARD_NAME = "README.md"
# Relative to the largest number; folding the scale of ESM C and ESM3 into matrices rounds them once more.
TOLERANCE = 1e-5
PROTEINS = ("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ", "GSHMLEDPVRACWNYT")  # every amino acid


def truncated(adapter: "Adapter", n_blocks: int, *, keep: str = "read_out") -> "Adapter":
    """Return a copy of a model that ends after block ``n_blocks``.

    Args:
        adapter: the whole model; left as it is.
        n_blocks: blocks that stay, 1 to the model's.
        keep: "read_out", or "embedding" to set the head to zero; see the module.
    Raises:
        ValueError: a number of blocks that cannot be, or another ``keep``.
    """
    from plm_depth.models import checkpoints

    if not 1 <= n_blocks <= adapter.n_blocks:
        raise ValueError(
            f"--blocks {n_blocks}: expected 1 to {adapter.n_blocks}, the blocks of this model (layer 0 is the embedding"
            " of single tokens: no family's files can hold a model without blocks)"
        )
    if keep not in KEEP:
        raise ValueError(f"--keep {keep}: expected {' or '.join(KEEP)}")
    cut = adapter.shallower(n_blocks)
    # Below, every parameter is filled or named: what a shallower network does not have is a later block's.
    own = cut.module.state_dict()
    tensors = {
        name: tensor
        for name, tensor in adapter.module.state_dict().items()
        if name in own and not any(re.fullmatch(pattern, name) for pattern in adapter.reads_all_blocks)
    }
    checkpoints.fill(cut.module, tensors, Path(adapter.family), optional=adapter.reads_all_blocks)
    if (factor := adapter.update_scale / cut.update_scale) != 1:
        cut.scale_updates(factor)
    if keep == "embedding":
        for parameter in head_parameters(cut):
            parameter.data.zero_()
    cut.module.requires_grad_(False)
    return cut


def head_parameters(adapter: "Adapter") -> list:
    """Return the parameters that only the head has, without those that it shares with the embedding."""
    head = getattr(adapter.module, adapter.head)
    of_head = {id(parameter) for parameter in head.parameters()}
    elsewhere = {
        id(parameter)
        for name, parameter in adapter.module.named_parameters(remove_duplicate=False)
        if not name.startswith(f"{adapter.head}.")
    }
    return [parameter for parameter in head.parameters() if id(parameter) in of_head - elsewhere]


def parameters_by_depth(adapter: "Adapter") -> list[int]:
    """Return the parameters of the model that ends after 0, 1, ... n_blocks blocks; only shapes are made.

    Blocks from the third on are taken to be like the second where that adds up to the whole model, as in all families.
    """
    import torch

    def count(n_blocks: int) -> int:
        with torch.device("meta"):
            return adapter.shallower(n_blocks).n_parameters

    first = [count(n) for n in range(min(2, adapter.n_blocks) + 1)]
    each = first[-1] - first[-2]
    counts = first + [first[-1] + each * n for n in range(1, adapter.n_blocks - 1)]
    if counts[-1] != adapter.n_parameters:
        counts = [count(n) for n in range(adapter.n_blocks + 1)]
    return counts


def differences(whole: "Adapter", cut: "Adapter", proteins: Sequence[str] = PROTEINS) -> dict[str, float]:
    """Return how far the cut model is from the whole one at its last layer, relative to the largest number there.

    Keys: "state" (h_K), "logits" (the read-out of h_K, over the real tokens). Every reading direction counts.
    """
    import torch

    largest = {"state": 0.0, "logits": 0.0}
    columns = torch.tensor(list(whole.vocabulary))
    with torch.inference_mode():
        for direction in whole.directions:
            tokens = [
                whole.encode(
                    protein,
                    masked=None if whole.mask_id is None else np.arange(len(protein)) % 5 == 1,
                    direction=direction,
                )
                for protein in proteins
            ]
            found = []
            for adapter in (whole, cut):
                batch = adapter.collate(tokens, adapter.device)
                stream, context = adapter.embed(batch)
                for block in range(1, cut.n_blocks + 1):
                    stream = adapter.add(stream, adapter.updates(block, stream, context))
                stream = stream[batch.valid]
                found.append({"state": stream, "logits": adapter.read_out(stream)[..., columns]})
            for name in largest:
                expected, got = (one[name].double() for one in found)
                error = float((expected - got).abs().max() / expected.abs().max().clamp(min=1e-30))
                largest[name] = max(largest[name], error)
    return largest


def truncate(
    card: Path | str,
    n_blocks: int,
    output: Path | str,
    *,
    keep: str = "read_out",
    origin: str | None = None,
    licence: str | None = None,
    measured: Iterable[str] = (),
) -> dict[str, object]:
    """Write the checkpoint that ends after block ``n_blocks``, with a model card; whole or not at all.

    Args:
        card: of the whole checkpoint (``models.describe``).
        n_blocks, keep: see ``truncated``.
        output: folder to write.
        origin: where the whole checkpoint is published (repository or archive), for the model card.
        licence: of its weights, for the model card.
        measured: sentences for the model card on what was measured at this layer.
    Returns:
        What the model card says: sizes before and after, differences, files.
    Raises:
        CheckpointError: the card or the checkpoint is not what it should be, or the written model is not the whole
            one's at this layer.
        ValueError: see ``truncated``.
    """
    from plm_depth.models import describe, registry
    from plm_depth.models.base import CheckpointError

    about = describe.read_card(card)
    describe.check_files(about, digests=True)
    # Published layouts are float32; the dtype of a study's forward passes is no part of the file.
    whole = registry.load(about["family"], Path(about["folder"]))
    cut = truncated(whole, n_blocks, keep=keep)
    with replacing_folder(output) as folder:
        registry.save(cut, folder)
        again = registry.load(about["family"], folder)
        found = differences(whole, again)
        checked = found if keep == "read_out" else {"state": found["state"]}
        if (again.n_blocks, again.d_model) != (n_blocks, whole.d_model) or not max(checked.values()) <= TOLERANCE:
            raise CheckpointError(
                f"{output}: the written model has {again.n_blocks} blocks and differs from layer {n_blocks} of "
                f"{about['model_id']} by {checked} (relative), more than {TOLERANCE}; nothing was kept: this family's "
                "layout does not hold this cut"
            )
        report = {
            "model_id": about["model_id"],
            "family": about["family"],
            "keep": keep,
            "n_blocks": n_blocks,
            "n_blocks_before": whole.n_blocks,
            "n_parameters": again.n_parameters,
            "n_parameters_before": whole.n_parameters,
            "differences": checked,
            "silenced": sum(parameter.numel() for parameter in head_parameters(cut)) if keep == "embedding" else 0,
            "has_final_norm": _has_final_norm(whole),
            "origin": origin,
            "licence": licence,
            "revision": about["revision"],
            "files": about["files"],
            "measured": list(measured),
            "reads_all_blocks": list(whole.reads_all_blocks),
            "scale": whole.update_scale / again.update_scale,
        }
        write_text(model_card(report), folder / CARD_NAME)
        for path in folder.rglob("*"):  # some libraries write weights for the user alone, whatever the umask
            if path.is_file():
                path.chmod((folder / CARD_NAME).stat().st_mode)
    log.info(
        "%s: %d of %d blocks, %d of %d parameters; state and logits differ from the whole model's by %s (relative)",
        *(output, n_blocks, whole.n_blocks, again.n_parameters, whole.n_parameters),
        ", ".join(f"{name} {value:.2g}" for name, value in checked.items()),
    )
    return report


def depth_of(blocks: str, choice: Path | None) -> tuple[int, list[str]]:
    """Return how many blocks stay, and sentences on what was measured there.

    Args:
        blocks: a number, or "auto": what the table of the choice recommends.
        choice: CHOICE table, or None.
    Raises:
        ValueError: neither a number nor a table to take it from.
        TableError: not such a table.
    """
    if blocks != "auto" and not blocks.isdecimal():
        raise ValueError(f"--blocks {blocks}: expected a number of blocks, or auto")
    if choice is None:
        if blocks == "auto":
            raise ValueError("--blocks auto: as recommended where? give --choice, or a number of blocks")
        return int(blocks), []
    about, table = read_metadata(choice), read_table(choice, CHOICE)
    n_blocks = int(about["cut_after"]) if blocks == "auto" else int(blocks)
    rows = [row for row in table.to_pylist() if row["is_primary"] and row["side"] == "test"]
    named = {row["layer"]: row for row in rows}
    norm = "after the final norm" if about["norm"] == "final" else "before any norm"
    measured = []
    for layer in dict.fromkeys((n_blocks, rows[0]["n_blocks"])):
        if layer in named:
            row = named[layer]
            measured.append(
                f"Layer {layer}: {row['metric']} {row['value']:.3f} [{row['ci_lo']:.3f}, {row['ci_hi']:.3f}] of a "
                f"{row['probe']} probe on {row['choice']} ({row['kind']}; {row['n_rows']} labels in {row['n_cluster']} "
                f"clusters that it did not see, {about['how']}; states {norm}; 95 % interval)."
            )
    nested = [row for row in table.to_pylist() if row["is_primary"] and row["side"] == "nested_cut"]
    if blocks == "auto" and nested and not math.isnan(nested[0]["value"]):
        row = nested[0]
        measured.append(
            f"Labels at depths that other labels chose: {row['value']:.3f} [{row['ci_lo']:.3f}, {row['ci_hi']:.3f}], "
            f"against the whole model {row['over_last']:+.3f} [{row['over_last_lo']:+.3f}, "
            f"{row['over_last_hi']:+.3f}]: what to expect of a depth chosen so. The scores above are of a layer fixed "
            "beforehand; labels that chose it may be among those that score it."
        )
    return n_blocks, measured


def _has_final_norm(adapter: "Adapter") -> bool:
    import torch

    with torch.inference_mode():
        return adapter.final_norm(torch.ones(1, adapter.d_model, device=adapter.device)) is not None


def model_card(report: Mapping[str, object]) -> str:
    """Return the README of a truncated checkpoint: its source and digests, what was cut, and what equals what."""
    model, n, before = report["model_id"], report["n_blocks"], report["n_blocks_before"]
    share = 1 - report["n_parameters"] / report["n_parameters_before"]
    origin = report["origin"] or "a local folder"
    revision = "" if report["revision"] in ("none", "local") else f", revision {report['revision']}"
    # JSON text is YAML text, whatever stands in it.
    front = ["---"]
    if report["licence"]:
        front.append(f"license: {json.dumps(report['licence'].lower())}")
    if report["origin"]:
        front.append(f"base_model: {json.dumps(report['origin'])}")
    front += ["tags: [protein-language-model, truncated]", "---"]
    equal = [f"* h_{n}, the residual stream after block {n} before any norm ({report['differences']['state']:.1e});"]
    if report["keep"] == "read_out":
        equal.append(f"* the logits: the whole model's read-out of h_{n} ({report['differences']['logits']:.1e}).")
    elif report["silenced"]:
        equal.append("* the head is silenced (zeros): this checkpoint is for embeddings, its logits say nothing.")
    else:
        equal.append(
            "* the head is the embedding matrix and stays; it was trained on the last layer of the whole model, so the "
            "logits of this checkpoint are no predictions to rely on."
        )
    notes = []
    if report["has_final_norm"]:
        notes.append(
            f"What a library returns as the last hidden state is h_{n} after the final norm, the norm that the whole "
            f"model applies after block {before}."
        )
    if report["scale"] != 1:
        notes.append(
            "The family divides every update by a number that it computes from the count of blocks; so that the file "
            f"gives the same updates, the last matrix of every branch was multiplied by {report['scale']:.9g}."
        )
    if report["reads_all_blocks"]:
        notes.append("The contact regression reads the attention maps of all blocks; it is set to zero here.")
    measured = "\n".join(f"{line}\n" for line in report["measured"]) or "Nothing was measured for this card.\n"
    files = "".join(f"| {f['name']} | {f['bytes']} | {f['sha256']} |\n" for f in report["files"])
    licence = report["licence"] or "not stated here"
    dropped = f"Blocks {n + 1} to {before}" if n + 1 < before else f"Block {before}"
    if n == before:
        dropped = "No blocks"
    return f"""{chr(10).join(front)}

# {model}, cut after block {n} of {before}

{dropped} of {model} (family {report["family"]}) were dropped; nothing was trained or tuned. Of
{report["n_parameters_before"]} parameters {report["n_parameters"]} are left ({100 * share:.0f} % fewer), in the
family's own layout. Equal to the whole model, compared after writing (largest difference, relative to the largest
number):

{chr(10).join(equal)}

{chr(10).join(notes)}

## Measured

{measured}
## Source

From {origin}{revision}. The licence of the source holds for this checkpoint too: {licence}.

| file | bytes | SHA-256 |
| --- | --- | --- |
{files}
Written by plm-depth {__version__}.
""".replace("\n\n\n", "\n\n")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m plm_depth.models.truncate", description=__doc__.splitlines()[0])
    parser.add_argument("--card", required=True, type=Path, help="card of the whole checkpoint (models.describe)")
    parser.add_argument("--blocks", required=True, help="blocks that stay; auto: as --choice recommends")
    parser.add_argument("--choice", type=Path, help="table of a layer choice (CHOICE)")
    parser.add_argument("--keep", default="read_out", choices=KEEP, help="whether the head stays (default: it does)")
    parser.add_argument("--origin", help="where the whole checkpoint is published, for the model card")
    parser.add_argument("--licence", help="of its weights, for the model card")
    parser.add_argument("--output", required=True, type=Path, help="folder of the truncated checkpoint")
    options = parser.parse_args(argv)
    start_log(log.name)

    from plm_depth.models.base import CheckpointError

    try:
        n_blocks, measured = depth_of(options.blocks, options.choice)
        truncate(
            options.card,
            n_blocks,
            options.output,
            measured=measured,
            keep=options.keep,
            origin=options.origin,
            licence=options.licence,
        )
    except (CheckpointError, TableError, ValueError, OSError) as error:
        raise SystemExit(f"truncating failed: {error}") from None


if __name__ == "__main__":
    main()
