"""The families on EsmForMaskedLM: fair-esm's files of ESM-1b and ESM-1v, token dropout, SaProt's joint tokens."""

import argparse
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from plm_depth.models import registry, saprot, verify
from plm_depth.models.base import CheckpointError, SequenceError, Structure
from plm_depth.tables import AMINO_ACIDS

FIXTURES = Path(__file__).parents[2] / "fixtures"
PROTEIN = "MKTAYIAKQRQISFVK"


# ------------------------------------------------------------------------------------------- fair-esm's .pt of ESM-1x


def write_esm1(folder: Path, name: str, *, norm_before: bool):
    """Write a random ESM-1b or ESM-1v as fair-esm publishes it, and return fair-esm's model of it."""
    import esm

    torch.manual_seed(4)
    arguments = {"arch": "roberta_large", "max_positions": 1024, "token_dropout": True}
    sizes = {"layers": 3, "embed_dim": 32, "ffn_embed_dim": 128, "attention_heads": 4}
    alphabet = esm.Alphabet.from_architecture("roberta_large")
    namespace = argparse.Namespace(**arguments, **sizes, emb_layer_norm_before=norm_before)
    model = esm.ProteinBertModel(namespace, alphabet).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
        model.embed_tokens.weight[alphabet.mask_idx].zero_()
    published = argparse.Namespace(**arguments, **{f"encoder_{key}": value for key, value in sizes.items()})
    state, contact = {}, {}
    for key, value in model.state_dict().items():
        if key.startswith("contact_head"):
            contact[key] = value
        else:
            prefix = "encoder." if key.startswith("lm_head") else "encoder.sentence_encoder."
            state[prefix + key] = value
    torch.save({"args": published, "model": state}, folder / f"{name}.pt")
    torch.save({"model": contact}, folder / f"{name}-contact-regression.pt")
    return model, alphabet


@pytest.mark.parametrize(
    ("family", "name", "norm_before"),
    [("esm1b", "esm1b_t3_tiny_UR50S", True), ("esm1v", "esm1v_t3_tiny_UR90S_1", False)],
)
def test_a_fair_esm_file_of_esm1_gives_fair_esms_logits(tmp_path, family, name, norm_before):
    oracle, alphabet = write_esm1(tmp_path, name, norm_before=norm_before)
    adapter = registry.load(family, tmp_path)
    assert (adapter.module.esm.embeddings.layer_norm is not None) == norm_before
    masked = np.arange(len(PROTEIN)) % 5 == 1
    shown = "".join("<mask>" if hide else letter for letter, hide in zip(PROTEIN, masked, strict=True))
    _, _, ids = alphabet.get_batch_converter()([("a", shown), ("b", "GSHML")])
    batch = adapter.collate([adapter.encode(PROTEIN, masked=masked), adapter.encode("GSHML")])
    assert torch.equal(ids, batch.ids)
    found = verify.walk(adapter, batch)
    with torch.inference_mode():
        theirs = oracle(ids, repr_layers=[0, 1, 2])
    keep = batch.valid
    torch.testing.assert_close(found["logits"][keep], theirs["logits"][keep], rtol=1e-4, atol=1e-4)
    for layer in range(3):
        state = theirs["representations"][layer]
        torch.testing.assert_close(found["x"][layer][keep], state[keep], rtol=1e-4, atol=1e-4)


def test_a_fair_esm_file_of_esm1b_is_not_esm2(tmp_path):
    write_esm1(tmp_path, "esm1b_t3_tiny_UR50S", norm_before=True)
    with pytest.raises(CheckpointError):
        registry.load("esm2", tmp_path)
    for path in list(tmp_path.iterdir()):
        path.unlink()
    for path in (FIXTURES / "esm2/fair_esm").iterdir():
        shutil.copy(path, tmp_path)
    with pytest.raises(CheckpointError):
        registry.load("esm1b", tmp_path)


def test_positions_limit_the_length_of_esm1(tmp_path):
    adapter = registry.load("esm1b", FIXTURES / "esm1b/hub")
    assert adapter.max_residues == 1022
    batch = adapter.collate([adapter.encode("A" * 1022)])
    with torch.inference_mode():
        assert torch.isfinite(adapter.library_logits(batch)).all()  # the last row of the position table


# ----------------------------------------------------------------------------------------------------- token dropout


