"""What every adapter promises, checked for every family on tiny checkpoints whose numbers the family's own code gave.

The families differ in the table ``FAMILIES`` below and nowhere else. A family that is added to the registry without a
row here fails the first test.
"""

import contextlib
import functools
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from plm_depth.models import dplm2, gptj, progen3, registry, verify
from plm_depth.models.base import Adapter, Batch, SequenceError, Showing, Structure, Tokens
from plm_depth.tables import AMINO_ACIDS

FIXTURES = Path(__file__).parents[1] / "fixtures"
PROTEIN = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ"
OTHER = "GSHMLEDPVRACWNYT"


@dataclass(frozen=True)
class Family:
    """How one family is tested.

    Attributes:
        checkpoints: layout name to (checkpoint folder, folder of expected numbers), below tests/fixtures.
        sizes: of a tiny untrained model.
        published: (sizes, number of parameters) of a published model, without tables that loading folds away; None
            where no number was at hand.
        blocks: the library's blocks of a module; their outputs are the stream.
        forbidden: letters that the family has no residue token for.
        unknown: letter of a residue that is none of the twenty.
        reference_can_be_saved: whether the family's layout can hold the tiny reference checkpoint.
        mistakes: name to a change that makes the adapter wrong (see ``mistaken``).
    """

    sizes: dict[str, int]
    published: tuple[dict[str, int], int] | None
    blocks: Callable[[torch.nn.Module], torch.nn.ModuleList]
    checkpoints: dict[str, tuple[str, str]] = field(default_factory=dict)
    forbidden: str = "J*-.1|"
    unknown: str = "X"
    reference_can_be_saved: bool = True
    mistakes: dict[str, Callable] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------- deliberate mistakes
# Each takes (adapter, monkeypatch, reload) and returns the adapter that is wrong; reload() loads the checkpoint again.


def without_mask(adapter, monkeypatch, reload):
    right = adapter.batch_of

    def wrong(inputs):
        batch = right(inputs)
        return replace(batch, valid=torch.ones_like(batch.valid))

    monkeypatch.setattr(adapter, "batch_of", wrong)
    return adapter


def keys_as_values(adapter, monkeypatch, reload):
    for layer in adapter.module.esm.encoder.layer:
        attention = layer.attention.self
        attention.key, attention.value = attention.value, attention.key
    return adapter


def recomputed_frequencies(adapter, monkeypatch, reload):
    rotary = adapter.module.esm.rotary_embeddings
    rotary.inv_freq.copy_(rotary.compute_default_rope_parameters(rotary.config)[0])
    return adapter


def no_token_dropout(adapter, monkeypatch, reload):
    adapter.module.esm.embeddings.token_dropout = False
    return adapter


def training_mode(adapter, monkeypatch, reload):
    torch.manual_seed(0)
    adapter.module.train()
    return adapter


def no_embedding_norm(adapter, monkeypatch, reload):
    adapter.module.esm.embeddings.layer_norm = None
    return adapter


def positions_off_by_one(adapter, monkeypatch, reload):
    table = adapter.module.esm.embeddings.position_embeddings.weight
    table.copy_(table.roll(1, 0))
    return adapter


def mask_id_of_esm2(adapter, monkeypatch, reload):
    adapter.module.esm.embeddings.mask_token_id = 32
    return adapter


def one_embedding_pass(adapter, monkeypatch, reload):
    monkeypatch.setattr(dplm2, "N_EMBEDDING_PASSES", 1)
    return adapter


def no_shared_positions(adapter, monkeypatch, reload):
    right = adapter.batch_of

    def wrong(inputs):
        batch = right(inputs)
        along = torch.arange(batch.ids.shape[1]).expand_as(batch.ids)
        return replace(batch, extra={"position_ids": along})

    monkeypatch.setattr(adapter, "batch_of", wrong)
    return adapter


def plain_call(adapter, monkeypatch, reload):
    return one_embedding_pass(no_shared_positions(adapter, monkeypatch, reload), monkeypatch, reload)


def tied_head(adapter, monkeypatch, reload):
    adapter.module.lm_head.decoder.weight = adapter.module.esm.embeddings.word_embeddings.weight
    return adapter


def order_qvk_of_esmc(adapter, monkeypatch, reload):
    for layer in adapter.module.esmc.layers:
        attention = layer.self_attn
        attention.k_proj, attention.v_proj = attention.v_proj, attention.k_proj
    return adapter


def gate_as_up(adapter, monkeypatch, reload):
    for layer in adapter.module.esmc.layers:
        layer.mlp.gate_proj, layer.mlp.up_proj = layer.mlp.up_proj, layer.mlp.gate_proj
    return adapter


def undivided_contributions(adapter, monkeypatch, reload):
    """What hooks on the library's sub-modules would give: right states, wrong updates."""
    factor = adapter.module.esmc.layers[0].scaling_factor
    right = adapter.updates

    def wrong(block, stream, context):
        updates = right(block, stream, context)
        return replace(updates, attention=updates.attention * factor, mlp=updates.mlp * factor)

    monkeypatch.setattr(adapter, "updates", wrong)
    monkeypatch.setattr(adapter, "add", lambda stream, updates: stream + (updates.attention + updates.mlp) / factor)
    return adapter


def no_divisor(adapter, monkeypatch, reload):
    for layer in adapter.module.esmc.layers:
        layer.scaling_factor = 1.0
    return adapter


def without_input(name):
    def mistake(adapter, monkeypatch, reload):
        right = adapter.batch_of

        def wrong(inputs):
            batch = right(inputs)
            return replace(batch, extra={key: value for key, value in batch.extra.items() if key != name})

        monkeypatch.setattr(adapter, "batch_of", wrong)
        return adapter

    return mistake


