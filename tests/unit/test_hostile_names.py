"""Names out of files and configs stay names: they never leave their folder, reach a shell, or become markup."""

import importlib
import json
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import dnaio
import polars as pl
import pytest
import yaml

from plm_depth.figures import door
from plm_depth.figures.number_table import as_csv, as_html
from plm_depth.tables import CLUSTERS, SEQUENCES, read_table
from small_study import CONFIG, ROOT, copy_repository, snakemake
from unit.figures import invented

ACCESSIONS = ["../../x", "..", "/etc/passwd", "$(touch${IFS}pwned)", "`touch${IFS}pwned`", "a;touch", "-rf", "~"]
ACCESSIONS += ["%s%n", "<b>"]
NAMES = [
    "<script>alert(1)</script>",
    "$(touch pwned) & more",
    "a$b$c_d^e",
    r"$\undefined{$",
    "\"quoted\", 'twice'",
    "é 名",
]


def stage(name: str, *words: object) -> None:
    importlib.import_module(f"plm_depth.{name}").main([str(word) for word in words])


def everything(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_hostile_accessions_go_through_sampling_clustering_and_splitting_as_keys_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    residues = ["MKTAYIAKQRQISFVKSHFSRQ", "GSHMLEDPVRACWNYTGGAGKL", "PPLKVNQWERTYIPASDFGHKL"]
    records = [f">{name}\n{residues[i % 3]}{'ACDEFGHIKL'[i % 10] * 5}\n" for i, name in enumerate(ACCESSIONS)]
    (tmp_path / "in.fasta").write_text("".join(records), encoding="utf-8")
    lengths = ("--min-length", 5, "--max-length", 99)
    stage("sequences.sample", "--fasta", "in.fasta", "--size", len(ACCESSIONS), "--seed", 1, *lengths,
          "--sample", "out/s.parquet", "--left-out", "out/l.parquet", "--letters", "out/letters.parquet")  # fmt: skip
    stage("sequences.cluster", "--sample", "out/s.parquet", "--identity", 0.3, "--coverage", 0.5,
          "--output", "out/c.parquet")  # fmt: skip
    stage("sequences.split", "--sample", "out/s.parquet", "--clusters", "out/c.parquet", "--held-out", 0.5, "--seed", 1,
          "--train", "out/t.fasta", "--valid", "out/v.fasta")  # fmt: skip
    assert set(read_table("out/s.parquet", SEQUENCES).column("sequence_id").to_pylist()) == set(ACCESSIONS)
    assert set(read_table("out/c.parquet", CLUSTERS).column("sequence_id").to_pylist()) == set(ACCESSIONS)
    written = []
    for name in ("t", "v"):
        with dnaio.open(tmp_path / "out" / f"{name}.fasta") as reader:
            written += [record.name for record in reader]
    assert sorted(written) == sorted(ACCESSIONS)
    files = {"s.parquet", "l.parquet", "letters.parquet", "c.parquet", "t.fasta", "v.fasta"}
    assert everything(tmp_path) == {"in.fasta", "out", *(f"out/{name}" for name in files)}


def test_a_page_of_numbers_escapes_every_name_and_a_csv_keeps_it():
    numbers = pl.DataFrame({"model": NAMES, "value": [float(i) for i in range(len(NAMES))]})
    page = as_html(numbers, title=NAMES[0])
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
    assert pl.read_csv(as_csv(numbers).encode())["model"].to_list() == NAMES


@pytest.mark.parametrize("figure", ["contributions", "depth_summary"])
def test_a_figure_writes_hostile_names_as_they_are(figure, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    invented.write_study(invented.MINI, tmp_path / "study")
    models = tmp_path / "study" / "models.json"
    listed = json.loads(models.read_text())
    for model, name in zip(listed, NAMES):
        model["display_name"] = name
    models.write_text(json.dumps(listed))
    module = importlib.import_module(f"plm_depth.figures.{figure}")
    tables = [
        word
        for kind in module.STAGE.reads
        for word in (f"--{kind}", *sorted((tmp_path / "study").glob(f"*.{invented.ENDINGS[kind]}.parquet")))
    ]
    words = [*tables, "--models", models, "--svg", "f.svg", "--csv", "f.csv", "--html", "f.html"]
    door.run(module.STAGE, list(map(str, words)))
    tags = {node.tag.split("}")[-1] for node in ElementTree.parse("f.svg").iter()}
    assert "path" in tags and "script" not in tags
    written = Path("f.svg").read_text(encoding="utf-8")
    assert "<script" not in written, "letters are drawn as outlines; their text stands in comments"
    assert "<script>alert" not in Path("f.html").read_text()
    assert everything(tmp_path) - {f"study/{p.name}" for p in (tmp_path / "study").iterdir()} == {
        *("study", "f.svg", "f.csv", "f.html")
    }


@pytest.mark.workflow
def test_a_path_with_a_command_in_it_reaches_no_shell(tmp_path):
    folder = copy_repository(tmp_path)
    hostile = folder / "data" / "a $(touch pwned) `touch pwned` 'q' \"d\"; touch pwned #.fasta"
    hostile.parent.mkdir()
    hostile.write_bytes((ROOT / "resources" / "mini" / "sequences.fasta").read_bytes())
    config = yaml.safe_load(CONFIG)
    config["sources"][0]["url"] = hostile.relative_to(folder).as_posix()
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    ended = snakemake(folder, "--cores", "1", "--", "results/tiny/training/pool.parquet")
    assert ended.returncode == 0, ended.stderr
    assert read_table(folder / "results" / "tiny" / "training" / "pool.parquet", SEQUENCES).num_rows == 90
    assert not list(folder.rglob("pwned"))
    assert subprocess.run(["ls", str(hostile)], check=False, capture_output=True).returncode == 0
