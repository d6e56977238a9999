"""Compare a checkpoint, as its adapter loads and walks it, with numbers that the family's own code computed.

A folder of expected numbers holds ``expected.json`` (family, and per case its inputs and the tolerance of every tensor)
and ``expected.safetensors`` (tensors named ``<case>/<tensor>``). Tolerances are absolute, on float32. A case without
logits is of a network beside the model: ESM3's structure encoder, which is compared where the checkpoint brings it.
"""

import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plm_depth.models import checkpoints, registry
from plm_depth.models.base import Adapter, Batch, CheckpointError, SequenceError, Tokens
from plm_depth.models.esm3_structure import StructureEncoder

STRUCTURE_ENCODER = {"pre_quantisation"}  # the tensors of a case of ESM3's structure encoder
# Tensors of a case that are compared and have block (and batch) as leading axes.
PER_LAYER = ("x", "attn", "mlp", "geom")


class ExpectedError(ValueError):
    """A folder of expected numbers that cannot be used."""


@dataclass(frozen=True)
class Difference:
    """The largest absolute difference of one tensor of one case, and what is allowed."""

    case: str
    tensor: str
    largest: float
    tolerance: float

    @property
    def within(self) -> bool:
        """Whether the difference is a number at most as large as the tolerance (NaN is not)."""
        return self.largest <= self.tolerance