def no_divisor_of_esm3(adapter, monkeypatch, reload):
    for block in adapter.module.transformer.blocks:
        block.divisor = 1.0
    return adapter


def order_qkv(adapter, monkeypatch, reload):
    def wrong(fused):
        q, v, k = right(fused)
        return q, k, v

    right = gptj.unfuse
    monkeypatch.setattr(gptj, "unfuse", wrong)
    return reload()


def no_partitions(adapter, monkeypatch, reload):
    monkeypatch.setattr(gptj, "unfuse", lambda fused: fused.chunk(3))
    return reload()


def exact_gelu(adapter, monkeypatch, reload):
    for block in adapter.module.transformer.h:
        block.mlp.act = torch.nn.GELU()
    return adapter


def no_clamp(adapter, monkeypatch, reload):
    monkeypatch.setattr(progen3.ClampedLinear, "forward", torch.nn.Linear.forward)
    return adapter


def sequence_embedding_not_folded(adapter, monkeypatch, reload):
    right = progen3.library_names

    def wrong(tensors, n_experts, where):
        name = "model.embed_seq_id.weight"
        return right({**tensors, name: torch.zeros_like(tensors[name])}, n_experts, where)

    monkeypatch.setattr(progen3, "library_names", wrong)
    return reload()


def w1_as_v1(adapter, monkeypatch, reload):
    for layer in adapter.module.model.layers:
        both = layer.mlp.experts.gate_up_proj
        both.copy_(both.roll(both.shape[1] // 2, 1))
    return adapter


def no_mask_at_jumping_positions(adapter, monkeypatch, reload):
    from transformers import masking_utils

    right = masking_utils.create_causal_mask
    monkeypatch.setattr(
        masking_utils, "create_causal_mask", lambda **options: right(**{**options, "attention_mask": None})
    )
    return adapter


ESM_BLOCKS = lambda module: module.esm.encoder.layer  # noqa: E731
FAMILIES = {
    "esm2": Family(
        checkpoints={"hub": ("esm2/hub", "esm2"), "fair_esm": ("esm2/fair_esm", "esm2")},
        sizes={"n_blocks": 3, "d_model": 32, "n_heads": 4},
        published=({"n_blocks": 6, "d_model": 320, "n_heads": 20}, 7_512_474),
        blocks=ESM_BLOCKS,
        mistakes={
            "attention_mask omitted": without_mask,
            "k and v swapped": keys_as_values,
            "inv_freq recomputed": recomputed_frequencies,
            "token dropout off": no_token_dropout,
        },
    ),
    "esm1b": Family(
        checkpoints={"hub": ("esm1b/hub", "esm1b")},
        sizes={"n_blocks": 3, "d_model": 32, "n_heads": 4},
        published=({"n_blocks": 33, "d_model": 1280, "n_heads": 20}, 652_359_094),
        blocks=ESM_BLOCKS,
        mistakes={
            "attention_mask omitted": without_mask,
            "embedding LayerNorm ignored": no_embedding_norm,
            "positions off by one": positions_off_by_one,
        },
    ),
    "esm1v": Family(
        sizes={"n_blocks": 3, "d_model": 32, "n_heads": 4},
        published=({"n_blocks": 33, "d_model": 1280, "n_heads": 20}, 652_356_534),
        blocks=ESM_BLOCKS,
    ),
    "saprot": Family(
        checkpoints={"hub": ("saprot/hub", "saprot"), "fair_esm": ("saprot/fair_esm", "saprot")},
        sizes={"n_blocks": 3, "d_model": 32, "n_heads": 4},
        published=({"n_blocks": 12, "d_model": 480, "n_heads": 20}, 33_700_047),
        blocks=ESM_BLOCKS,
        mistakes={
            "attention_mask omitted": without_mask,
            "mask id 32 instead of 4": mask_id_of_esm2,
            "train mode (dropout 0.1)": training_mode,
        },
    ),
    "dplm": Family(
        checkpoints={"hub": ("dplm/hub", "dplm")},
        sizes={"n_blocks": 3, "d_model": 32, "n_heads": 4},
        published=({"n_blocks": 30, "d_model": 640, "n_heads": 20}, 148_140_154),
        blocks=ESM_BLOCKS,
        mistakes={
            "attention_mask omitted": without_mask,
            "train mode (dropout 0.1)": training_mode,
            "token dropout off": no_token_dropout,
        },
    ),
    "dplm2": Family(
        checkpoints={"hub": ("dplm2/hub", "dplm2")},
        sizes={"n_blocks": 3, "d_model": 16, "n_heads": 2},
        published=({"n_blocks": 30, "d_model": 640, "n_heads": 20}, 158_660_350),
        blocks=ESM_BLOCKS,
        mistakes={
            "one embedding pass": one_embedding_pass,
            "no shared positions": no_shared_positions,
            "plain call with ids": plain_call,
            "head tied to the embedding": tied_head,
        },
    ),
    "esmc": Family(
        checkpoints={"native": ("esmc/native", "esmc"), "pth": ("esmc/pth", "esmc")},
        sizes={"n_blocks": 3, "d_model": 32, "n_heads": 4},
        published=({"n_blocks": 30, "d_model": 960, "n_heads": 15}, 332_997_184),
        blocks=lambda module: module.esmc.layers,
        forbidden="J*-.1",
        mistakes={
            "order q,v,k": order_qvk_of_esmc,
            "gate and up swapped": gate_as_up,
            "contributions not divided": undivided_contributions,
            "attention_mask omitted (own mask of the class)": without_mask,
            "residual divisor missing": no_divisor,
        },
    ),
    "esm3": Family(
        checkpoints={"pth": ("esm3/pth", "esm3")},
        sizes={"n_blocks": 2, "d_model": 64, "n_heads": 1, "d_mlp": 64, "n_geometric_heads": 4},
        published=({"n_blocks": 48, "d_model": 1536, "n_heads": 24}, 1_401_735_748),
        blocks=lambda module: module.transformer.blocks,
        forbidden="J*-.1",
        mistakes={
            "coordinates dropped": without_input("structure_coords"),
            "per-residue pLDDT left at 0": without_input("per_res_plddt"),
            "residual divisor missing": no_divisor_of_esm3,
            "sequence_id omitted": without_mask,
        },
        reference_can_be_saved=False,  # its heads have not the 64 dimensions that the layout takes for granted
    ),
    "progen2": Family(
        checkpoints={
            "authors": ("progen2/authors", "progen2/authors"),
            "community": ("progen2/community", "progen2/community"),
        },
        sizes={"n_blocks": 2, "d_model": 64, "n_heads": 8, "rotary_dim": 4, "n_positions": 64},
        published=({"n_blocks": 12, "d_model": 1024, "n_heads": 16, "rotary_dim": 32}, 151_148_576),
        blocks=lambda module: module.transformer.h,
        forbidden="J*-.1",
        mistakes={"order q,k,v": order_qkv, "no partitions": no_partitions, "exact GELU": exact_gelu},
    ),
    "protbert": Family(
        sizes={"n_blocks": 3, "d_model": 32, "n_heads": 4, "n_positions": 64},
        published=None,
        blocks=lambda module: module.bert.encoder.layer,
    ),
    "protgpt2": Family(
        sizes={"n_blocks": 3, "d_model": 32, "n_heads": 4, "n_positions": 96},
        published=None,
        blocks=lambda module: module.transformer.h,
        forbidden="*-.1|",
    ),
    "progen3": Family(
        checkpoints={"hub": ("progen3/hub", "progen3")},
        sizes={"n_blocks": 2, "d_model": 32, "n_heads": 4, "n_kv_heads": 2, "d_mlp": 24},
        published=({"n_blocks": 24, "d_model": 1280, "n_heads": 16}, 2_989_748_480 - 512 * 1280),
        blocks=lambda module: module.model.layers,
        forbidden="*-.1|",
        mistakes={
            "clamp missing": no_clamp,
            "embed_seq_id row not folded": sequence_embedding_not_folded,
            "w1 and v1 swapped": w1_as_v1,
            "no attention mask (infilling)": no_mask_at_jumping_positions,
        },
    ),
}

EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)
CHECKPOINTS = [(family, layout) for family, row in FAMILIES.items() for layout in row.checkpoints]
EVERY_CHECKPOINT = pytest.mark.parametrize(("family", "layout"), CHECKPOINTS)
FAR = 1000  # times the tolerance that the largest difference of a mistake is, at least (measured: 12,000 and more)
SLIGHT, FAR_OF_SLIGHT = {"inv_freq recomputed", "exact GELU"}, 10  # a last digit of another function (measured: 14)
NO_DROPOUT = {("saprot", "fair_esm")}  # a layout without a dropout rate: training mode changes nothing
MISTAKES = [
    (family, layout, mistake)
    for family, layout in CHECKPOINTS
    for mistake in FAMILIES[family].mistakes
    if not (mistake.startswith("train mode") and (family, layout) in NO_DROPOUT)
]
SAVED = {family for family, row in FAMILIES.items() if row.checkpoints and row.reference_can_be_saved}
WITH_CHECKPOINT = pytest.mark.parametrize("family", sorted(SAVED))


def load(family: str, layout: str) -> Adapter:
    checkpoint, _ = FAMILIES[family].checkpoints[layout]
    about, _ = expected(family, layout)
    return verify.load(family, FIXTURES / checkpoint, about, layout=layout, device="cpu")


@functools.cache
def loaded(family: str, layout: str) -> Adapter:
    """A checkpoint that no test changes."""
    return load(family, layout)


@functools.cache
def expected(family: str, layout: str):
    return verify.read_expected(FIXTURES / FAMILIES[family].checkpoints[layout][1])


@functools.cache
def tiny(family: str) -> Adapter:
    """An untrained model that no test changes."""
    return registry.build(family, FAMILIES[family].sizes, seed=3)


def assert_same_logits(family: str, found: dict, tolerance: float) -> None:
    """Bit by bit, but where the read-out multiplies by a part of the head's matrix only, or a block ends in a norm."""
    if family in ("dplm2", "protbert"):
        scale = float(found["library"].abs().max())
        torch.testing.assert_close(found["read_out"], found["library"], rtol=0, atol=tolerance * max(1.0, scale))
    else:
        assert torch.equal(found["read_out"], found["library"])


def library_states(adapter: Adapter, blocks: Callable, batch: Batch) -> list[torch.Tensor]:
    """What the blocks of the library's own forward pass return."""
    states = []

    def keep(module, inputs, output):
        states.append(output[0] if isinstance(output, tuple) else output)

    with contextlib.ExitStack() as stack:
        for block in blocks(adapter.module):
            stack.callback(block.register_forward_hook(keep).remove)
        with torch.inference_mode():
            adapter.library_logits(batch)
    return states


def some_mask(adapter: Adapter, sequence: str) -> np.ndarray | None:
    if adapter.mask_id is None:
        return None
    return np.arange(len(sequence)) % 5 == 1


def batch_of(adapter: Adapter, sequences: list[str], direction: str | None = None) -> Batch:
    direction = direction or adapter.directions[0]
    tokens = [adapter.encode(s, masked=some_mask(adapter, s), direction=direction) for s in sequences]
    return adapter.collate(tokens)


# --------------------------------------------------------------------------------------------------------- parity


def test_every_family_of_the_registry_is_tested_here():
    assert set(FAMILIES) == set(registry.FAMILIES)


@EVERY_CHECKPOINT
def test_every_layer_update_and_logit_is_that_of_the_familys_own_code(family, layout):
    about, tensors = expected(family, layout)
    differences = list(verify.compare(loaded(family, layout), about, tensors))
    compared = {d.tensor for d in differences}
    assert {"x", "attn", "mlp", "final_norm", "logits"} <= compared
    assert [d for d in differences if not d.within] == []


@EVERY_CHECKPOINT
def test_stepping_gives_the_librarys_logits_bit_by_bit(family, layout):
    adapter = loaded(family, layout)
    for direction in adapter.directions:
        found = verify.walk(adapter, batch_of(adapter, [PROTEIN, OTHER], direction))
        assert torch.isfinite(found["library"]).all()
        assert_same_logits(family, found, tolerance=1e-6)


@EVERY_CHECKPOINT
def test_states_are_what_the_librarys_blocks_return_and_updates_add_up_to_them(family, layout):
    adapter = loaded(family, layout)
    batch = batch_of(adapter, [PROTEIN, OTHER])
    states = library_states(adapter, FAMILIES[family].blocks, batch)
    assert len(states) == adapter.n_blocks
    found = verify.walk(adapter, batch)
    for block in range(1, adapter.n_blocks + 1):
        before, after = found["x"][block - 1], found["x"][block]
        assert torch.equal(after, states[block - 1])
        total = found["attn"][block - 1] + found["mlp"][block - 1]
        if "geom" in found and block <= len(found["geom"]):
            total = total + found["geom"][block - 1]
        torch.testing.assert_close(before + total, after, rtol=0, atol=1e-5 * float(after.abs().max()))


@pytest.mark.parametrize(("family", "layout", "mistake"), MISTAKES)
def test_a_known_mistake_is_far_outside_the_tolerance(family, layout, mistake, monkeypatch):
    about, tensors = expected(family, layout)
    assert mistake in about["measured"]["mistakes"]
    wrong = FAMILIES[family].mistakes[mistake](
        load(family, layout), monkeypatch, functools.partial(load, family, layout)
    )
    compared = [d for d in verify.compare(wrong, about, tensors) if d.tensor != "stepping vs library" and d.tolerance]
    assert max(d.largest / d.tolerance for d in compared) >= (FAR_OF_SLIGHT if mistake in SLIGHT else FAR)


def test_every_mistake_that_was_measured_for_a_family_is_tried_here():
    for family, layout in CHECKPOINTS:
        about, _ = expected(family, layout)
        assert set(about["measured"]["mistakes"]) == set(FAMILIES[family].mistakes)


def test_fair_esm_agrees_on_proteins_that_no_fixture_holds():
    import argparse

    from esm import pretrained

    adapter = loaded("esm2", "hub")
    path = FIXTURES / "esm2/fair_esm/esm2_t5_tiny_UR50D.pt"
    with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        oracle, alphabet = pretrained.load_model_and_alphabet_local(path)
    oracle.eval()
    masked = some_mask(adapter, PROTEIN)
    shown = "".join("<mask>" if hide else letter for letter, hide in zip(PROTEIN, masked, strict=True))
    _, _, ids = alphabet.get_batch_converter()([("a", shown), ("b", OTHER)])
    tokens = [adapter.encode(PROTEIN, masked=masked), adapter.encode(OTHER)]
    batch = adapter.collate(tokens)
    assert torch.equal(batch.ids, ids)
    with torch.inference_mode():
        theirs = oracle(ids, repr_layers=list(range(adapter.n_blocks + 1)))
    ours = verify.walk(adapter, batch)
    keep = batch.valid
    torch.testing.assert_close(ours["logits"][keep], theirs["logits"][keep], rtol=0, atol=1e-4)
    for layer in range(adapter.n_blocks):
        state = theirs["representations"][layer]
        torch.testing.assert_close(ours["x"][layer][keep], state[keep], rtol=0, atol=5e-4)
    last = theirs["representations"][adapter.n_blocks]  # fair-esm gives it after the final norm
    torch.testing.assert_close(ours["final_norm"][keep], last[keep], rtol=0, atol=1e-4)


# -------------------------------------------------------------------------------------------------- tokens, batches


@EVERY_CHECKPOINT
def test_token_ids_are_those_of_the_reference(family, layout):
    adapter = loaded(family, layout)
    about, tensors = expected(family, layout)
    compared = 0
    for name, tokens in verify.tokens_of_cases(adapter, about):
        given = adapter.batch_of({k.split("/", 1)[1]: v for k, v in tensors.items() if k.startswith(f"{name}/")})
        assert len(tokens) == len(given.ids)
        for row, mine in enumerate(tokens):
            valid = given.valid[row]
            assert list(mine.ids) == given.ids[row][valid].tolist()
            for key, value in mine.extra.items():
                theirs = given.extra[key][row][valid]
                torch.testing.assert_close(torch.from_numpy(value), theirs, rtol=0, atol=0, equal_nan=True)
        compared += 1
    assert compared


PUBLISHED_VOCABULARIES = {
    family: FIXTURES / row.checkpoints["hub"][0] / "vocab.txt"
    for family, row in FAMILIES.items()
    if "hub" in row.checkpoints and (FIXTURES / row.checkpoints["hub"][0] / "vocab.txt").is_file()
}


def test_the_published_vocabularies_are_where_they_are_looked_for():
    assert set(PUBLISHED_VOCABULARIES) == {"esm2", "esm1b", "saprot", "dplm"}


@pytest.mark.parametrize("family", PUBLISHED_VOCABULARIES)
def test_the_vocabulary_is_that_of_the_published_file(family):
    published = PUBLISHED_VOCABULARIES[family]
    adapter = loaded(family, "hub")
    assert list(adapter.alphabet.tokens) == published.read_text().split()
    assert set(adapter.vocabulary) <= set(range(len(adapter.alphabet.tokens)))


@EVERY_FAMILY
def test_stepping_an_untrained_model_gives_its_librarys_states_and_logits(family):
    adapter = tiny(family)
    batch = batch_of(adapter, [PROTEIN, OTHER])
    found = verify.walk(adapter, batch)
    states = library_states(adapter, FAMILIES[family].blocks, batch)
    for mine, theirs in zip(found["x"][1:], states, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))
    assert_same_logits(family, found, tolerance=1e-5)


