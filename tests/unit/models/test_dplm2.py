"""DPLM-2's own parts: two tracks, their tokens and positions, and the double embedding."""

from pathlib import Path

import numpy as np
import pytest
import torch

from plm_depth.models import dplm2, registry, verify
from plm_depth.models.base import SequenceError, Structure

FIXTURES = Path(__file__).parents[2] / "fixtures"
SEQUENCE = "MKVLAW"
CODES = Structure(codes=np.array([0, 8191, 17, -1, 5, 4096]))


@pytest.fixture(scope="module")
def adapter():
    return registry.load("dplm2", FIXTURES / "dplm2/hub")


@pytest.mark.parametrize(
    ("text", "token"),
    [
        *[("<cls_aa>", 0), ("<pad>", 1), ("<eos_aa>", 2), ("<unk_aa>", 3), ("L", 4), ("<mask_aa>", 32)],
        *[("<cls_struct>", 33), ("<eos_struct>", 34), ("<unk_struct>", 35)],
        *[("0000", 36), ("8191", 8227), ("<mask_struct>", 8228)],
    ],
)
def test_tokens_have_the_ids_of_the_networks_rows(text, token):
    assert dplm2.TOKENS.index(text) == token
    assert len(dplm2.TOKENS) == 8229


def test_a_sequence_alone_is_one_track(adapter):
    tokens = adapter.encode(SEQUENCE, masked=np.arange(6) == 2)
    assert [dplm2.TOKENS[i] for i in tokens.ids] == ["<cls_aa>", "M", "K", "<mask_aa>", "L", "A", "W", "<eos_aa>"]
    assert list(tokens.extra["position_ids"]) == list(range(8))


def test_both_tracks_share_positions_and_residues_are_read_in_the_second(adapter):
    tokens = adapter.encode(SEQUENCE, structure=CODES, condition="seq_struct")
    texts = [dplm2.TOKENS[i] for i in tokens.ids]
    assert texts[:8] == ["<cls_struct>", "0000", "8191", "0017", "<mask_struct>", "0005", "4096", "<eos_struct>"]
    assert texts[8:] == ["<cls_aa>", *SEQUENCE, "<eos_aa>"]
    assert list(tokens.extra["position_ids"]) == [*range(8), *range(8)]
    assert "".join(texts[i] for i in tokens.residue_tokens) == SEQUENCE


def test_what_is_hidden_in_each_condition(adapter):
    masked = np.arange(6) == 1

    def hidden(**options):
        texts = [dplm2.TOKENS[i] for i in adapter.encode(SEQUENCE, **options).ids]
        return [i for i in range(6) if texts[1 + i] == "<mask_struct>"], [
            i for i in range(6) if texts[9 + i] == "<mask_aa>"
        ]

    assert hidden(masked=masked, structure=CODES, condition="seq_struct") == ([3], [1])
    assert hidden(masked=masked, structure=CODES, condition="seq_struct", struct_at_mask="hide") == ([1, 3], [1])
    assert hidden(structure=CODES, condition="struct") == ([3], list(range(6)))
    assert hidden(masked=masked, frame="joint") == (list(range(6)), [1])
    assert adapter.encode(SEQUENCE, structure=CODES, condition="struct").masked.all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"condition": "seq_struct"}, "needs the structure's codes"),
        ({"condition": "seq_struct", "structure": Structure(codes=np.arange(5))}, "5 entries of codes for 6 residues"),
        (
            {"condition": "seq_struct", "structure": Structure(codes=np.full(6, 8192))},
            "structure codes from 8192 to 8192",
        ),
        ({"condition": "seq_struct", "structure": Structure(codes=np.full(6, -2))}, "structure codes from -2"),
        ({"frame": "triple"}, "frame 'triple'"),
    ],
)
def test_tracks_that_cannot_be_are_refused(adapter, options, said):
    with pytest.raises(SequenceError, match=said):
        adapter.encode(SEQUENCE, **options)


def test_token_dropout_acts_twice(adapter):
    masked = np.arange(6) == 1
    tokens = adapter.encode(SEQUENCE, masked=masked, structure=CODES, condition="seq_struct")
    with torch.inference_mode():
        stream, _ = adapter.embed(adapter.collate([tokens]))
    table = adapter.module.esm.embeddings.word_embeddings.weight
    scale = 0.88 / (1 - 1 / 16)  # one residue mask among the tokens of both tracks
    by_hand = table[torch.from_numpy(tokens.ids)] * scale**2
    by_hand[tokens.residue_tokens[1]] = 0
    torch.testing.assert_close(stream[0], by_hand)


def test_joint_frames_alone_and_in_a_padded_batch_agree(adapter):
    long = adapter.encode(SEQUENCE, structure=CODES, condition="seq_struct")
    short = adapter.encode("MKV", structure=Structure(codes=np.array([3, 2, 1])), condition="seq_struct")
    together = verify.walk(adapter, adapter.collate([long, short]))["x"][:, 1, : short.n_tokens]
    alone = verify.walk(adapter, adapter.collate([short]))["x"][:, 0]
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-5 * float(alone.abs().max()))
    # and the structure matters
    other = adapter.encode("MKV", structure=Structure(codes=np.array([3, 2, 7])), condition="seq_struct")
    changed = verify.walk(adapter, adapter.collate([other]))["x"][-1, 0, short.residue_tokens]
    assert (changed - alone[-1, short.residue_tokens]).abs().max() > 1e-3
