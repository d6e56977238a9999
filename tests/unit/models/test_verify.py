"""The ``verify`` command: whoever adds a family or fetches a checkpoint compares it with numbers."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from plm_depth.__main__ import main

FIXTURES = Path(__file__).parents[2] / "fixtures"
WORKFLOW = Path(__file__).parents[3] / "workflow"


@pytest.fixture
def numbers(tmp_path):
    """A writable copy of expected numbers."""
    for name in ("expected.json", "expected.safetensors"):
        shutil.copy(FIXTURES / "dplm" / name, tmp_path)
    return tmp_path


def verify(numbers: Path, family: str = "dplm", checkpoint: str = "dplm/hub") -> int:
    return main(["verify", family, str(FIXTURES / checkpoint), str(numbers)])


def test_a_right_checkpoint_prints_every_tensor_beside_its_tolerance(numbers, capsys):
    assert verify(numbers) == 0
    lines = capsys.readouterr().out.splitlines()
    about = json.loads((numbers / "expected.json").read_text())
    for name, case in about["cases"].items():
        for tensor, tolerance in case["tolerance"].items():
            assert any(line.split()[:2] == [name, tensor] and f"{tolerance:.2g}" in line for line in lines)
    assert lines[-1].endswith("0 beyond tolerance")


@pytest.mark.parametrize("tensor", ["x", "attn", "mlp", "final_norm", "logits"])
def test_one_number_beyond_tolerance_is_status_1(numbers, capsys, tensor):
    tensors = load_file(numbers / "expected.safetensors")
    about = json.loads((numbers / "expected.json").read_text())
    value = tensors[f"batch/{tensor}"]
    value[(0,) * value.ndim] += 3 * about["cases"]["batch"]["tolerance"][tensor]
    save_file(tensors, numbers / "expected.safetensors")
    assert verify(numbers) == 1
    beyond = [line for line in capsys.readouterr().out.splitlines() if "BEYOND" in line]
    assert [line.split()[:2] for line in beyond] == [["batch", tensor]]


def test_a_number_that_is_nan_is_beyond_tolerance(numbers):
    tensors = load_file(numbers / "expected.safetensors")
    tensors["single/logits"][0, 1, 1] = float("nan")
    save_file(tensors, numbers / "expected.safetensors")
    assert verify(numbers) == 1


def test_positions_that_are_not_valid_are_not_compared(numbers):
    tensors = load_file(numbers / "expected.safetensors")
    hidden = ~tensors["batch/valid"].bool()
    assert hidden.any()
    tensors["batch/logits"][hidden] = 1e6
    save_file(tensors, numbers / "expected.safetensors")
    assert verify(numbers) == 0


def test_other_token_ids_are_beyond_tolerance(numbers, capsys):
    about = json.loads((numbers / "expected.json").read_text())
    about["cases"]["single"]["sequences"][0] = about["cases"]["single"]["sequences"][0][::-1]
    (numbers / "expected.json").write_text(json.dumps(about))
    assert verify(numbers) == 1
    assert "single             rows of other tokens" in capsys.readouterr().out


def test_a_checkpoint_of_other_weights_is_status_1(numbers, tmp_path):
    folder = Path(shutil.copytree(FIXTURES / "dplm/hub", tmp_path / "hub"))
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    tensors["esm.encoder.layer.2.output.dense.bias"][4] += 0.01
    torch.save(tensors, folder / "pytorch_model.bin")
    assert main(["verify", "dplm", str(folder), str(numbers)]) == 1


def esm3(folder: Path) -> int:
    return main(["verify", "esm3", str(folder), str(FIXTURES / "esm3")])


def test_the_structure_encoder_beside_esm3_is_compared_too(capsys, tmp_path):
    assert esm3(FIXTURES / "esm3/pth") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    compared = {" ".join(line[1:-2]): line[-2:] for line in lines if line[0] == "structure_encoder"}
    assert compared["pre_quantisation"][1] == "0.00032" and compared["residues of other codes"] == ["0", "0"]
    assert float(compared["pre_quantisation"][0]) <= 0.00032

    folder = Path(shutil.copytree(FIXTURES / "esm3/pth", tmp_path / "other"))
    path = folder / "data/weights/esm3_structure_encoder_v0.pth"
    tensors = torch.load(path, weights_only=True)
    tensors["pre_vq_proj.bias"] += 0.01
    torch.save(tensors, path)
    assert esm3(folder) == 1
    beyond = [line for line in capsys.readouterr().out.splitlines() if "BEYOND" in line]
    assert {line.split()[0] for line in beyond} == {"structure_encoder"}


def test_a_case_that_cannot_be_compared_is_named_and_counted(capsys, tmp_path):
    folder = Path(shutil.copytree(FIXTURES / "esm3/pth", tmp_path / "trunk"))
    (folder / "data/weights/esm3_structure_encoder_v0.pth").unlink()
    assert esm3(folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "structure_encoder  NOT COMPARED: of a structure encoder, and the checkpoint brings none" in lines
    assert lines[-1].endswith(" 0 beyond tolerance, 1 of 5 cases not compared")


def test_numbers_of_which_nothing_can_be_compared_are_status_2(numbers, capsys):
    about = json.loads((numbers / "expected.json").read_text())
    for case in about["cases"].values():
        case["tolerance"] = {"x": 1.0}
    (numbers / "expected.json").write_text(json.dumps(about))
    assert verify(numbers) == 2
    assert "nothing of it can be compared with this checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda folder: (folder / "expected.json").unlink(), "expected.json: no such file"),
        (lambda folder: (folder / "expected.json").write_text("{}"), "no 'cases'"),
        (lambda folder: (folder / "expected.safetensors").write_bytes(b"x" * 9), "not a readable safetensors file"),
        (lambda folder: save_file({"a": torch.zeros(1)}, folder / "expected.safetensors"), "has no tensor 'x'"),
    ],
)
def test_unusable_numbers_are_status_2_with_one_message(numbers, capsys, break_it, said):
    break_it(numbers)
    assert verify(numbers) == 2
    assert said in capsys.readouterr().err


def test_numbers_of_another_shape_are_status_2(numbers, capsys):
    tensors = load_file(numbers / "expected.safetensors")
    tensors["single/logits"] = tensors["single/logits"][..., :20].clone()
    save_file(tensors, numbers / "expected.safetensors")
    assert verify(numbers) == 2
    assert "case 'single': logits has shape" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["input_ids", "attention_mask", "valid"])
def test_a_case_without_its_inputs_is_status_2(numbers, capsys, name):
    tensors = load_file(numbers / "expected.safetensors")
    del tensors[f"batch/{name}"]
    save_file(tensors, numbers / "expected.safetensors")
    assert verify(numbers) == 2
    assert f"case 'batch': no tensor '{name}'" in capsys.readouterr().err


def test_a_checkpoint_that_does_not_load_is_status_2(numbers, capsys):
    assert verify(numbers, checkpoint="esm2/hub") == 2
    assert verify(numbers, family="esm2", checkpoint="esm2/hub") == 2
    assert verify(numbers, family="nothing") == 2
    assert capsys.readouterr().err.count("verify: ") == 3


def test_commands_start_without_loading_a_model_library():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import plm_depth.__main__ as m; m.parser();"
        "import plm_depth.models.registry;"
        "sys.exit(bool({'torch', 'transformers', 'esm'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(WORKFLOW)]).returncode == 0


def test_asking_for_a_model_imports_its_family_only():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from plm_depth.models import registry;"
        "registry.build('esm2', {'n_blocks': 1, 'd_model': 8, 'n_heads': 2});"
        "loaded = {m.split('.')[2] for m in sys.modules if m.startswith('transformers.models.') and 'modeling' in m};"
        "sys.exit(str(loaded - {'esm', 'auto'}) if loaded - {'esm', 'auto'} else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(WORKFLOW)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