READ_BY_RESIDUE = pytest.mark.parametrize("family", [family for family in FAMILIES if family != "protgpt2"])


@READ_BY_RESIDUE
def test_every_residue_has_one_token_of_its_own(family):
    adapter = tiny(family)
    assert adapter.tokens_are_residues
    assert [adapter.vocabulary[i] for i in adapter.residue_ids] == list(AMINO_ACIDS)
    for direction in adapter.directions:
        tokens = adapter.encode(PROTEIN, direction=direction)
        letters = "".join(adapter.vocabulary[i] for i in tokens.ids[tokens.residue_tokens])
        assert letters == PROTEIN
        assert len(set(tokens.residue_tokens)) == len(PROTEIN)
        assert tokens.direction == direction
        steps = np.diff(tokens.residue_tokens)
        assert (steps == (-1 if direction == "c2n" else 1)).all()


@EVERY_FAMILY
def test_masks_hide_exactly_the_residues_asked_for(family):
    adapter = tiny(family)
    masked = np.arange(len(PROTEIN)) % 7 == 0
    if adapter.mask_id is None:
        with pytest.raises(SequenceError, match="no mask token"):
            adapter.encode(PROTEIN, masked=masked, direction=adapter.directions[0])
        return
    shown, hidden = adapter.encode(PROTEIN), adapter.encode(PROTEIN, masked=masked)
    changed = np.flatnonzero(shown.ids != hidden.ids)
    assert list(changed) == list(hidden.residue_tokens[masked])
    (token,) = set(hidden.ids[changed])
    # A joint token without residue and state is what stands for a hidden residue among joint tokens.
    assert token == adapter.mask_id or adapter.alphabet.tokens[token] == "##"
    assert (hidden.masked == masked).all()
    with pytest.raises(SequenceError, match="mask of shape"):
        adapter.encode(PROTEIN, masked=masked[:-1])


