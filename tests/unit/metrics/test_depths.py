"""Definitions of effective depth side by side: the tables' own numbers on one scale, primary inputs, Kendall's tau."""

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.stats import kendalltau

from plm_depth.metrics.bootstrap import holm
from plm_depth.metrics.depths import DEFINITIONS, NO_DEPTH, agreement, main, primary, tau_of
from plm_depth.metrics.summary import statistics_of
from plm_depth.tables import ATTRIBUTION, DEPTH_TAU, DEPTHS, PROBES, SKIP, SUMMARY, read_table, write_table
from unit.figures import invented

MODELS = invented.MINI


def table_of(path: Path, schema) -> pl.DataFrame:
    return pl.from_arrow(read_table(path, schema)).with_columns(pl.col(pl.Categorical).cast(pl.String))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("depths")
    for model in MODELS:
        invented.write_summary(model, folder / f"{model.model}.summary.parquet")
        write_skip_statistics(model, folder / f"{model.model}.skip.parquet")
    return folder


def write_skip_statistics(model: invented.Invented, path: Path) -> None:
    """Write a SKIP table of statistics of profiles: of both position sets, both vocabularies, every aggregate."""
    rows = []
    for seed, (null, null_seed) in enumerate(invented.NULLS):
        for direction, noise in invented.INPUTS[model.objective]:
            for pos_set in ("all", "prefix", "other"):
                for quantity, vocab in (
                    ("influence_depth_score", "none"),
                    ("influence_half_contrast", "none"),
                    ("l2_n80", "aa20"),
                    ("l2_n80", "full"),
                    ("effect", "none"),
                ):
                    for part, local, ablation, agg in (
                        ("layer", False, "zero", "mean"),
                        ("attn", False, "zero", "mean"),
                        ("layer", True, "zero", "mean"),
                        ("layer", False, "mean", "mean"),
                        ("layer", False, "zero", "p95"),
                    ):
                        value = 0.001 * len(rows) % 0.9 - (0.5 if "contrast" in quantity else 0) + 0.01 * seed
                        rows.append({**invented._common(model, null, null_seed, direction, noise), "part": part,
                                     "pos_set": pos_set, "local": local, "ablation": ablation, "vocab": vocab,
                                     "quantity": quantity, "src": -1, "tgt": -1, "agg": agg, "value": value,
                                     "ci_lo": value - 0.02, "ci_hi": value + 0.03, "n_seq": 40, "n_cluster": 38,
                                     "n_boot": 2000, "n_nan": 0, "below_floor": 0.0})  # fmt: skip
    write_table({name: [row[name] for row in rows] for name in SKIP.names}, SKIP, path)


def run(folder: Path, to: Path, *, models=MODELS, with_skips: bool = True) -> tuple[pl.DataFrame, pl.DataFrame]:
    def paths(kind: str) -> list[str]:
        return [str(folder / f"{model.model}.{kind}.parquet") for model in models]

    skips = ["--skips", *paths("skip")] if with_skips else []
    files = to / "depths.parquet", to / "tau.parquet"
    main(["--summaries", *paths("summary"), *skips, "--depths", str(files[0]), "--tau", str(files[1])])
    return table_of(files[0], DEPTHS), table_of(files[1], DEPTH_TAU)


def test_every_statistic_of_a_summary_is_a_definition_or_known_to_be_none():
    for statistic in statistics_of({}):
        assert (statistic.stat in DEFINITIONS) != (statistic.stat in NO_DEPTH)


