"""What the stages that run a model share: device, model, shard, views, and how they end."""

import argparse
import json
import logging
import math

import pytest
import torch

from planted import toy
from plm_depth.activations.door import (
    ExtractionError,
    add_model_options,
    check_sequences,
    full_precision,
    loaded,
    read_shard,
    resolve_device,
    running,
    views_for,
    with_structures,
)
from plm_depth.models import registry
from plm_depth.models.describe import describe
from plm_depth.tables import SEQUENCES, TableError, write_table, write_text
from plm_depth.views import View

LOG = logging.getLogger("test")
FORWARD, BACKWARD = View("n2c", math.nan, -1), View("c2n", math.nan, -1)
INPUTS = {"ar": {"directions": ["n2c", "c2n"]}}
PROTEINS = [("P0", "MKV"), ("P1", "ACDEF")]


class OwnError(ValueError):
    """An error of one stage."""


# ----------------------------------------------------------------------------------------------------------------
# How a stage ends


@pytest.mark.parametrize("error", [ExtractionError("too much"), TableError("too much"), OwnError("too much")])
def test_a_foreseen_error_ends_in_one_message_with_the_name_of_the_stage(error):
    with pytest.raises(SystemExit) as ended, running("activations.some", OwnError):
        raise error
    assert ended.value.code == "activations.some: too much"


def test_memory_that_runs_out_while_a_model_is_loaded_is_said():
    with (
        pytest.raises(SystemExit, match=r"^activations.some: out of memory outside of a batch"),
        running("activations.some"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 60 GiB")


@pytest.mark.parametrize("error", [OwnError("a defect"), RuntimeError("a defect"), KeyError("a defect")])
def test_a_defect_keeps_its_traceback(error):
    with pytest.raises(type(error), match="a defect"), running("activations.some"):
        raise error


# ----------------------------------------------------------------------------------------------------------------
# The model


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    registry.save(registry.build("esm2", {"n_blocks": 2, "d_model": 16, "n_heads": 2}), folder / "esm2")
    write_text(json.dumps(describe("tiny", "esm2", folder / "esm2")), folder / "card.json")
    return folder / "card.json"


def options_of(*words: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_model_options(parser)
    return parser.parse_args([str(word) for word in words])


def test_the_model_of_a_card_is_loaded_and_named_in_the_log(card, caplog):
    with caplog.at_level(logging.INFO):
        model_id, adapter = loaded(options_of("--card", card, "--device", "cpu"), LOG)
    assert model_id == "tiny" and adapter.n_blocks == 2 and adapter.device.type == "cpu"
    assert "tiny (esm2, 2 blocks) on cpu, float32" in caplog.text


def test_a_model_that_cannot_be_loaded_names_its_card(card, monkeypatch):
    def load(*_):
        raise ValueError("no GPU is visible")

    monkeypatch.setattr("plm_depth.models.describe.load_from_card", load)
    with pytest.raises(ExtractionError, match=r"card\.json: no GPU is visible"):
        loaded(options_of("--card", card, "--device", "cpu"), LOG)


def test_fewer_than_one_thread_is_refused():
    with pytest.raises(ExtractionError, match="--threads 0: expected at least 1"):
        full_precision(0)


def test_an_absent_device_is_refused_and_auto_takes_what_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == resolve_device("cpu") == "cpu"
    with pytest.raises(ExtractionError, match="no CUDA device"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == "cuda" and resolve_device("cuda:1") == "cuda:1"


# ----------------------------------------------------------------------------------------------------------------
# Proteins, and how they are shown


def write_shard(path, **columns):
    ids, sequences = zip(*PROTEINS)
    table = {
        "sequence_id": list(ids),
        "sequence_hash": ["0"] * len(ids),
        "rank": list(range(len(ids))),
        "n_residues": [len(sequence) for sequence in sequences],
        "sequence": list(sequences),
    }
    write_table(table | columns, SEQUENCES, path)


def test_a_shard_is_read_in_rank_order(tmp_path):
    write_shard(tmp_path / "shard.parquet", rank=[1, 0])
    assert read_shard(tmp_path / "shard.parquet") == PROTEINS[::-1]


def test_a_row_of_another_length_than_its_sequence_is_refused(tmp_path):
    write_shard(tmp_path / "shard.parquet", n_residues=[3, 6])
    with pytest.raises(TableError, match="P1 has 5 residues, its row says 6"):
        read_shard(tmp_path / "shard.parquet")


def test_an_empty_shard_a_protein_twice_and_one_without_a_structure_are_refused():
    with pytest.raises(ExtractionError, match="holds no proteins"):
        check_sequences([])
    with pytest.raises(ExtractionError, match="P0 stands twice"):
        check_sequences([*PROTEINS, PROTEINS[0]])
    with pytest.raises(ExtractionError, match="2 of 2 proteins have no structure: P0, P1;"):
        with_structures(toy(), PROTEINS, {})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("{", "expected a JSON object"),
        ('{"ar": {"directions": ["n2c"]}}', "inputs of objective 'mlm'"),
        ('{"mlm": {"noise": [], "draws": 1, "clean": false}}', "no view is left for toy: 0 asked for"),
        ('{"mlm": {"noise": [0.15]}}', "noise, draws, clean"),
    ],
)
def test_wrong_inputs_are_refused_with_what_was_expected(inputs, message):
    with pytest.raises(ExtractionError, match=message):
        views_for(toy(), inputs)


def test_an_unknown_direction_is_refused_and_one_that_the_model_does_not_read_left_out(caplog):
    adapter = toy(variant="causal")
    assert views_for(adapter, json.dumps(INPUTS), LOG) == [FORWARD, BACKWARD] and not caplog.text
    with pytest.raises(ExtractionError, match=r"directions \['sideways'\]: expected n2c or c2n"):
        views_for(adapter, '{"ar": {"directions": ["n2c", "sideways"]}}')
    adapter.directions = ("n2c",)
    with caplog.at_level(logging.WARNING):
        assert views_for(adapter, json.dumps(INPUTS), LOG) == [FORWARD]
    assert "toy does not read c2n: left out" in caplog.text
    with pytest.raises(ExtractionError, match="no view is left for toy: 1 asked for"):
        views_for(adapter, '{"ar": {"directions": ["c2n"]}}')