@EVERY_FAMILY
def test_a_sequence_that_would_be_misread_is_refused(family):
    adapter = tiny(family)
    direction = adapter.directions[0]
    for letter in [*FAMILIES[family].forbidden, "a", " ", "é"]:
        with pytest.raises(SequenceError, match="at position 2 is not in the alphabet"):
            adapter.encode(f"MK{letter}A", direction=direction)
    with pytest.raises(SequenceError, match="empty sequence"):
        adapter.encode("", direction=direction)
    with pytest.raises(SequenceError, match=f"{adapter.max_residues + 1} residues.*at most {adapter.max_residues}"):
        adapter.encode("A" * (adapter.max_residues + 1), direction=direction)
    if adapter.tokens_are_residues:
        assert adapter.encode("A" * adapter.max_residues, direction=direction).n_tokens > adapter.max_residues
    with pytest.raises(SequenceError, match="direction 'up'"):
        adapter.encode("MKA", direction="up")


@READ_BY_RESIDUE
def test_letters_beyond_the_twenty_are_read_but_never_predicted(family):
    adapter = tiny(family)
    which = "next" if adapter.objective == "ar" else "visible"
    for direction in adapter.directions:
        sequence = f"MK{FAMILIES[family].unknown}AYI"
        tokens = adapter.encode(sequence, direction=direction)
        positions = adapter.read_positions(sequence, tokens, which=which)
        if which == "visible":
            assert list(positions) == [0, 1, 3, 4, 5]
        else:  # the residue read first has no residue before it, and X is no source
            assert list(positions) == ([1, 4, 5] if direction == "n2c" else [0, 3, 4])