def test_the_numbers_are_those_of_the_tables_at_the_primary_input_on_one_scale(folder, tmp_path):
    found, _ = run(folder, tmp_path)
    inputs = {"ar": ("n2c", None), "mlm": ("none", 0.15), "diffusion": ("none", -1.0)}
    turned = {"overlap_area": lambda x: 1 - x, "half_contrast": lambda x: (1 + x) / 2}
    expected = {}
    for model in MODELS:
        direction, noise = inputs[model.objective]
        for kind, schema in (("summary", SUMMARY), ("skip", SKIP)):
            for row in read_table(folder / f"{model.model}.{kind}.parquet", schema).to_pylist():
                if row["null_model"] not in ("trained", "randinit") or row["direction"] != direction:
                    continue
                if noise is not None and not math.isclose(row["noise_t"], noise, rel_tol=1e-6):
                    continue
                if kind == "skip":
                    profile, _, stat = row["quantity"].partition("_")
                    wanted = "all" if profile == "l2" else "prefix" if model.objective == "ar" else "other"
                    swept = (row["part"], row["local"], row["ablation"], row["agg"])
                    if not stat or row["pos_set"] != wanted or row["vocab"] == "full":
                        continue
                    if swept != ("layer", False, "zero", "mean"):
                        continue
                    name = f"{stat} {profile}"
                else:
                    stat = row["stat"]
                    if stat.startswith("growth"):
                        continue
                    parameter = "" if math.isnan(row["param"]) else f" {row['param']:g}"
                    name = f"{stat} {row['profile']}{parameter}"
                turn = turned.get(stat, lambda x: x)
                value = turn(row["value"])
                bounds = sorted((turn(row["ci_lo"]), turn(row["ci_hi"])))
                expected[row["model_id"], row["null_model"], row["null_seed"], name] = (value, *bounds)
    rows = {
        (row["model_id"], row["null_model"], row["null_seed"], row["definition"]): (
            row["value"], row["ci_lo"], row["ci_hi"]
        )
        for row in found.iter_rows(named=True)
    }  # fmt: skip
    assert rows.keys() == expected.keys() and len(rows) == found.height > 300
    for key, values in expected.items():
        assert rows[key] == pytest.approx(values, abs=1e-12), key
    assert (found["ci_lo"] <= found["ci_hi"]).all()
    assert set(found["kind"]) == {"where", "amount"} and {"I1", "I2", "I6", "I9", "I10"} <= set(found["index"])


def test_tau_is_kendalls_over_trained_models_that_have_both(folder, tmp_path):
    found, tau = run(folder, tmp_path)
    trained = found.filter(pl.col("null_model") == "trained")
    values = {
        definition: dict(rows.select("model_id", "value").iter_rows())
        for (definition,), rows in trained.group_by("definition")
    }
    n = len(values)
    assert tau.height == n * (n + 1) // 2 and set(tau["n_models"]) == {6}
    plain = {
        (one, other): kendalltau([values[one][m.model] for m in MODELS], [values[other][m.model] for m in MODELS])
        for one, other in tau.select("definition", "other").iter_rows()
    }
    different = [pair for pair in plain if pair[0] != pair[1]]
    adjusted = dict(zip(different, holm([plain[pair].pvalue for pair in different])))
    assert any(adjusted[pair] > plain[pair].pvalue for pair in different)
    for one, other, value, p_value in tau.select("definition", "other", "tau", "p_value").iter_rows():
        found_plain = plain[one, other]
        assert (value, p_value) == pytest.approx(
            (found_plain.statistic, adjusted.get((one, other), found_plain.pvalue))
        )
        assert one != other or value == pytest.approx(1)


def test_tau_is_undefined_below_three_models_or_where_all_are_alike(folder, tmp_path):
    assert tau_of([1, 2, 3], [3, 5, 9])[0] == pytest.approx(1)
    assert tau_of([1, 2, 3], [3, 2, 1])[0] == pytest.approx(-1)
    assert all(map(math.isnan, tau_of([1, 2], [1, 2])))
    assert all(map(math.isnan, tau_of([1, 2, 3], [4, 4, 4])))
    _, tau = run(folder, tmp_path, models=MODELS[:2])
    assert tau["tau"].is_nan().all() and set(tau["n_models"]) == {2}
    found = pl.DataFrame(
        {
            "definition": ["a"] * 4 + ["b"] * 4,
            "model_id": list("wxyz") * 2,
            "null_model": "trained",
            "value": [1.0, 2, 3, 4, 1, 3, 2, np.nan],
        }
    )
    columns = agreement(found)
    assert columns["n_models"] == [4, 3, 3]
    assert columns["tau"] == pytest.approx([1, 1 / 3, 1])