@pytest.mark.parametrize("family", ["esm2", "dplm"])
def test_masked_residues_of_rotary_models_start_at_zero_and_the_others_are_scaled(family):
    adapter = registry.load(family, FIXTURES / family / "hub")
    masked = np.isin(np.arange(len(PROTEIN)), [1, 4, 7])
    with torch.inference_mode():
        hidden, _ = adapter.embed(adapter.collate([adapter.encode(PROTEIN, masked=masked)]))
    tokens = adapter.encode(PROTEIN, masked=masked)
    table = adapter.module.esm.embeddings.word_embeddings.weight
    scale = 0.88 / (1 - 3 / (len(PROTEIN) + 2))
    by_hand = table[torch.from_numpy(tokens.ids)] * scale
    by_hand[tokens.residue_tokens[masked]] = 0
    torch.testing.assert_close(hidden[0], by_hand)
    assert (hidden[0, tokens.residue_tokens[masked]] == 0).all()


# ------------------------------------------------------------------------------------------------------------ SaProt


@pytest.fixture(scope="module")
def joint():
    return registry.load("saprot", FIXTURES / "saprot/hub")


@pytest.mark.parametrize(("pair", "token"), [("M#", 235), ("Ev", 78), ("Vp", 362), ("##", 445), ("Ap", 5)])
def test_joint_tokens_have_the_published_ids(joint, pair, token):
    assert joint.alphabet.id_of[pair] == token
    sequence, options = joint.parse(pair)
    assert list(joint.encode(sequence, **options).ids) == [0, token, 2]


def test_what_each_condition_shows(joint):
    structure = Structure(three_di="pv#d")
    masked = np.array([False, True, False, False])

    def shown(**options):
        ids = joint.encode("MEVA", **options).ids[1:-1]
        return [joint.alphabet.tokens[i] for i in ids]

    assert shown() == ["M#", "E#", "V#", "A#"]
    assert [joint.alphabet.tokens[i] for i in joint.encode("MXBUZO#").ids[1:-1]] == ["M#", *["##"] * 6]
    assert shown(masked=masked) == ["M#", "##", "V#", "A#"]
    assert shown(masked=masked, struct_at_mask="hide") == ["M#", "<mask>", "V#", "A#"]
    both = {"structure": structure, "condition": "seq_struct"}
    assert shown(**both) == ["Mp", "Ev", "V#", "Ad"]
    assert shown(**both, masked=masked) == ["Mp", "#v", "V#", "Ad"]
    assert shown(**both, masked=masked, struct_at_mask="hide") == ["Mp", "<mask>", "V#", "Ad"]
    assert shown(structure=structure, condition="struct") == ["#p", "#v", "##", "#d"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"condition": "seq_struct"}, "needs the structure's three_di"),
        ({"condition": "seq_struct", "structure": Structure(three_di="pv")}, "2 entries of three_di for 4 residues"),
        ({"condition": "seq_struct", "structure": Structure(three_di="PVDD")}, "3Di state 'P' at position 0"),
        ({"condition": "all"}, "condition 'all'; saprot can be shown seq or seq_struct or struct"),
        ({"struct_at_mask": "maybe"}, "struct_at_mask 'maybe'"),
    ],
)
def test_a_condition_without_its_structure_is_refused(joint, options, said):
    with pytest.raises(SequenceError, match=said):
        joint.encode("MEVA", **options)


def test_the_read_out_sums_each_amino_acid_over_its_states(joint):
    logits = torch.randn(3, 446)
    joint_probabilities = logits.double().softmax(-1)
    columns = torch.tensor(list(joint.vocabulary))
    probabilities = saprot.merged(logits)[:, columns].double().softmax(-1)
    for column, text in enumerate(joint.vocabulary.values()):
        same = [i for i, token in enumerate(joint.alphabet.tokens) if token == text or (i > 4 and token[0] == text)]
        assert len(same) == (1 if text.startswith("<") else 21)
        torch.testing.assert_close(probabilities[:, column], joint_probabilities[:, same].sum(-1), rtol=1e-5, atol=1e-9)
    whole = saprot.merged(logits).double().softmax(-1)  # columns that were summed away carry nothing
    torch.testing.assert_close(whole[:, columns], probabilities)
    assert [joint.vocabulary[i] for i in joint.residue_ids] == list(AMINO_ACIDS)


def test_a_saprot_file_without_its_two_parts_is_refused(tmp_path):
    torch.save({"model": {}}, tmp_path / "SaProt.pt")
    with pytest.raises(CheckpointError, match="a dict with 'model' and 'config' was expected"):
        registry.load("saprot", tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"model": {"a": 1}, "config": {}}, tmp_path / "SaProt.pt")
    with pytest.raises(CheckpointError, match="a are none"):
        registry.load("saprot", tmp_path)