@EVERY_CHECKPOINT
def test_a_protein_alone_gives_what_it_gives_padded_in_a_batch(family, layout):
    adapter = loaded(family, layout)
    for direction in adapter.directions:
        together = verify.walk(adapter, batch_of(adapter, [PROTEIN, OTHER, "MKV"], direction))
        for row, sequence in enumerate([PROTEIN, OTHER, "MKV"]):
            alone = verify.walk(adapter, batch_of(adapter, [sequence], direction))
            n = alone["logits"].shape[1]
            for name in ("x", "attn", "mlp"):
                scale = float(alone[name].abs().max())
                torch.testing.assert_close(
                    together[name][:, row, :n], alone[name][:, 0], rtol=0, atol=2e-5 * max(1.0, scale)
                )


@EVERY_FAMILY
def test_padding_is_on_the_right_and_marked(family):
    adapter = tiny(family)
    batch = batch_of(adapter, [PROTEIN, OTHER])
    n = adapter.encode(OTHER, direction=adapter.directions[0]).n_tokens
    assert batch.valid[0].all()
    assert batch.valid[1, :n].all() and not batch.valid[1, n:].any()
    assert (batch.ids[1, n:] == adapter.pad_id).all()


@EVERY_FAMILY
def test_the_context_of_chosen_rows_gives_their_updates(family):
    adapter = tiny(family)
    rows = torch.tensor([1, 0, 1])
    with torch.inference_mode():
        stream, context = adapter.embed(batch_of(adapter, [PROTEIN, OTHER]))
        whole = adapter.updates(1, stream, context)
        chosen = adapter.updates(1, stream[rows], context.take(rows))
    torch.testing.assert_close(chosen.attention, whole.attention[rows], rtol=0, atol=1e-6)
    torch.testing.assert_close(chosen.mlp, whole.mlp[rows], rtol=0, atol=1e-6)