def test_without_skip_effects_the_definitions_of_the_summary_stand_alone(folder, tmp_path):
    found, _ = run(folder, tmp_path, with_skips=False)
    assert not found["definition"].str.contains("influence|l2|dnll").any() and found.height > 100


def test_of_two_noise_levels_equally_far_from_the_primary_one_the_lower_counts():
    rows = [invented._common(MODELS[0], "trained", -1, "none", t) for t in (0.1, 0.2, 0.0, 1.0)]
    found = primary(pl.DataFrame(rows).with_columns(noise_t=pl.col("noise_t").cast(pl.Float32)))
    assert found["noise_t"].to_list() == pytest.approx([0.1])


def test_a_statistic_that_nobody_knows_is_left_out_and_said(folder, tmp_path, caplog):
    table = read_table(folder / f"{MODELS[0].model}.summary.parquet", SUMMARY)
    columns = {name: table.column(name).to_pylist() for name in SUMMARY.names}
    columns["stat"] = ["moonshine" if stat == "kl_depth" else stat for stat in columns["stat"]]
    (tmp_path / "other").mkdir()
    write_table(columns, SUMMARY, tmp_path / "other" / f"{MODELS[0].model}.summary.parquet")
    found, _ = run(tmp_path / "other", tmp_path, models=MODELS[:1], with_skips=False)
    assert not found["definition"].str.contains("kl_depth |moonshine").any()


def test_scores_of_variants_keep_their_own_input(folder, tmp_path):
    rows = [
        {**invented._common(MODELS[0], null, seed, "both", -1.0), "stat": stat, "profile": "fitness_mask",
         "param": param, "value": 0.6, "ci_lo": 0.5, "ci_hi": 0.7, "n_seq": 2, "n_cluster": 2, "n_boot": 100}
        for null, seed in (("trained", -1), ("randinit", 0), ("shuffle_w", 0))
        for stat, param in (("retention_depth", 0.95), ("best_layer", np.nan))
    ]  # fmt: skip
    write_table({name: [row[name] for row in rows] for name in SUMMARY.names}, SUMMARY, tmp_path / "fitness.parquet")
    one = str(folder / f"{MODELS[0].model}.summary.parquet")
    files = tmp_path / "d.parquet", tmp_path / "t.parquet"
    main(["--summaries", one, str(tmp_path / "fitness.parquet"), "--depths", str(files[0]), "--tau", str(files[1])])
    found = table_of(files[0], DEPTHS).filter(pl.col("definition").str.contains("fitness"))
    assert found.select("definition", "null_model", "index").rows() == [
        ("retention_depth fitness_mask 0.95", "randinit", "I4"),
        ("retention_depth fitness_mask 0.95", "trained", "I4"),
    ]


def written(rows: list[dict], schema, path: Path) -> str:
    write_table({name: [row[name] for row in rows] for name in schema.names}, schema, path)
    return str(path)


def test_a_model_scored_in_both_directions_is_judged_by_both_together(folder, tmp_path):
    reader = next(model for model in MODELS if model.objective == "ar")
    values = {"n2c": 0.2, "c2n": 0.4, "both": 0.6}
    rows = [
        {**invented._common(reader, "trained", -1, direction, float("nan")), "stat": "retention_depth",
         "profile": "fitness_ar", "param": 0.9, "value": value, "ci_lo": value, "ci_hi": value, "n_seq": 2,
         "n_cluster": 2, "n_boot": 200}
        for direction, value in values.items()
    ]  # fmt: skip
    write_table({name: [row[name] for row in rows] for name in SUMMARY.names}, SUMMARY, tmp_path / "fitness.parquet")
    files = [tmp_path / "depths.parquet", tmp_path / "tau.parquet"]
    one = str(folder / f"{reader.model}.summary.parquet")
    main(["--summaries", one, str(tmp_path / "fitness.parquet"), "--depths", str(files[0]), "--tau", str(files[1])])
    found = table_of(files[0], DEPTHS).filter(pl.col("definition").str.contains("fitness"))
    assert found["value"].to_list() == [0.6]