def read_expected(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    """Return the description and the tensors of a folder of expected numbers.

    Raises:
        ExpectedError: a file is missing or unreadable, or lacks cases or tolerances.
    """
    try:
        about = checkpoints.read_json(folder / "expected.json")
        tensors = checkpoints.read_safetensors(folder / "expected.safetensors")
    except CheckpointError as error:
        raise ExpectedError(str(error)) from error
    cases = about.get("cases")
    if not isinstance(cases, dict) or not cases:
        raise ExpectedError(f"{folder / 'expected.json'}: no 'cases'; is this a folder of expected numbers?")
    for name, case in cases.items():
        for tensor in case.get("tolerance") or [None]:
            if f"{name}/{tensor}" not in tensors:
                raise ExpectedError(
                    f"{folder}: case {name!r} has no tensor {tensor!r} with a tolerance in both expected.json and "
                    "expected.safetensors"
                )
    return about, tensors


@torch.inference_mode()
def walk(adapter: Adapter, batch: Batch) -> dict[str, Tensor]:
    """Return what stepping through the blocks gives, under the names of the expected tensors.

    x (n_blocks + 1, rows, tokens, d_model); attn and mlp (n_blocks, ...); geom likewise, for the blocks that have such
    a branch; final_norm, logits, logits of further heads and log_likelihood, where the family has them; and read_out
    and library, the logits that the rest of the package reads and those of the library's own forward pass.
    """
    with adapter.precision():
        stream, context = adapter.embed(batch)
        states, attention, mlp, geometric = [stream], [], [], []
        for block in range(1, adapter.n_blocks + 1):
            updates = adapter.updates(block, stream, context)
            stream = adapter.add(stream, updates)
            states.append(stream)
            attention.append(updates.attention)
            mlp.append(updates.mlp)
            if updates.geometric is not None:
                geometric.append(updates.geometric)
        logits = adapter.read_out(stream)
        library = adapter.library_logits(batch)
        found = {
            "x": torch.stack(states),
            "attn": torch.stack(attention),
            "mlp": torch.stack(mlp),
            "geom": torch.stack(geometric) if geometric else None,
            "final_norm": adapter.final_norm(stream),
            "read_out": logits,
            "logits": adapter.native_logits(stream),
            "log_likelihood": adapter.log_likelihood(logits, batch),
            "library": library,
            **{f"logits_{track}": values for track, values in adapter.other_logits(stream).items()},
        }
    return {name: value for name, value in found.items() if value is not None}


def compare(adapter: Adapter, about: Mapping, tensors: Mapping[str, Tensor]) -> Iterator[Difference]:
    """Yield the difference of every tensor of every case, of tokens, and of stepping from the library's logits.

    Cases that ``unchecked`` names are left out.

    Raises:
        ExpectedError: a tensor that this comparison does not know, or of another shape than the model gives.
    """
    tokens = dict(tokens_of_cases(adapter, about))
    left_out = unchecked(adapter, about)
    for name, case in about["cases"].items():
        if name in left_out:
            continue
        given = {key.split("/", 1)[1]: value for key, value in tensors.items() if key.startswith(f"{name}/")}
        if "logits" not in case["tolerance"]:
            yield from _compare_encoder(encoder_of(adapter), name, case, given)
            continue
        try:
            keep = given["valid"].bool()
            batch = adapter.batch_of({key: value.to(adapter.device) for key, value in given.items()})
        except KeyError as error:
            raise ExpectedError(f"case {name!r}: no tensor {error}, which {adapter.family} takes as input") from error
        if name in tokens:
            wrong = sum(
                not np.array_equal(mine.ids, ids[valid].cpu().numpy())
                for mine, ids, valid in zip(tokens[name], batch.ids, batch.valid, strict=True)
            )
            yield Difference(name, "rows of other tokens", float(wrong), 0.0)
        found = walk(adapter, batch)
        found = {key: value.float().cpu() for key, value in found.items()}
        library = (found.pop("library") - found.pop("read_out"))[keep].abs().max()
        yield Difference(name, "stepping vs library", float(library), case["tolerance"]["logits"])
        for tensor, tolerance in case["tolerance"].items():
            expected = given[tensor].float()
            value = _chosen(tensor, found, given)
            if value.shape != expected.shape:
                raise ExpectedError(
                    f"case {name!r}: {tensor} has shape {tuple(expected.shape)}, the model gives {tuple(value.shape)}"
                )
            if tensor in PER_LAYER:
                value, expected = value[:, keep], expected[:, keep]
            elif value.shape[:2] == keep.shape:
                value, expected = value[keep], expected[keep]
            yield Difference(name, tensor, float((value - expected).abs().max()), tolerance)


def unchecked(adapter: Adapter, about: Mapping) -> dict[str, str]:
    """Return the cases that cannot be compared with this checkpoint, and why, by name."""
    reasons = {}
    for name, case in about["cases"].items():
        compared = set(case["tolerance"])
        if "logits" in compared:
            continue
        if compared != STRUCTURE_ENCODER:
            reasons[name] = f"neither logits nor a structure encoder's tensors: {', '.join(sorted(compared))}"
        elif encoder_of(adapter) is None:
            reasons[name] = "of a structure encoder, and the checkpoint brings none"
    return reasons


def encoder_of(adapter: Adapter) -> StructureEncoder | None:
    """Return the structure encoder that came with a checkpoint, None if none did.

    Raises:
        CheckpointError: it is there and cannot be read.
    """
    encoder = getattr(adapter, "structure_encoder", None)
    return StructureEncoder.load(encoder) if isinstance(encoder, Path) else encoder


def _compare_encoder(
    encoder: StructureEncoder, name: str, case: Mapping, given: Mapping[str, Tensor]
) -> Iterator[Difference]:
    """Yield the difference of the descriptions of residues before they are rounded, and of the codes they become."""
    try:
        keep = given["valid"].bool()
        pairs = list(zip(given["coordinates"], given["residue_index"], strict=True))
        found = torch.stack([encoder.describe(*pair) for pair in pairs])
        codes = torch.stack([encoder.codes(*pair) for pair in pairs])
        expected = given["codes"]
    except KeyError as error:
        raise ExpectedError(f"case {name!r}: no tensor {error}, which a structure encoder takes as input") from error
    wrong = int((codes != expected.long())[keep].sum())
    yield Difference(name, "residues of other codes", float(wrong), 0.0)
    for tensor, tolerance in case["tolerance"].items():
        if found.shape != given[tensor].shape:
            raise ExpectedError(
                f"case {name!r}: {tensor} has shape {tuple(given[tensor].shape)}, the encoder gives "
                f"{tuple(found.shape)}"
            )
        yield Difference(name, tensor, float((found - given[tensor])[keep].abs().max()), tolerance)


def _chosen(tensor: str, found: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Tensor:
    """Return the value that answers an expected tensor: of some heads only chosen columns are kept."""
    if tensor == "logits_full":  # one whole row
        return found["logits"][0, 2]
    if tensor.startswith("logsumexp"):
        return found["logits" + tensor.removeprefix("logsumexp")].logsumexp(-1)
    if tensor not in found:
        raise ExpectedError(f"no comparison for expected tensor {tensor!r}; known: {sorted(found)}")
    columns = given.get("logit_columns" if tensor == "logits" else f"{tensor.removeprefix('logits_')}_columns")
    return found[tensor] if columns is None else found[tensor][..., columns.long()]


def tokens_of_cases(adapter: Adapter, about: Mapping) -> Iterator[tuple[str, list[Tokens]]]:
    """Yield, for every case that states proteins as this family reads them, its name and the tokens of the adapter."""
    names = {"N-to-C": "n2c", "C-to-N": "c2n", None: "none"}
    for name, case in about["cases"].items():
        direction = names[case.get("direction")]
        tokens = []
        for row, text in enumerate(case.get("sequences") or case.get("rows", [])):
            sequence, options = adapter.parse(text)
            if sequence is None:
                break  # a frame without residues, which no adapter reads
            if "masked_residues" in case:
                options["masked"] = np.isin(np.arange(len(sequence)), case["masked_residues"][row])
            tokens.append(adapter.encode(sequence, direction=direction, **options))
        else:
            if tokens:
                yield name, tokens


def load(family: str, checkpoint: Path, about: Mapping, *, layout: str | None, device: str) -> Adapter:
    """Return the adapter of a checkpoint in float32; sizes that its layout leaves out come from ``expected.json``.

    Raises:
        ValueError, CheckpointError: see ``registry.load``.
    """
    options: dict[str, object] = {}
    takes = inspect.signature(registry.adapter_class(family).load).parameters
    if "n_heads" in takes and "heads" in about.get("config", {}):
        options["n_heads"] = about["config"]["heads"]
    return registry.load(family, checkpoint, device=device, layout=layout, **options)


def run(family: str, checkpoint: Path, expected: Path, *, layout: str | None = None, device: str = "cpu") -> int:
    """Print every difference beside its tolerance, and what was not compared; return the exit status.

    0: all within tolerance; 1: something beyond it; 2: unusable input, or nothing in it that could be compared.
    """
    try:
        about, tensors = read_expected(expected)
        if about.get("family") != family:
            raise ExpectedError(f"{expected}: numbers of family {about.get('family')!r}, asked for {family!r}")
        adapter = load(family, checkpoint, about, layout=layout, device=device)
        differences = []
        print(f"{'case':<18} {'tensor':<22} {'difference':>10} {'tolerance':>10}")
        for difference in compare(adapter, about, tensors):
            differences.append(difference)
            verdict = "" if difference.within else "   BEYOND"
            print(
                f"{difference.case:<18} {difference.tensor:<22} {difference.largest:>10.2g} "
                f"{difference.tolerance:>10.2g}{verdict}"
            )
        left_out = unchecked(adapter, about)
        if not differences:
            raise ExpectedError(f"{expected}: nothing of it can be compared with this checkpoint: {left_out}")
    except (ValueError, CheckpointError, SequenceError, OSError, json.JSONDecodeError) as error:
        print(f"verify: {error}", file=sys.stderr)
        return 2
    beyond = sum(not difference.within for difference in differences)
    for name, why in left_out.items():
        print(f"{name:<18} NOT COMPARED: {why}")
    not_all = f", {len(left_out)} of {len(about['cases'])} cases not compared" if left_out else ""
    print(f"{len(differences)} comparisons, {beyond} beyond tolerance{not_all}")
    return 1 if beyond else 0