def test_an_autoregressive_model_never_looks_ahead():
    adapter = loaded("progen2", "authors")
    changed = PROTEIN[:20] + "W" * (len(PROTEIN) - 20)
    one, other = (verify.walk(adapter, batch_of(adapter, [s]))["x"] for s in (PROTEIN, changed))
    assert torch.equal(one[:, :, :21], other[:, :, :21])
    assert not torch.equal(one[:, :, 21], other[:, :, 21])


# ------------------------------------------------------------------------------------------------- loading, saving


@EVERY_CHECKPOINT
def test_a_loaded_model_is_in_evaluation_mode_without_hooks_or_gradients(family, layout):
    adapter = loaded(family, layout)
    verify.walk(adapter, batch_of(adapter, [PROTEIN]))
    for module in adapter.module.modules():
        assert not module.training
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert not any(p.requires_grad for p in adapter.module.parameters())
    assert {p.dtype for p in adapter.module.parameters()} == {torch.float32}


@EVERY_CHECKPOINT
def test_sizes_and_self_check(family, layout):
    adapter = loaded(family, layout)
    about, _ = expected(family, layout)
    assert (adapter.family, adapter.n_blocks, adapter.d_model) == (
        family,
        about["config"]["layers"],
        about["config"]["width"],
    )
    assert adapter.self_check() <= 1e-6


@pytest.mark.parametrize("family", [family for family, row in FAMILIES.items() if row.published])
def test_the_number_of_parameters_is_the_published_one(family):
    sizes, n_parameters = FAMILIES[family].published
    with torch.device("meta"):  # sizes only, no memory
        adapter = registry.build(family, sizes)
    assert adapter.n_parameters == n_parameters


@EVERY_FAMILY
def test_saving_and_loading_gives_the_same_model(family, tmp_path):
    adapter = tiny(family)
    registry.save(adapter, tmp_path / "one")
    again = registry.load(family, tmp_path / "one")
    mine, theirs = adapter.module.state_dict(), again.module.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    batch = batch_of(adapter, [PROTEIN, OTHER])
    with torch.inference_mode():
        assert torch.equal(adapter.library_logits(batch), again.library_logits(batch))
    registry.save(again, tmp_path / "two")
    names = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


@pytest.mark.parametrize(("family", "layout"), [pair for pair in CHECKPOINTS if pair[0] in SAVED])
def test_a_reference_checkpoint_survives_being_saved(family, layout, tmp_path):
    adapter = loaded(family, layout)
    registry.save(adapter, tmp_path)
    again = registry.load(family, tmp_path)
    assert all(
        torch.equal(value, again.module.state_dict()[name]) for name, value in adapter.module.state_dict().items()
    )


@WITH_CHECKPOINT
def test_saved_files_have_the_names_and_tensors_of_the_published_ones(family, tmp_path):
    from plm_depth.models import checkpoints

    row = FAMILIES[family]
    layout = next(iter(row.checkpoints))
    published = FIXTURES / row.checkpoints[layout][0]
    registry.save(loaded(family, layout), tmp_path)
    of_weights = {"model.safetensors", "pytorch_model.bin", "config.json"}
    there = {p.name for p in published.iterdir()} - {"expected.json", "expected.safetensors"}
    assert {p.name for p in tmp_path.iterdir()} == there
    if there & of_weights:
        mine, theirs = checkpoints.read_weights(tmp_path), checkpoints.read_weights(published)
        assert {n: (tuple(t.shape), t.dtype) for n, t in mine.items()} == {
            n: (tuple(t.shape), t.dtype) for n, t in theirs.items()
        }
        config, original = (json.loads((f / "config.json").read_text()) for f in (tmp_path, published))
        for key in set(config) & set(original) - {"transformers_version"}:
            assert config[key] == original[key], key


@EVERY_FAMILY
def test_building_is_deterministic_and_depends_on_the_seed(family):
    one, same, other = (registry.build(family, FAMILIES[family].sizes, seed=s) for s in (3, 3, 4))
    states = [adapter.module.state_dict() for adapter in (one, same, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])
    state = torch.random.get_rng_state()
    registry.build(family, FAMILIES[family].sizes, seed=5)
    assert torch.equal(state, torch.random.get_rng_state())  # the caller's random numbers are not touched


@EVERY_CHECKPOINT
def test_reinitialising_draws_parameters_anew_and_leaves_buffers(family, layout):
    adapter = load(family, layout)
    buffers = {name: value.clone() for name, value in adapter.module.named_buffers()}
    before = {name: value.clone() for name, value in adapter.module.named_parameters()}
    adapter.reinitialise(1)
    once = {name: value.clone() for name, value in adapter.module.named_parameters()}
    adapter.reinitialise(2)
    adapter.reinitialise(1)
    matrices = [name for name, value in once.items() if value.ndim > 1]
    assert matrices
    assert not any(torch.equal(before[name], once[name]) for name in matrices)
    assert all(torch.equal(once[name], value) for name, value in adapter.module.named_parameters())
    assert all(torch.equal(buffers[name], value) for name, value in adapter.module.named_buffers())
    assert adapter.self_check() <= 1e-6


@EVERY_FAMILY
def test_an_untrained_model_draws_what_its_library_draws(family):
    adapter = registry.build(family, FAMILIES[family].sizes, seed=3)
    first = {name: value.clone() for name, value in adapter.module.named_parameters()}
    adapter.reinitialise(8)
    adapter.reinitialise(3)
    assert all(torch.equal(first[name], value) for name, value in adapter.module.named_parameters())


