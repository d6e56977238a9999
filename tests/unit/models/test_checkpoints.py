"""Reading checkpoints strictly: whatever is wrong with one is said, with the name of the file and the tensor."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from plm_depth.models import checkpoints, registry
from plm_depth.models.base import CheckpointError

FIXTURES = Path(__file__).parents[2] / "fixtures"
QUERY = "esm.encoder.layer.1.attention.self.query.weight"


@pytest.fixture
def esm2(tmp_path):
    """A writable copy of the hub checkpoint and a function that changes its tensors."""
    folder = tmp_path / "esm2"
    shutil.copytree(FIXTURES / "esm2/hub", folder)

    def change(edit):
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return folder, change


@pytest.fixture
def dplm(tmp_path):
    folder = tmp_path / "dplm"
    shutil.copytree(FIXTURES / "dplm/hub", folder)
    return folder


def test_a_missing_tensor_is_named(esm2):
    folder, change = esm2
    change(lambda tensors: tensors.pop(QUERY))
    with pytest.raises(CheckpointError, match=rf"esm2/config.json: .*missing: {QUERY}"):
        registry.load("esm2", folder)


def test_an_extra_tensor_is_named(esm2):
    folder, change = esm2
    change(lambda tensors: tensors.update({"esm.encoder.layer.5.adapter.weight": torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=r"unexpected: esm\.encoder\.layer\.5\.adapter\.weight"):
        registry.load("esm2", folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(esm2, value):
    folder, change = esm2
    change(lambda tensors: tensors[QUERY].view(-1)[7:8].fill_(value))
    with pytest.raises(CheckpointError, match=f"{QUERY} holds NaN or inf"):
        registry.load("esm2", folder)


def test_a_wrong_shape_is_named_with_both_shapes(esm2):
    folder, change = esm2
    change(lambda tensors: tensors.update({QUERY: torch.zeros(32, 31)}))
    with pytest.raises(CheckpointError, match=rf"{QUERY} has shape \(32, 31\), expected \(32, 32\)"):
        registry.load("esm2", folder)


def test_all_that_is_wrong_comes_in_one_message(esm2):
    folder, change = esm2

    def edit(tensors):
        del tensors[QUERY]
        tensors["stray"] = torch.zeros(1)
        tensors["lm_head.bias"][0] = float("nan")

    change(edit)
    with pytest.raises(CheckpointError) as caught:
        registry.load("esm2", folder)
    for part in (QUERY, "stray", "lm_head.bias holds NaN"):
        assert part in str(caught.value)


def test_an_unused_tensor_and_an_absent_contact_head_do_no_harm(esm2):
    folder, change = esm2
    whole = registry.load("esm2", folder)

    def edit(tensors):
        for name in ("esm.embeddings.position_ids", "esm.embeddings.position_embeddings.weight"):
            del tensors[name]
        del tensors["esm.contact_head.regression.weight"], tensors["esm.contact_head.regression.bias"]

    change(edit)
    lean = registry.load("esm2", folder)
    for name, value in whole.module.state_dict().items():
        other = lean.module.state_dict()[name]
        assert torch.equal(other, torch.zeros_like(value) if "contact_head" in name else value)


def test_a_tied_matrix_may_be_stored_twice_but_not_differ(esm2):
    folder, change = esm2
    words = "esm.embeddings.word_embeddings.weight"
    change(lambda tensors: tensors.update({"lm_head.decoder.weight": tensors[words].clone()}))
    registry.load("esm2", folder)
    change(lambda tensors: tensors["lm_head.decoder.weight"][3, 3].add_(1.0))
    with pytest.raises(CheckpointError, match=r"lm_head\.decoder\.weight are one matrix .*, but differ"):
        registry.load("esm2", folder)


def test_rotary_frequencies_of_the_file_are_kept_and_must_agree_between_layers(esm2):
    folder, change = esm2
    stored = load_file(folder / "model.safetensors")
    name = "esm.encoder.layer.{}.attention.self.rotary_embeddings.inv_freq"
    adapter = registry.load("esm2", folder, dtype="bfloat16")
    kept = adapter.module.esm.rotary_embeddings.inv_freq
    assert kept.dtype == torch.float32
    assert torch.equal(kept, stored[name.format(0)])
    assert not torch.equal(
        kept, adapter.module.esm.rotary_embeddings.compute_default_rope_parameters(adapter.module.config)[0]
    )
    change(lambda tensors: tensors[name.format(2)].mul_(1.01))
    with pytest.raises(CheckpointError, match=r"inv_freq .*should be copies of one tensor, but differ"):
        registry.load("esm2", folder)


def test_absent_rotary_frequencies_are_computed_and_said(esm2, caplog):
    folder, change = esm2
    change(lambda tensors: [tensors.pop(name) for name in list(tensors) if "inv_freq" in name])
    registry.load("esm2", folder)
    assert "no rotary frequencies in the file" in caplog.text


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model_type", "bert", "model_type is 'bert', but esm2 has 'esm'"),
        ("vocab_size", 446, "vocab_size is 446, but esm2 has 33"),
        ("position_embedding_type", "absolute", "position_embedding_type is 'absolute', but esm2 has 'rotary'"),
        ("hidden_act", "relu", "hidden_act is 'relu', but esm2 has 'gelu'"),
        ("is_folding_model", True, "is_folding_model is True"),
        ("dplm_type", "dplm_esm", "this is a checkpoint of family dplm"),
        ("num_hidden_layers", None, "no 'num_hidden_layers'"),
    ],
)
def test_a_config_of_another_architecture_is_refused(esm2, key, value, said):
    folder, _ = esm2
    config = json.loads((folder / "config.json").read_text())
    config[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=said):
        registry.load("esm2", folder)


@pytest.mark.parametrize(
    ("family", "folder"),
    [(f, d) for f in ("esm2", "dplm", "progen2") for d in ("esm2/hub", "dplm/hub", "progen2/authors") if f not in d],
)
def test_a_checkpoint_of_another_family_is_refused(family, folder):
    with pytest.raises(CheckpointError, match=r"another family|of family"):
        registry.load(family, FIXTURES / folder)


def test_a_config_that_is_not_json_is_refused(esm2):
    folder, _ = esm2
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: not readable as JSON"):
        registry.load("esm2", folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="a JSON object was expected, it holds list"):
        registry.load("esm2", folder)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("name", ["esm2/hub/model.safetensors", "dplm/hub/pytorch_model.bin"])
def test_a_truncated_file_is_refused(tmp_path, name, share):
    source = FIXTURES / name
    folder = tmp_path / "cut"
    shutil.copytree(source.parent, folder)
    path = folder / source.name
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(CheckpointError, match=rf"{source.name}: (not a readable|refused)"):
        registry.load(name.split("/")[0], folder)


def test_a_folder_without_weights_says_what_it_has(tmp_path):
    (tmp_path / "config.json").write_text((FIXTURES / "esm2/hub/config.json").read_text())
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor pytorch_model\.bin .*config\.json"):
        registry.load("esm2", tmp_path)
    with pytest.raises(CheckpointError, match="no such"):
        registry.load("esm2", tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------------------------ pickles


class Malicious:
    """Unpickled by plain pickle this creates a file; nothing here may ever do so."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_is_refused_and_named_and_not_run(dplm, tmp_path, legacy):
    trap = tmp_path / "trap"
    torch.save(
        {"a": torch.zeros(1), "b": Malicious(trap)},
        dplm / "pytorch_model.bin",
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: refused.* it holds \w+\.mkdir"):
        registry.load("dplm", dplm)
    assert not trap.exists()


def test_a_bare_pickle_with_code_is_refused(dplm, tmp_path):
    trap = tmp_path / "trap"
    (dplm / "pytorch_model.bin").write_bytes(pickle.dumps({"b": Malicious(trap)}))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: refused"):
        registry.load("dplm", dplm)
    assert not trap.exists()


def test_a_fair_esm_file_with_code_is_refused_and_not_run(tmp_path):
    trap = tmp_path / "trap"
    for source in (FIXTURES / "esm2/fair_esm").iterdir():
        shutil.copy(source, tmp_path)
    torch.save({"cfg": Malicious(trap), "model": {}}, tmp_path / "esm2_t5_tiny_UR50D.pt")
    with pytest.raises(CheckpointError, match=r"esm2_t5_tiny_UR50D\.pt: refused.* it holds \w+\.mkdir"):
        registry.load("esm2", tmp_path)
    assert not trap.exists()


def test_a_pickle_of_something_else_is_refused(dplm):
    torch.save([torch.zeros(1)], dplm / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="a dict of tensors was expected, it holds list"):
        registry.load("dplm", dplm)
    torch.save({"a": 1, "b": torch.zeros(1)}, dplm / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="a dict of tensors was expected; a are none"):
        registry.load("dplm", dplm)


def test_a_pickle_in_the_old_format_is_read(dplm):
    reference = registry.load("dplm", dplm).module.state_dict()
    path = dplm / "pytorch_model.bin"
    tensors = torch.load(path, weights_only=True)
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    again = registry.load("dplm", dplm).module.state_dict()
    assert all(torch.equal(reference[name], again[name]) for name in reference)


def test_a_fair_esm_file_without_its_regression_says_which_file_is_missing(tmp_path):
    shutil.copy(FIXTURES / "esm2/fair_esm/esm2_t5_tiny_UR50D.pt", tmp_path)
    with pytest.raises(CheckpointError, match=r"fair-esm needs .*esm2_t5_tiny_UR50D-contact-regression\.pt beside it"):
        registry.load("esm2", tmp_path)


def test_a_renamed_fair_esm_file_is_refused(tmp_path):
    shutil.copy(FIXTURES / "esm2/fair_esm/esm2_t5_tiny_UR50D.pt", tmp_path / "mine.pt")
    shutil.copy(
        FIXTURES / "esm2/fair_esm/esm2_t5_tiny_UR50D-contact-regression.pt", tmp_path / "mine-contact-regression.pt"
    )
    with pytest.raises(CheckpointError, match="keep the published file name"):
        registry.load("esm2", tmp_path)


def test_two_fair_esm_files_in_one_folder_are_refused(tmp_path):
    for name in ("esm2_a", "esm2_b"):
        shutil.copy(FIXTURES / "esm2/fair_esm/esm2_t5_tiny_UR50D.pt", tmp_path / f"{name}.pt")
    with pytest.raises(CheckpointError, match=r"one \.pt checkpoint was expected, there are 2"):
        registry.load("esm2", tmp_path)


# ------------------------------------------------------------------------------------------------------------- shards


def shard(folder: Path, suffix: str) -> dict[str, str]:
    """Split the weights of a folder over three shards with an index; return the map of names."""
    single = folder / {"safetensors": "model.safetensors", "bin": "pytorch_model.bin"}[suffix]
    tensors = checkpoints.read_weights(folder)
    tensors = {name: value.clone() for name, value in tensors.items()}
    single.unlink()
    where = {}
    for number in range(3):
        part = dict(list(sorted(tensors.items()))[number::3])
        name = f"{single.stem}-0000{number + 1}-of-00003.{suffix}"
        (save_file if suffix == "safetensors" else torch.save)(part, folder / name)
        where.update(dict.fromkeys(part, name))
    (folder / f"{single.name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return where


@pytest.mark.parametrize(
    ("family", "source", "suffix"), [("esm2", "esm2/hub", "safetensors"), ("dplm", "dplm/hub", "bin")]
)
def test_shards_are_read_as_one(tmp_path, family, source, suffix):
    reference = registry.load(family, FIXTURES / source).module.state_dict()
    folder = tmp_path / family
    shutil.copytree(FIXTURES / source, folder)
    where = shard(folder, suffix)
    again = registry.load(family, folder).module.state_dict()
    assert all(torch.equal(reference[name], again[name]) for name in reference)
    files = [path.name for path in registry.adapter_class(family).files(folder)]
    assert len(files) == 5 and set(where.values()) < set(files)

    gone = folder / sorted(set(where.values()))[1]
    gone.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=rf"names \['{gone.name}'\], which are not in the folder"):
        registry.load(family, folder)
    (tmp_path / "elsewhere").rename(gone)

    index = next(folder.glob("*.index.json"))
    extra = {**where, "ghost": gone.name}
    index.write_text(json.dumps({"weight_map": extra}))
    with pytest.raises(CheckpointError, match="only in the index: ghost"):
        registry.load(family, folder)
    index.write_text(json.dumps({"weight_map": {**where, "ghost": "../../secret.bin"}}))
    with pytest.raises(CheckpointError, match="are not names of files in the same folder"):
        registry.load(family, folder)
    index.write_text(json.dumps({"metadata": {}}))
    with pytest.raises(CheckpointError, match="no 'weight_map'"):
        registry.load(family, folder)


# ------------------------------------------------------------------------------------------------------------ filling


def test_an_unknown_dtype_is_refused():
    with pytest.raises(CheckpointError, match="dtype 'float8'; expected one of float32"):
        registry.load("esm2", FIXTURES / "esm2/hub", dtype="float8")


def test_half_precision_touches_linear_maps_only_and_not_a_tied_one():
    module = registry.load("esm2", FIXTURES / "esm2/hub", dtype="bfloat16").module
    layer = module.esm.encoder.layer[0]
    assert layer.intermediate.dense.weight.dtype == torch.bfloat16
    assert layer.LayerNorm.weight.dtype == torch.float32
    assert module.esm.embeddings.word_embeddings.weight.dtype == torch.float32
    assert module.lm_head.decoder.weight is module.esm.embeddings.word_embeddings.weight


def test_writing_is_whole_or_not_at_all_and_deterministic(tmp_path):
    tensors = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.ones(2)}
    for write, name in ((checkpoints.write_pickle, "x.bin"), (checkpoints.write_safetensors, "x.safetensors")):
        write(tensors, tmp_path / name)
        first = (tmp_path / name).read_bytes()
        write(tensors, tmp_path / name)
        assert (tmp_path / name).read_bytes() == first
        with pytest.raises(AttributeError):
            write({"a": "no tensor"}, tmp_path / name)
        assert (tmp_path / name).read_bytes() == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.bin", "x.safetensors"]
