"""The command for one model and one table: from the file to the recommendation, with the stages of the workflow."""

import csv
import random
from pathlib import Path

import polars as pl
import pytest

from plm_depth.__main__ import main
from plm_depth.models import registry
from plm_depth.tables import AMINO_ACIDS, read_metadata

FIXTURE = Path(__file__).parents[1] / "fixtures" / "esm2" / "hub"
OILY = set("AVILMFWC")


def table(path: Path, rows: list[tuple[str, object]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("sequence", "label"), *rows])
    return path


def proteins(n: int) -> list[str]:
    draw = random.Random(3)
    return ["".join(draw.choices(AMINO_ACIDS, k=40)) for _ in range(n)]


def run(folder: Path, path: Path, *more: str, model: Path = FIXTURE, family: str = "esm2") -> int:
    where = ["--model", str(model), "--family", family, "--table", str(path), "--output", str(folder / "out")]
    return main(["choose", *where, "--label", "label", "--resamples", "200", "--device", "cpu", *more])


def test_a_label_a_residue_that_the_embedding_tells_is_found_at_layer_0_and_a_checkpoint_is_cut(tmp_path):
    rows = [(s, "".join("o" if letter in OILY else "-" if i == 5 else "p" for i, letter in enumerate(s)))
            for s in proteins(24)]  # fmt: skip
    assert run(tmp_path, table(tmp_path / "my.csv", rows), "--truncate", "auto", "--residues", "12") == 0
    out = tmp_path / "out"
    found = pl.read_parquet(out / "choice.parquet").filter(pl.col("is_primary") & (pl.col("side") == "test"))
    assert found["kind"].unique().item() == "residue-classification" and found["metric"].unique().item() == "mcc"
    first = found.sort("layer").row(0, named=True)
    assert first["value"] > 0.99 and first["is_recommended"]  # the letter alone decides, and layer 0 holds it
    assert 24 * 11 <= first["n_rows"] <= 24 * 12 and first["n_cluster"] == 24  # of 40 residues 12 were kept
    text = (out / "recommendation.md").read_text()
    assert "Read layer 0 of" in text and "The checkpoint that ends after block" in text
    cut = registry.load("esm2", out / "truncated" / "hub")
    assert cut.n_blocks == int(read_metadata(out / "choice.parquet")["cut_after"])
    assert (out / "recommendation.html").is_file() and (out / "scores.svg").is_file()


def test_a_table_without_a_question_is_refused_before_the_model_is_looked_at(tmp_path):
    path = table(tmp_path / "my.csv", [(s, "same") for s in proteins(24)])
    with pytest.raises(SystemExit, match="one class only"):
        run(tmp_path, path, model=tmp_path / "nowhere")
    assert not list(tmp_path.rglob("*.parquet"))


def test_labels_of_residues_are_not_put_to_a_model_of_pieces(tmp_path):
    sizes = {"n_blocks": 1, "d_model": 16, "n_heads": 2, "n_positions": 96}
    registry.save(registry.build("protgpt2", sizes, seed=0), tmp_path / "pieces")
    path = table(tmp_path / "my.csv", [(s, "hp" * 20) for s in proteins(24)])
    with pytest.raises(SystemExit, match=r"no features of 960 of 960 labels .*tokens hold several residues"):
        run(tmp_path, path, model=tmp_path / "pieces", family="protgpt2")


def test_a_depth_that_is_none_is_refused_first(tmp_path):
    with pytest.raises(SystemExit, match="--truncate half: expected none, auto"):
        run(tmp_path, tmp_path / "my.csv", "--truncate", "half")


def test_rows_that_cannot_be_parted_are_refused_before_the_model_is_looked_at(tmp_path):
    path = table(tmp_path / "my.csv", [(s, i + 0.5) for i, s in enumerate(proteins(24))])
    with pytest.raises(SystemExit, match=r"choice: .*99 folds"):
        run(tmp_path, path, "--folds", "99", model=tmp_path / "nowhere")
    assert not (tmp_path / "out" / "card.json").exists()