@EVERY_FAMILY
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_precisions_keep_the_stream_and_agree_with_float32(family, dtype, tmp_path):
    registry.save(tiny(family), tmp_path)
    adapter = registry.load(family, tmp_path, dtype=dtype)
    assert adapter.dtype == dtype
    stored = {p.dtype for p in adapter.module.parameters()}
    assert stored == {getattr(torch, dtype), torch.float32} if dtype != "float64" else stored == {torch.float64}
    batch = batch_of(adapter, [PROTEIN, OTHER])
    found, reference = verify.walk(adapter, batch), verify.walk(tiny(family), batch)
    assert found["x"].dtype == (torch.float64 if dtype == "float64" else torch.float32)
    scale = float(reference["x"].abs().max())
    error = float((found["x"] - reference["x"]).abs().max()) / scale
    assert error < (1e-5 if dtype == "float64" else 0.03)
    if dtype != "float64":
        assert error > 1e-6  # the products really ran in half precision
    assert_same_logits(family, found, tolerance=1e-6 if dtype == "float64" else 1e-2)


@EVERY_FAMILY
def test_sizes_that_do_not_exist_or_do_not_fit_are_refused(family):
    sizes = dict(FAMILIES[family].sizes)
    with pytest.raises(ValueError, match=r"unknown size 'n_block'.*did you mean 'n_blocks'"):
        registry.build(family, {**sizes, "n_block": 3})
    del sizes["n_blocks"]
    with pytest.raises(ValueError, match="needs n_blocks"):
        registry.build(family, sizes)
    with pytest.raises(ValueError, match="heads"):
        registry.build(family, {**FAMILIES[family].sizes, "n_heads": 7})


@EVERY_FAMILY
def test_a_layout_that_the_family_does_not_have_is_refused(family):
    with pytest.raises(ValueError, match="layout 'parchment'"):
        registry.load(family, FIXTURES, layout="parchment")


def test_an_unknown_family_names_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown family 'esm-2'; did you mean 'esm2'\? known: .*progen2"):
        registry.adapter_class("esm-2")


# ----------------------------------------------------------------------------------------------- structure heads

WITH_STRUCTURE_HEAD = pytest.mark.parametrize("family", [name for name, row in registry.FAMILIES.items()
                                                         if row.structure_classes])  # fmt: skip
STATES = "dvpnlcqs"
UNKNOWN_STRUCTURE = (3, 11)  # residues of PROTEIN whose structure nobody knows


def some_structure(seed: int = 0) -> Structure:
    """A structure of PROTEIN, every part of it; two residues are unknown."""
    random = np.random.default_rng(seed)
    unknown = np.isin(np.arange(len(PROTEIN)), UNKNOWN_STRUCTURE)
    three_di = "".join("#" if u else s for u, s in zip(unknown, random.choice(list(STATES), len(PROTEIN)), strict=True))
    codes = np.where(unknown, -1, random.integers(0, 4096, len(PROTEIN)))
    coordinates = np.cumsum(random.normal(size=(len(PROTEIN), 3, 3)), axis=0).astype(np.float32) * 3
    coordinates[unknown] = np.nan
    return Structure(three_di=three_di, codes=codes, coordinates=coordinates)


def reference_of(family: str) -> Adapter:
    return loaded(family, next(iter(FAMILIES[family].checkpoints)))


def both_tracks(family: str) -> tuple[Adapter, Tokens, Batch]:
    adapter = reference_of(family)
    tokens = adapter.encode(PROTEIN, masked=some_mask(adapter, PROTEIN), structure=some_structure(),
                            condition="seq_struct")  # fmt: skip
    return adapter, tokens, adapter.collate([tokens])


def own_structure_logits(family: str, adapter: Adapter, batch: Batch) -> torch.Tensor:
    """What the family's own forward pass says of structures, as probabilities of the classes."""
    if family == "esm3":
        return adapter.module(batch.ids, batch.valid, batch.extra)["structure"].double().softmax(-1)
    if family == "dplm2":
        logits = adapter.module(inputs_embeds=adapter.embedded(batch), attention_mask=batch.valid.long(),
                                position_ids=batch.positions).logits  # fmt: skip
        return logits[..., dplm2.FIRST_CODE : dplm2.FIRST_CODE + dplm2.N_CODES].double().softmax(-1)
    joint = adapter.module(input_ids=batch.ids, attention_mask=batch.valid.long()).logits.double().softmax(-1)
    of_state = [[i for i, text in enumerate(adapter.alphabet.tokens) if len(text) == 2 and text[1] == state]
                for state in adapter.structure_classes]  # fmt: skip
    summed = torch.stack([joint[..., columns].sum(-1) for columns in of_state], -1)
    return summed / summed.sum(-1, keepdim=True)


