"""What a study is said to cost agrees with the exact plan of the sweeps, with real tables, and with the rules."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml
from snakemake.utils import update_config

from plm_depth import tables
from plm_depth.activations.cost import Cost, forward_cost
from plm_depth.config import Study
from plm_depth.models.registry import FAMILIES, adapter_class
from plm_depth.prices import (
    LOGITS_AT_ONCE,
    NEAREST_PAIR,
    PRICES,
    STRUCTURE_NUMBERS,
    Price,
    priced,
    prices,
    process_bytes,
    size_of,
    sizes_of,
    sweeps_of,
    unknown_sizes,
)
from plm_depth.views import View
from small_study import CONFIG, resolved

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))


def tiny(**changes: object) -> dict:
    return {**yaml.safe_load(CONFIG), **changes}


def flops(study: Study, rule: str, model: str | None = None) -> float:
    return sum(p.cost.flops for p in prices(study) if p.rule == rule and model in (None, p.model))


def test_every_rule_that_asks_for_a_gpu_or_a_network_has_a_price():
    rules = {}
    for path in (ROOT / "workflow" / "rules").glob("*.smk"):
        for name, body in re.findall(r"^\s*rule (\w+):\n(.*?)(?=^\s*rule |\Z)", path.read_text(), re.M | re.S):
            rules[name] = body
    expensive = {name for name, body in rules.items() if "gpus()" in body or "plm_depth.models.download" in body}
    expensive |= {name for name in rules if name.startswith("download_")}
    assert len(expensive) >= 5
    assert expensive <= set(PRICES)
    assert set(PRICES) <= set(rules), "a price of a rule that is no more"


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_registry_tells_for_prices_is_what_the_class_has(family):
    there = adapter_class(family)
    assert FAMILIES[family].can_branch == there.can_branch
    assert FAMILIES[family].tokens_are_residues == there.tokens_are_residues
    assert FAMILIES[family].structure_classes == len(there.structure_classes)


@pytest.mark.parametrize("family, noise", [("esm2", 0.15), ("esm2", 0.0), ("progen2", float("nan"))])
@pytest.mark.parametrize("length, budget", [(60, 10**6), (250, 16384)])
def test_sweeps_cost_what_the_exact_plan_of_their_position_sets_costs(family, noise, length, budget):
    from study_cost import effects_of

    from plm_depth.activations.effects import Skips

    skips = Skips()
    study = resolved(tiny(models=[{"model": "m", "family": family, "recipe": tiny()["models"][0]["recipe"]}]))
    size = size_of(study, "m")
    view = View("none", noise, 0)
    cost, n_sweeps = sweeps_of(size, view, vars(skips), length, budget)
    exact = effects_of(size, view, skips, length, budget)
    # Prefix points are drawn; a price takes them evenly spaced. Without branches where they stand costs nothing.
    assert cost.flops == pytest.approx(exact.flops, rel=0.12 if family == "progen2" else 1e-9)
    assert n_sweeps == (10 if noise == 0.15 else 9) * 6, "sets times parts, and as many local ones"


def test_twice_the_proteins_cost_twice_and_another_null_network_as_much_as_the_trained_one():
    once = resolved(tiny())
    twice = tiny()
    twice["datasets"] = [{**twice["datasets"][0], "size": 12, "shard_size": 6}]
    more = resolved(twice)
    assert flops(more, "extract_activations") == pytest.approx(2 * flops(once, "extract_activations"))
    assert flops(more, "measure_effects") == pytest.approx(flops(once, "measure_effects")), "of its own size"
    nulls = [*tiny()["nulls"], {"null_model": "shuffle_w", "seed": 0}]
    assert flops(resolved(tiny(nulls=nulls)), "extract_activations") == pytest.approx(
        4 / 3 * flops(once, "extract_activations")
    )
    assert flops(resolved(tiny(nulls=[])), "measure_effects") == pytest.approx(flops(once, "measure_effects") / 2)


def test_what_a_data_set_leaves_out_or_shows_in_more_ways_changes_the_price_of_every_pass():
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    update_config(config, yaml.safe_load((ROOT / "config" / "structure.yaml").read_text()))
    # Residues are masked one at a time under the sequence alone.
    config |= {"models": ["saprot_650m", "esm2_650m"], "ablation": {**config["ablation"], "pseudo_perplexity": 0}}
    three = resolved(config)
    assert flops(three, "read_structure_head", "saprot_650m") > 0 == flops(three, "read_structure_head", "esm2_650m")
    del config["structure_heads"]
    alone = resolved({**config, "inputs": {"conditions": ["seq"]}})
    for rule in ("extract_activations", "measure_effects", "ablate_depth"):
        assert flops(three, rule, "saprot_650m") == pytest.approx(3 * flops(alone, rule, "saprot_650m"))
        assert flops(three, rule, "esm2_650m") == pytest.approx(flops(alone, rule, "esm2_650m")), "reads no structure"
    left_out = tiny()
    left_out["datasets"][0]["models"] = ["progen2_tiny"]
    for rule in ("extract_activations", "measure_effects", "score_variants"):
        assert flops(resolved(left_out), rule, "esm2_tiny") == 0 < flops(resolved(tiny()), rule, "esm2_tiny")
        assert flops(resolved(left_out), rule, "progen2_tiny") == flops(resolved(tiny()), rule, "progen2_tiny")


def test_a_section_that_asks_for_more_proteins_than_there_are_is_priced_for_those_there_are():
    more = tiny()
    more["effects"] |= {"size": 600, "shard_size": 4}
    assert flops(resolved(more), "measure_effects") == pytest.approx(flops(resolved(tiny()), "measure_effects"))
    shards = [p.output for p in prices(resolved(more)) if p.rule == "measure_effects" and "/trained/" in p.output]
    assert sorted(path.split("/")[-2] for path in shards) == ["0", "0", "1", "1"], "six proteins, two models"


def test_structure_heads_cost_their_passes_and_a_matrix_as_wide_as_their_classes():
    config = yaml.safe_load((ROOT / "config" / "mini.yaml").read_text())
    config["structure_heads"]["inputs"] = {"mlm": {"draws": 1, "clean": False}}
    study = resolved(config)
    size, length = size_of(study, "saprot_toy_4"), 150
    per_view = forward_cost(size, length + 2, n_reads=22, n_layers_read=5).flops + 2 * 22 * 5 * 48 * 20
    proteins_networks_conditions = 4 * 2 * 3
    assert flops(study, "read_structure_head", "saprot_toy_4") == pytest.approx(per_view * proteins_networks_conditions)
    by_codes = flops(study, "read_structure_head", "dplm2_toy_4")
    reads = round(2.5 * length) + length  # five levels, and a clean view that reads nothing of a structure alone
    assert by_codes > 2.0 * 4 * 2 * (2 * reads + round(2.5 * length)) * 5 * 48 * 8192
    config["structure_heads"] |= {"size": 7, "null_models": []}
    config["compute"]["batch_window"] = 4
    assert flops(resolved(config), "read_structure_head", "dplm2_toy_4") == pytest.approx(by_codes * 7 / 8)


def test_the_logits_that_a_structure_head_reduces_together_are_those_that_are_priced():
    from plm_depth.activations.structure_heads import NUMBERS_AT_ONCE, QUANTITIES

    assert (NUMBERS_AT_ONCE, len(QUANTITIES)) == (LOGITS_AT_ONCE, STRUCTURE_NUMBERS)


def test_a_source_that_nothing_reads_is_neither_fetched_nor_priced():
    config = tiny()
    config["sources"].append({"name": "idle", "url": "https://example.org/idle.fasta"})
    assert set(resolved(config).used_sources) == {"mini", "pabp", "assayed"}
    assert not [p for p in prices(resolved(config)) if p.rule == "download_source"]
    config["datasets"].append({**config["datasets"][0], "name": "more", "source": "idle", "part": "all"})
    assert [p.url for p in prices(resolved(config)) if p.rule == "download_source"] == [
        "https://example.org/idle.fasta"
    ]


@pytest.mark.parametrize(
    "device, dtype, networks, expected",
    [
        ("cuda", "bfloat16", ["trained"], 3),  # while it is read
        ("cuda", "bfloat16", ["randinit", "shuffle_w"], 2 + 4),  # its own weights, and the drawn ones
        ("cuda", "float32", ["shuffle_seq"], 6),
        ("cpu", "bfloat16", ["shuffle_w"], 2 + 2),
        ("cpu", "bfloat16", ["trained", "randinit"], 2 + 2 + 4),  # 8.0 measured on 148 and on 151 M parameters
        ("cpu", "float32", ["randinit"], 4 + 4 + 4),  # 11.9 and 12.0 measured
    ],
)
def test_memory_counts_what_a_null_model_is_kept_beside(device, dtype, networks, expected):
    config = tiny(models=["esm2_650m"], training=tiny()["training"])
    config["compute"] = {**config["compute"], "device": device, "memory_gb": 1}
    study = resolved(config)
    study.models["esm2_650m"]["dtype"] = dtype
    n = sizes_of(study, "esm2_650m").n_parameters
    assert process_bytes(study, "esm2_650m", networks) == pytest.approx(1e9 + expected * n)


def test_jobs_that_measure_untrained_networks_ask_for_their_memory():
    config = tiny(models=["esm2_650m"], attribution={"size": 2, "shard_size": 2})
    study = resolved(config)
    n = sizes_of(study, "esm2_650m").n_parameters
    asked = {}
    for price in prices(study):
        if price.memory_bytes:
            asked.setdefault(price.rule, set()).add(round((price.memory_bytes - 1e9) / n))
    assert asked == {
        "describe_checkpoint": {6},
        "extract_activations": {6, 12},
        "measure_effects": {6, 12},
        "measure_attribution": {12},
        "score_variants": {12},
    }


def test_a_section_that_is_absent_costs_nothing():
    config = tiny()
    del config["effects"]
    assert flops(resolved(config), "measure_effects") == 0
    assert flops(resolved(tiny()), "measure_effects") > 0


def test_sizes_come_from_the_sheet_also_for_an_entry_that_names_its_repository():
    study = resolved(tiny(models=["esm2_8m", {"model": "mine", "family": "esm2", "hub": "facebook/esm2_t6_8M_UR50D"}]))
    assert sizes_of(study, "esm2_8m")[:3] == (6, 320, 7512474)
    assert sizes_of(study, "mine") == sizes_of(study, "esm2_8m")
    download = {p.model: p for p in prices(study) if p.rule == "download_checkpoint"}
    assert download["mine"].fetched_bytes == 4 * 7512474 and download["mine"].url == "hub:facebook/esm2_t6_8M_UR50D"


def test_sizes_of_a_folder_are_read_off_its_config_and_weights():
    folder = ROOT / "tests" / "fixtures" / "esm2" / "hub"
    study = resolved(tiny(models=[{"model": "mine", "family": "esm2", "path": str(folder)}]))
    raw = json.loads((folder / "config.json").read_text())
    assert sizes_of(study, "mine")[:2] == (raw["num_hidden_layers"], raw["hidden_size"])
    assert sizes_of(study, "mine").n_parameters == (folder / "model.safetensors").stat().st_size // 4


def test_where_only_parameters_are_known_depth_and_width_follow_and_are_marked():
    study = resolved(tiny(models=["progen3_112m"], accepted_licences=["CC-BY-NC-SA-4.0"]))
    sizes = sizes_of(study, "progen3_112m")
    assert not sizes.are_known
    assert 12 * sizes.n_blocks * sizes.d_model**2 == pytest.approx(112e6, rel=0.01)


def test_a_model_of_unknown_size_is_named_and_has_no_price(tmp_path):
    (tmp_path / "empty").mkdir()
    study = resolved(tiny(models=[{"model": "mine", "family": "esm2", "path": str(tmp_path / "empty")}]))
    assert unknown_sizes(study) == ["mine"]
    assert not [p for p in prices(study) if p.model == "mine"]


def test_a_rule_is_priced_by_one_decorated_function(monkeypatch):
    monkeypatch.setattr("plm_depth.prices.PRICES", dict(PRICES))

    @priced("dream")
    def dreams(study):
        yield Price("dream", "results/dream.parquet", "m", Cost(flops=7.0))

    assert [p for p in prices(resolved(tiny())) if p.rule == "dream"] == [
        Price("dream", "results/dream.parquet", "m", Cost(flops=7.0))
    ]


def test_prices_load_no_model_library(tmp_path):
    import subprocess

    program = (
        "import sys; import plm_depth.prices, plm_depth.preflight; "
        "sys.exit(bool({'torch', 'transformers', 'pyarrow'} & set(sys.modules)))"
    )
    environment = {"PYTHONPATH": str(ROOT / "workflow"), "PATH": "/usr/bin:/bin"}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0


def test_attention_maps_of_contacts_are_priced_as_they_are_written():
    structures = {"source": "folder", "folder": "resources/mini/structures"}
    section = {"tasks": ["ss3", "contacts"], "chains": 14, "attention_chains": 3, "min_length": 50, "max_length": 150}

    def priced_at(**changes: object) -> Price:
        study = resolved(tiny(structures=structures, probes={**section, **changes}))
        return next(p for p in prices(study) if p.rule == "embed_annotated" and p.model == "esm2_tiny")

    with_maps, without = priced_at(), priced_at(attention_chains=0)
    size = size_of(resolved(tiny()), "esm2_tiny")
    networks = 1 + resolved(tiny(structures=structures, probes=section)).config["probes"]["untrained"]
    assert NEAREST_PAIR == tables.NEAREST_PAIR
    pairs = sum(1 for i in range(100) for j in range(100) if j - i >= NEAREST_PAIR)
    views = round((with_maps.disk_bytes - without.disk_bytes) / (3 * pairs * size.n_blocks * 4 * networks))
    assert views in (1, 2)
    assert with_maps.disk_bytes - without.disk_bytes == 3 * pairs * size.n_blocks * 4 * networks * views
    assert with_maps.cost.flops / without.cost.flops == pytest.approx(17 / 14)
    assert priced_at(tasks=["ss3"]).disk_bytes == without.disk_bytes, "no contacts, no maps"
