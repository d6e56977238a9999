"""Letters to ids: one id a letter, or an error; never a merged or dropped letter."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plm_depth.models.alphabets import ESM_RESIDUES, ESM_TOKENS, PROGEN2_RESIDUES, PROGEN2_TOKENS, Alphabet
from plm_depth.tables import AMINO_ACIDS

ALPHABETS = {"esm": Alphabet(ESM_TOKENS, ESM_RESIDUES), "progen2": Alphabet(PROGEN2_TOKENS, PROGEN2_RESIDUES)}


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        (
            "esm",
            {"<cls>": 0, "<pad>": 1, "<eos>": 2, "<unk>": 3, "L": 4, "A": 5, "C": 23, "X": 24, "O": 28, "<mask>": 32},
        ),
        ("progen2", {"<|pad|>": 0, "<|bos|>": 1, "<|eos|>": 2, "1": 3, "2": 4, "A": 5, "I": 13, "K": 14, "Z": 29}),
    ],
)
def test_ids_are_the_published_ones(name, ids):
    assert {text: ALPHABETS[name].id_of[text] for text in ids} == ids


@pytest.mark.parametrize("name", ALPHABETS)
@given(data=st.data())
def test_every_letter_has_the_id_of_its_text(name, data):
    alphabet = ALPHABETS[name]
    sequence = data.draw(st.text(alphabet.residues, max_size=40))
    ids = alphabet.encode(sequence)
    assert [alphabet.tokens[i] for i in ids] == list(sequence)


@pytest.mark.parametrize("name", ALPHABETS)
@given(text=st.text(min_size=1, max_size=12))
def test_any_other_text_is_refused(name, text):
    alphabet = ALPHABETS[name]
    if set(text) <= set(alphabet.residues):
        assert len(alphabet.encode(text)) == len(text)
    else:
        with pytest.raises(ValueError):
            alphabet.encode(text)


def test_a_letter_may_be_read_as_another():
    alphabet = Alphabet(ESM_TOKENS, ESM_RESIDUES, read_as={"U": "X"})
    assert alphabet.encode("AU").tolist() == [ESM_TOKENS.index("A"), ESM_TOKENS.index("X")]
    assert [alphabet.vocabulary[i] for i in alphabet.amino_acids] == list(AMINO_ACIDS)