@WITH_STRUCTURE_HEAD
def test_the_structure_head_at_the_last_layer_is_the_familys_own(family):
    adapter, _, batch = both_tracks(family)
    with torch.inference_mode():
        expected = own_structure_logits(family, adapter, batch)
        found = adapter.read_out_structure(verify.walk(adapter, batch)["x"][-1])
    assert found.shape[-1] == len(adapter.structure_classes) == len(set(adapter.structure_classes))
    p = found.double().softmax(-1)
    torch.testing.assert_close(p, expected, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(p.sum(-1), torch.ones_like(p[..., 0]))


def test_the_structure_heads_of_the_references_are_those_that_their_own_code_gave():
    adapter, (about, tensors) = reference_of("dplm2"), expected("dplm2", "hub")
    given = {key.split("/", 1)[1]: value for key, value in tensors.items() if key.startswith("joint/")}
    stream = verify.walk(adapter, adapter.batch_of(given))["x"][-1]
    columns = given["logit_columns"].long()
    codes = (columns >= dplm2.FIRST_CODE) & (columns < dplm2.FIRST_CODE + dplm2.N_CODES)
    assert codes.sum() > 20
    found = adapter.read_out_structure(stream)[..., columns[codes] - dplm2.FIRST_CODE]
    keep = given["valid"].bool()
    tolerance = about["cases"]["joint"]["tolerance"]["logits"]
    torch.testing.assert_close(found[keep], given["logits"][..., codes][keep], rtol=0, atol=tolerance)

    adapter, (about, tensors) = reference_of("esm3"), expected("esm3", "pth")
    compared = {d.tensor for d in verify.compare(adapter, about, tensors)}
    assert "logits_structure" in compared
    stream = verify.walk(adapter, batch_of(adapter, [PROTEIN]))["x"][-1]
    assert torch.equal(adapter.read_out_structure(stream), adapter.other_logits(stream)["structure"])


def test_both_heads_of_joint_tokens_are_marginals_of_one_distribution():
    adapter, _, batch = both_tracks("saprot")
    stream = verify.walk(adapter, batch)["x"][-1]
    joint = adapter.native_logits(stream).double().softmax(-1)
    tokens = adapter.alphabet.tokens
    p_a = adapter.read_out(stream).double().softmax(-1)
    for token, letter in adapter.vocabulary.items():
        if len(letter) == 1:
            mine = [i for i, text in enumerate(tokens) if len(text) == 2 and text[0] == letter]
            torch.testing.assert_close(p_a[..., token], joint[..., mine].sum(-1), rtol=1e-4, atol=1e-9)
    p_z = adapter.read_out_structure(stream).double().softmax(-1)
    of_state = {state: [i for i, text in enumerate(tokens) if len(text) == 2 and text[1] == state] for state in "#dv"}
    known = joint[..., [i for i, t in enumerate(tokens) if len(t) == 2 and t[1] != "#"]].sum(-1)
    for state in "dv":
        at = adapter.structure_classes.index(state)
        torch.testing.assert_close(p_z[..., at] * known, joint[..., of_state[state]].sum(-1), rtol=1e-4, atol=1e-9)
    assert "#" not in adapter.structure_classes and (joint[..., of_state["#"]].sum(-1) > 0).all()


@WITH_STRUCTURE_HEAD
@pytest.mark.parametrize("struct_at_mask", ["keep", "hide"])
@pytest.mark.parametrize("condition", ["seq", "seq_struct", "struct"])
def test_a_structure_counts_as_shown_exactly_where_the_tokens_depend_on_it(
    family, condition, struct_at_mask, monkeypatch
):
    adapter = tiny(family)
    monkeypatch.setattr(adapter, "showing", Showing(struct_at_mask, is_compared=True))
    masked = some_mask(adapter, PROTEIN)
    one, other = some_structure(0), some_structure(1)
    shown = adapter.shows_structure(PROTEIN, masked=masked, structure=one, condition=condition)
    assert not shown[list(UNKNOWN_STRUCTURE)].any()

    def inputs(structure):
        tokens = adapter.encode(PROTEIN, masked=masked, structure=structure, condition=condition)
        values = [tokens.ids, *(tokens.extra[name] for name in sorted(tokens.extra))]
        return tokens, np.concatenate([np.nan_to_num(v).reshape(tokens.n_tokens, -1) for v in values], 1)

    tokens, before = inputs(one)
    for position in np.setdiff1d(np.arange(len(PROTEIN)), UNKNOWN_STRUCTURE):
        here = np.arange(len(PROTEIN)) == position
        state = STATES[(STATES.index(one.three_di[position]) + 1) % len(STATES)]
        changed = Structure(
            three_di=one.three_di[:position] + state + one.three_di[position + 1 :],
            codes=np.where(here, (one.codes + 1) % 4096, one.codes),
            coordinates=np.where(here[:, None, None], other.coordinates, one.coordinates),
        )
        at = np.flatnonzero((inputs(changed)[1] != before).any(1)).tolist()
        assert at == ([adapter.structure_reads(tokens)[position]] if shown[position] else []), position
    expected = {"seq": np.zeros(len(PROTEIN), bool), "struct": np.ones(len(PROTEIN), bool)}
    expected["seq_struct"] = np.ones(len(PROTEIN), bool) if struct_at_mask == "keep" else ~masked
    known = ~np.isin(np.arange(len(PROTEIN)), UNKNOWN_STRUCTURE)
    assert (shown == (expected[condition] & known)).all()


@WITH_STRUCTURE_HEAD
def test_the_true_class_of_a_structure_is_what_the_head_calls_it(family):
    adapter, structure = tiny(family), some_structure()
    true = adapter.true_structure(structure, len(PROTEIN))
    assert true[list(UNKNOWN_STRUCTURE)].tolist() == [-1, -1] and (np.delete(true, UNKNOWN_STRUCTURE) >= 0).all()
    names = [adapter.structure_classes[i] for i in np.delete(true, UNKNOWN_STRUCTURE)]
    codes = [f"{code:04d}" for code in np.delete(structure.codes, UNKNOWN_STRUCTURE)]
    assert names == (list(structure.three_di.replace("#", "")) if family == "saprot" else codes)
    assert adapter.true_structure(Structure(), 4).tolist() == [-1] * 4
    if family != "saprot":
        with pytest.raises(SequenceError, match=f"0 to {len(adapter.structure_classes) - 1}"):
            adapter.true_structure(Structure(codes=np.array([len(adapter.structure_classes)])), 1)


def test_families_without_a_structure_head_say_so():
    adapter = tiny("esm2")
    assert adapter.structure_classes == ()
    with pytest.raises(NotImplementedError, match="esm2 has no structure head"):
        adapter.read_out_structure(torch.zeros(1, 32))


def test_a_track_of_structures_is_not_read_where_there_is_none():
    adapter = tiny("dplm2")
    with pytest.raises(SequenceError, match="frame 'joint'"):
        adapter.structure_reads(adapter.encode(PROTEIN, frame="single"))
    tokens = adapter.encode(PROTEIN, frame="joint")
    mask = adapter.alphabet.id_of["<mask_struct>"]
    assert (tokens.ids[adapter.structure_reads(tokens)] == mask).all()
