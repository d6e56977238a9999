"""Cards: what a checkpoint is, and that later stages open exactly those bytes."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from plm_depth.models import describe, manifest
from plm_depth.models.base import CheckpointError

FIXTURES = Path(__file__).parents[2] / "fixtures"


def write_card(folder: Path, output: Path, family: str = "progen2", **options: str) -> dict:
    arguments = ["--model", "tiny", "--family", family, "--folder", str(folder), "--output", str(output)]
    for name, value in options.items():
        arguments += [f"--{name}", value]
    describe.main(arguments)
    return json.loads(output.read_text())


@pytest.fixture
def described(tmp_path):
    folder = Path(shutil.copytree(FIXTURES / "progen2/authors", tmp_path / "checkpoint"))
    output = tmp_path / "cards" / "tiny.json"
    write_card(folder, output)
    return folder, output


def test_a_card_tells_sizes_bytes_and_the_self_check(described):
    folder, output = described
    card = describe.read_card(output)
    assert set(card) == {*describe.CARD, describe.BY_DEPTH}
    assert (card["family"], card["objective"], card["n_blocks"], card["d_model"]) == ("progen2", "ar", 3, 64)
    assert (card["n_vocabulary"], card["max_residues"], card["directions"]) == (30, 62, ["n2c", "c2n"])
    assert 0 <= card["self_check"] <= 1e-6
    assert [entry["name"] for entry in card["files"]] == ["config.json", "pytorch_model.bin"]  # nothing it did not read
    for entry in card["files"]:
        content = (folder / entry["name"]).read_bytes()
        assert entry["bytes"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert {"torch", "transformers", "plm_depth"} <= set(card["versions"])


def test_the_files_of_a_fair_esm_checkpoint_are_both(tmp_path):
    card = write_card(FIXTURES / "esm2/fair_esm", tmp_path / "card.json", family="esm2")
    assert [entry["name"] for entry in card["files"]] == [
        "esm2_t5_tiny_UR50D-contact-regression.pt",
        "esm2_t5_tiny_UR50D.pt",
    ]


def test_a_model_opens_through_its_card_in_the_cards_dtype(tmp_path):
    write_card(FIXTURES / "esm2/hub", tmp_path / "card.json", family="esm2", dtype="bfloat16", revision="abc")
    assert describe.read_card(tmp_path / "card.json")["revision"] == "abc"
    adapter = describe.load_from_card(tmp_path / "card.json", digests=True)
    assert (adapter.family, adapter.dtype, adapter.n_blocks) == ("esm2", "bfloat16", 5)


def fetched(folder: Path, **source: str) -> None:
    """Leave the manifest of a download in a folder."""
    digests = {path.name: manifest.digest_of(path) for path in folder.iterdir()}
    manifest.write(folder, source, digests)


def test_the_commit_of_a_fetched_checkpoint_comes_from_its_manifest(described):
    folder, output = described
    assert describe.read_card(output)["revision"] == "local"
    fetched(folder, repo="org/name", revision="0" * 40)
    assert write_card(folder, output, revision="none")["revision"] == "0" * 40
    (folder / manifest.MANIFEST).unlink()
    fetched(folder, archive="https://host/a.tar", sha256="1" * 64)
    assert write_card(folder, output, revision="none")["revision"] == f"archive {'1' * 64}"


def test_a_checkpoint_that_changed_since_it_was_fetched_is_not_described(described):
    folder, output = described
    fetched(folder, repo="org/name", revision="0" * 40)
    with open(folder / "config.json", "a") as file:
        file.write("\n")
    with pytest.raises(SystemExit, match=r"config\.json: changed since it was fetched .*remove .* and run again"):
        write_card(folder, output)


def test_a_file_of_another_size_is_noticed(described):
    folder, output = described
    with open(folder / "config.json", "a") as file:
        file.write("\n")
    with pytest.raises(CheckpointError, match=r"config\.json: not the file that the card of tiny describes"):
        describe.load_from_card(output)


def test_other_bytes_of_the_same_size_are_noticed_when_digests_are_asked_for(described):
    folder, output = described
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"n_positions": 64', '"n_positions": 48'))
    assert describe.load_from_card(output).max_residues == 46
    with pytest.raises(CheckpointError, match="describe the checkpoint again"):
        describe.load_from_card(output, digests=True)


def test_a_file_that_is_gone_is_noticed(described):
    folder, output = described
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: gone since tiny was described"):
        describe.load_from_card(output)


@pytest.mark.parametrize(("key", "value"), [("n_blocks", "3"), ("files", None), ("versions", [])])
def test_a_card_with_a_wrong_entry_is_refused(described, key, value):
    _, output = described
    card = json.loads(output.read_text())
    card[key] = value
    output.write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match=f"not the card of a checkpoint: '{key}' should be"):
        describe.read_card(output)


@pytest.mark.parametrize(
    ("family", "folder", "said"),
    [
        ("esm3000", "esm2/hub", "unknown family 'esm3000'"),
        ("dplm", "esm2/hub", "is this a checkpoint of another family"),
        ("esm2", "nowhere", "no such file"),
    ],
)
def test_a_foreseeable_failure_ends_in_one_message_and_writes_nothing(tmp_path, family, folder, said):
    with pytest.raises(SystemExit, match=f"describing tiny failed: .*{said}"):
        write_card(FIXTURES / folder, tmp_path / "card.json", family=family)
    assert list(tmp_path.iterdir()) == []
