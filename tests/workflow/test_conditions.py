"""A study of structures: the same proteins and masks, with and without their structure, apart in every table."""

import polars as pl
import pytest
import yaml

from plm_depth.models import registry
from plm_depth.tables import CONTRIB_SEQ, LENS_SEQ, PROFILE, SEQUENCES, SUMMARY, VERDICT, read_table
from small_study import CONFIG, copy_repository, planned, snakemake

pytestmark = pytest.mark.workflow

MODELS = ["saprot_tiny", "esm2_tiny"]
STRUCTURES = ["1a8o_A", "1lcd_A", "7cfn_G"]
CHOSEN = ["results/tiny/summary/folds/{model}.parquet", "results/tiny/profiles/folds/{model}.parquet"]


def config(**changes: object) -> str:
    study = yaml.safe_load(CONFIG)
    del study["training"]
    study["effects"] |= {"size": 3, "shard_size": 3}
    study["structures"] = {"source": "folder", "folder": "resources/mini/structures", "entries": STRUCTURES}
    study["datasets"] = [{"name": "folds", "source": "structures", "size": 3, "shard_size": 2, "min_length": 40}]
    study["models"] = [{"model": name, "family": name.split("_")[0], "path": f"mine/{name}"} for name in MODELS]
    study["inputs"]["conditions"] = ["seq", "seq_struct", "struct"]
    if "inputs" not in changes:  # where there are structures to be read
        study["structure_heads"] = {"size": 3, "shard_size": 3}
    return yaml.safe_dump({**study, **changes})


def table(folder, name, schema):
    rows = pl.from_arrow(read_table(folder / "results" / "tiny" / name, schema))
    return rows.with_columns(pl.col(pl.Categorical).cast(pl.String))


def test_conditions_go_from_the_structures_to_the_summary_side_by_side(tmp_path):
    folder = copy_repository(tmp_path)
    for model in MODELS:
        adapter = registry.build(model.split("_")[0], {"n_blocks": 2, "d_model": 16, "n_heads": 2}, seed=1)
        registry.save(adapter, folder / "mine" / model)
    (folder / "tiny.yaml").write_text(config(), encoding="utf-8")
    targets = [path.format(model=model) for path in CHOSEN for model in MODELS]
    figures = [f"results/tiny/figures/folds/{name}.svg" for name in ("lens_kl", "verdicts", "structure_heads")]
    result = snakemake(folder, "--cores", "2", *targets, *figures)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    assert "model esm2_tiny: measured under condition seq only, its family reads no structure" in result.stderr

    drawn = table(folder, "datasets/folds/sample.parquet", SEQUENCES)
    assert sorted(drawn["sequence_id"]) == STRUCTURES
    for model, conditions in zip(MODELS, [{"seq", "seq_struct", "struct"}, {"seq"}]):
        for name, schema in [("profiles", PROFILE), ("summary", SUMMARY)]:
            assert set(table(folder, f"{name}/folds/{model}.parquet", schema)["condition"]) == conditions
        for variant in ("trained", "null"):
            for name, schema in [("contributions", CONTRIB_SEQ), ("lens", LENS_SEQ)]:
                rows = table(folder, f"metrics/folds/{model}/{variant}/{name}.parquet", schema)
                proteins = {one: set(rows.filter(condition=one)["sequence_id"]) for one in conditions}
                assert set(rows["condition"]) == conditions
                assert set(map(frozenset, proteins.values())) == {frozenset(STRUCTURES)}
    rows = table(folder, "metrics/folds/saprot_tiny/trained/lens.parquet", LENS_SEQ)
    rows = rows.filter(quantity="kl_lf", lens="logit", vocab="aa20", layer=0).sort("condition", "sequence_id")
    counts = [rows.filter(condition=condition)["n"].to_list() for condition in ("seq", "seq_struct", "struct")]
    assert counts[0] == counts[1] == counts[2] == [round(0.15 * n) for n in (70, 51, 58)]
    sums = [rows.filter(condition=condition)["sum"].to_list() for condition in ("seq", "seq_struct", "struct")]
    assert sums[0] != sums[1] != sums[2]

    heads = table(folder, "structure_heads/folds/saprot_tiny.lens_seq.parquet", LENS_SEQ)
    read = heads.filter(quantity="kl_lf", layer=0).filter(pl.col("noise_t") > 0, pl.col("null_model") == "trained")
    by_condition = read.group_by("condition", "sequence_id").agg(pl.col("n").sum()).sort("condition", "sequence_id")
    assert by_condition["n"].to_list() == [n for condition in counts for n in condition], (
        "the residues that the lens reads"
    )
    shown = dict(read.group_by("condition").agg((pl.col("lens") == "copy").any()).rows())
    assert shown == {"seq": False, "seq_struct": True, "struct": True} and set(heads["readout"]) == {"struct"}

    verdicts = table(folder, "verdicts/folds.parquet", VERDICT).filter(claim="K5")
    assert set(verdicts["scope"]) == {"saprot_tiny"} and set(verdicts["verdict"]) == {"inconclusive"}
    assert verdicts.filter(role="claim")["n_seq"].to_list() == [3], "skip effects are measured with structure too"
    shifts = verdicts.filter(pl.col("statistic").str.starts_with("shift of"))
    assert shifts["statistic"].to_list() == [
        "shift of depth score rel_u",
        "shift of KL depth",
        "shift of retention depth at 0.95",
        "shift of depth score influence",
    ]
    assert shifts["n_seq"].to_list() == [3, 3, 3, 3] and shifts["value"].is_finite().any()
    assert "K5: holds with the structure as input" in (folder / figures[1]).read_text()

    # A study without conditions plans the passes of the models that can be shown structures, and no others.
    assert planned(folder, *targets) == []
    (folder / "tiny.yaml").write_text(config(inputs=yaml.safe_load(CONFIG)["inputs"]), encoding="utf-8")
    jobs = [job for job in planned(folder, *targets) if job.startswith("extract_activations")]
    assert jobs == [
        f"extract_activations dataset=folds model=saprot_tiny shard={shard} variant={variant}"
        for shard in (0, 1)
        for variant in ("null", "trained")
    ]