def test_attributions_and_probes_stand_beside_the_others(folder, tmp_path):
    gates = [
        {**invented._common(MODELS[2], null, seed, direction, np.nan), "object": one, "target": target, "vocab": "aa20",
         "quantity": quantity, "layer": layer, "value": value, "ci_lo": 0.1, "ci_hi": 0.8, "n_seq": 4, "n_cluster": 4,
         "n_boot": 100, "n_rejected": 0}
        for null, seed in (("trained", -1), ("shuffle_w", 0))
        for direction in ("n2c", "c2n")
        for one, target, quantity, layer, value in (
            ("gate", "logp", "half_contrast", -1, -0.4),
            ("gate", "logp", "magnitude", 2, 0.3),
            ("erase_position", "l2", "erasure_depth", -1, 0.7),
        )
    ]  # fmt: skip
    probes = [
        {**invented._common(MODELS[2], null, seed, direction, np.nan), "task": "ss3", "space": "pca256",
         "probe": "logistic", "control": control, "metric": "accuracy", "stat": stat, "layer": -1, "param": 0.95,
         "floor": "chance", "value": 3.0, "ci_lo": 2.0, "ci_hi": 4.0, "chance": 0.3, "in_plateau": False, "n_rows": 90,
         "n_seq": 9, "n_grouped": 0, "n_cluster": 9, "n_boot": 100}
        for null, seed, control in (("trained", -1, "none"), ("trained", -1, "perm"), ("randinit", 0, "untrained"))
        for direction in ("both", "c2n")
        for stat in ("retention_depth", "best_layer")
    ]  # fmt: skip
    files = tmp_path / "d.parquet", tmp_path / "t.parquet"
    main([
        "--summaries", str(folder / f"{MODELS[2].model}.summary.parquet"),
        "--attributions", written(gates, ATTRIBUTION, tmp_path / "gates.parquet"),
        "--probes", written(probes, PROBES, tmp_path / "probes.parquet"),
        "--depths", str(files[0]), "--tau", str(files[1]),
    ])  # fmt: skip
    found = table_of(files[0], DEPTHS).filter(pl.col("definition").str.contains("gate|position|probe"))
    probe = "retention_depth probe_ss3_logistic_pca256_accuracy_chance 0.95"
    columns = ("definition", "index", "null_model", "direction", "value", "ci_lo", "ci_hi")
    rows = {row[:4]: row[4:] for row in found.select(columns).iter_rows()}
    assert rows == {
        ("half_contrast gate_logp", "I9", "trained", "n2c"): pytest.approx((0.3, 0.55, 0.9)),
        ("erasure_depth position_l2", "E3", "trained", "n2c"): (0.7, 0.1, 0.8),
        (probe, "I4", "trained", "both"): (0.75, 0.5, 1.0),  # of 4 blocks
        (probe, "I4", "randinit", "both"): (0.75, 0.5, 1.0),
    }


def test_bad_tables_end_in_one_message_and_nothing_is_written(folder, tmp_path):
    one = str(folder / f"{MODELS[0].model}.summary.parquet")

    def call(*summaries: str) -> None:
        main(["--summaries", *summaries, "--depths", str(tmp_path / "d.parquet"), "--tau", str(tmp_path / "t.parquet")])

    with pytest.raises(SystemExit, match=r"metrics.depths: depth_score \w+ of esm2_l4 .* stands twice"):
        call(one, one)
    with pytest.raises(SystemExit, match="not a readable Parquet file"):
        call(str(tmp_path / "nothing.parquet"))
    table = table_of(Path(one), SUMMARY).filter(pl.col("noise_t") == 0)
    write_table({name: table[name].to_list() for name in SUMMARY.names}, SUMMARY, tmp_path / "clean.parquet")
    with pytest.raises(SystemExit, match="no statistic of any model at its primary input"):
        call(str(tmp_path / "clean.parquet"))
    assert not (tmp_path / "d.parquet").exists() and not (tmp_path / "t.parquet").exists()
