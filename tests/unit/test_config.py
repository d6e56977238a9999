"""A bad config stops before any job, naming key, value and what is allowed."""

import copy
import os
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from plm_depth.config import ConfigError, Study, read_models
from plm_depth.models.registry import FAMILIES as FAMILIES_THERE_ARE

ROOT = Path(__file__).parents[2]
FAMILIES = {"esm2": "mlm", "progen2": "ar", "dplm": "diffusion"}
OBJECTIVES = {name: entry.objective for name, entry in FAMILIES_THERE_ARE.items()}
READS = {name: entry.reads_structure for name, entry in FAMILIES_THERE_ARE.items()}
CLASSES = {name: entry.structure_classes for name, entry in FAMILIES_THERE_ARE.items()}
FIGURES = ["contributions", "lens_kl"]


def mini() -> dict:
    return yaml.safe_load((ROOT / "config" / "mini.yaml").read_text())


@pytest.fixture
def good() -> dict:
    """The mini study on sequences alone, with the models of three families."""
    config = mini()
    config["models"] = [model for model in config["models"] if model["family"] in FAMILIES]
    del config["datasets"][1:], config["training"]["structures"], config["inputs"]["conditions"]
    del config["structures"]["codes"]
    for section in ("ablation", "attribution", "fitness", "probes"):
        del config[section]["models"]
    del config["choices"][0]["models"]  # tests change the models
    del config["tuned_lens"]["models"], config["structure_heads"]
    return config


def study(config: dict, root: Path = ROOT) -> Study:
    return Study(config, FAMILIES, FIGURES, root)


def complaint(config: dict, root: Path = ROOT) -> str:
    with pytest.raises(ConfigError) as caught:
        study(config, root)
    return str(caught.value)


def test_the_shipped_mini_config_is_accepted_and_resolved():
    resolved = Study(mini(), OBJECTIVES, FIGURES, ROOT, reads_structure=READS, structure_classes=CLASSES)
    assert {m["family"] for m in resolved.models.values()} == set(OBJECTIVES)
    assert {m["objective"] for m in resolved.models.values()} == {"ar", "mlm", "diffusion"}
    assert resolved.n_shards("mini") == 1
    assert resolved.config["figures"] == FIGURES
    assert len(resolved.structures) == 14


def test_optional_sections_take_their_share_of_models_proteins_nulls_and_views(good):
    good["attribution"] |= {"models": ["dplm_toy_4"], "size": 5, "shard_size": 3}
    good["datasets"].append({**good["datasets"][0], "name": "small", "size": 4})
    resolved, name = study(good), "small"
    assert resolved.models_in("attribution", name) == ["dplm_toy_4"]
    assert resolved.size_in("attribution", name) == 4, "a smaller data set is measured whole"
    assert [resolved.ranks_in("attribution", name, shard) for shard in (0, 1)] == [(0, 3), (3, 4)]
    assert resolved.nulls_in("attribution") == [{"null_model": "randinit", "seed": 0}]
    del good["attribution"]["null_seeds"]
    assert [null["seed"] for null in study(good).nulls_in("attribution")] == [0, 1, 2]
    assert resolved.inputs_in("attribution", "diffusion")["diffusion"]["noise"] == [0.3, 0.7]
    assert resolved.inputs_in("attribution", "mlm") == {"mlm": {"noise": [0.15], "draws": 1, "clean": False}}
    assert resolved.config["attribution"]["power"] == 4 and resolved.config["tuned_lens"]["held_out"] == 0.5
    for section in ("attribution", "tuned_lens"):
        del good[section]
    assert study(good).models_in("attribution", name) == study(good).models_in("tuned_lens", name) == []


def test_maps_are_fitted_between_the_shallowest_and_the_deepest_model_of_each_family(good):
    resolved = study(good)
    families = ("esm2", "progen2", "dplm")
    assert resolved.geometry_pairs("mini") == [(f"{f}_toy_4", f"{f}_toy_8") for f in families]
    good["geometry"]["models"] = ["esm2_toy_4", "esm2_toy_8", "dplm_toy_8"]
    resolved = study(good)
    assert resolved.models_in("geometry", "mini") == good["geometry"]["models"]
    assert resolved.geometry_pairs("mini") == [("esm2_toy_4", "esm2_toy_8")]
    good["datasets"][0]["models"] = ["esm2_toy_8", "dplm_toy_4"]
    resolved = study(good)
    assert resolved.models_in("geometry", "mini") == ["esm2_toy_8"] and resolved.geometry_pairs("mini") == []
    del good["geometry"]
    assert study(good).models_in("geometry", "mini") == [] and study(good).geometry_pairs("mini") == []


def test_a_study_scores_variants_with_all_of_its_models_or_those_named_and_without_the_section_with_none(good):
    assert study(good).models_in("fitness", "mini") == list(study(good).models)
    assert study(good).config["fitness"]["window"] == 1022
    good["fitness"]["models"] = ["dplm_toy_4"]
    assert study(good).models_in("fitness", "mini") == ["dplm_toy_4"]
    del good["fitness"]
    assert study(good).models_in("fitness", "mini") == []


def test_probes_ask_for_what_there_are_data_for(good):
    assert study(good).models_in("probes", "mini") == list(study(good).models)
    del good["probes"]["tasks"]
    assert study(good).config["probes"]["tasks"] == ["ss3", "rsa", "exposed", "hse", "contacts", "homology"]
    del good["structures"]
    assert study(good).config["probes"]["tasks"] == ["homology"]
    assert study(good).config["probes"]["folds"] == 4 and study(good).config["probes"]["capacity"] == 256
    good["probes"] = {}
    assert "probes: nothing to probe; give a section structures or probes.families" in complaint(good)
    good["probes"] = {"tasks": ["contacts", "ss3"]}
    assert "probes.tasks: contacts, ss3; these need a section structures, and there is none" in complaint(good)
    del good["probes"]
    assert study(good).models_in("probes", "mini") == []


def test_variants_with_structures_need_the_section_of_structures(good):
    good["fitness"]["conditions"] = ["seq", "seq_struct"]
    study(good)
    del good["structures"]
    assert "fitness.conditions: seq_struct needs a section structures" in complaint(good)


def test_without_a_section_there_are_no_structures(good):
    del good["structures"], good["probes"]
    assert study(good).structures == []


def test_inputs_and_null_models_are_those_of_the_paper_study_by_default(good):
    del good["inputs"], good["nulls"]
    resolved, the_paper = study(good), paper()
    assert {key: resolved.config["inputs"][key] for key in ("ar", "mlm", "diffusion")} == the_paper["inputs"]
    assert resolved.config["nulls"] == the_paper["nulls"]


def test_a_data_set_can_name_the_models_that_are_measured_on_it(good):
    few = ["dplm_toy_4", "esm2_toy_4"]
    good["datasets"] = [good["datasets"][0], {**good["datasets"][0], "name": "small", "size": 5, "models": few}]
    resolved = study(good)
    assert resolved.models_of("small") == ["esm2_toy_4", "dplm_toy_4"]
    assert resolved.models_of("mini") == list(resolved.models)
    assert resolved.effects_size("small") == 5, "a smaller data set is measured whole"
    assert resolved.effects_size("mini") == resolved.config["effects"]["size"]
    good["datasets"][1]["models"] = ["dplm_toy4"]
    assert "datasets.small.models: no model 'dplm_toy4' in this study; did you mean 'dplm_toy_4'?" in complaint(good)


def paper(**changes: object) -> dict:
    return {**yaml.safe_load((ROOT / "config" / "config.yaml").read_text()), **changes}


def test_without_data_sets_there_must_be_a_question(good):
    good = {key: good[key] for key in ("study", "seed", "clusters", "compute")}
    good["models"] = [{"model": "mine", "family": "esm2", "path": "tests/fixtures/esm2/hub"}]
    assert "datasets: there is none, and no section choices: nothing to measure" in complaint(good)
    table = "resources/mini/families/families.tsv"
    alone = study({**good, "choices": [{"name": "families", "table": table, "label": "family_id"}]})
    assert alone.datasets == {} and list(alone.choices) == ["families"]


def test_the_shipped_paper_config_is_accepted_and_resolved():
    resolved = Study(paper(), OBJECTIVES, FIGURES, ROOT)
    assert all("hub" in m or "archive" in m for m in resolved.models.values())
    assert resolved.n_shards("uniref50") == 4 and resolved.ranks("uniref50", 3) == (768, 1024)


def test_the_commented_section_on_proteingym_is_a_good_one():
    text = (ROOT / "config" / "config.yaml").read_text().splitlines()
    start = next(i for i, line in enumerate(text) if line == "# fitness:")
    end = next(i for i in range(start, len(text)) if not text[i].startswith("#"))
    section = yaml.safe_load("\n".join(line[2:] for line in text[start:end]))
    first = next(i for i, line in enumerate(text) if line == "  # - name: proteingym_reference")
    last = next(i for i in range(first, len(text)) if not text[i].startswith("  #"))
    sources = yaml.safe_load("\n".join(line[4:] for line in text[first:last]))
    resolved = Study(paper(**section, sources=[*paper()["sources"], *sources]), OBJECTIVES, FIGURES, ROOT)
    assert resolved.config["fitness"]["shards"] == 4 and len(sources) == 2
    assert all(source["url"].startswith("https://") for source in sources)


def test_the_paper_study_asks_no_task_by_default_and_its_commented_probes_and_choices_are_good_ones(tmp_path):
    assert not {"probes", "fitness", "choices"} & set(paper()), "no data for them come with the workflow"
    text = (ROOT / "config" / "config.yaml").read_text().splitlines()
    sections = {}
    for first in ("# structures:", "# choices:"):
        start = next(i for i, line in enumerate(text) if line.startswith(first))
        end = next(i for i in range(start, len(text)) if text[i] in ("#", ""))
        sections |= yaml.safe_load("\n".join(line[2:] for line in text[start:end]))
    assert set(sections) == {"structures", "probes", "choices"}
    (tmp_path / "my").mkdir()
    for path in (sections["probes"]["families"]["table"], sections["choices"][0]["table"]):
        (tmp_path / path).write_text("id\tsequence\tsuperfamily\tfamily\n")
    (tmp_path / "config").symlink_to(ROOT / "config")
    resolved = Study(paper(**sections), OBJECTIVES, FIGURES, tmp_path)
    assert resolved.config["probes"]["tasks"] == ["ss3", "rsa", "exposed", "contacts", "homology"]
    assert resolved.config["choices"][0]["name"] == "stability"


def test_the_shipped_study_of_structures_is_accepted_over_the_paper_config():
    over = yaml.safe_load((ROOT / "config" / "structure.yaml").read_text())
    base = paper()
    for key, value in over.items():  # as Snakemake lays one config over another
        base[key] = {**base.get(key, {}), **value} if isinstance(value, dict) else value
    resolved = Study(base, OBJECTIVES, FIGURES, ROOT, reads_structure=READS, structure_classes=CLASSES)
    assert len({entry.structure_id for entry in resolved.structures}) == len(resolved.structures) > 90
    assert resolved.conditions_of("folds", "saprot_650m") == ["seq", "seq_struct", "struct"]
    assert "esm3_open" not in resolved.models, "its licence is accepted by the user, not by us"


def test_codes_make_a_family_that_reads_them_able_to_be_shown_structures(good):
    good["structures"]["codes"] = {"dplm2": "resources/mini/structures/codes.tsv"}
    resolved = Study(good, OBJECTIVES, FIGURES, ROOT, reads_structure=READS, structure_classes=CLASSES)
    assert resolved.can_be_shown("dplm2") and resolved.can_be_shown("saprot") and not resolved.can_be_shown("esm2")
    good["structures"]["codes"] = {"saprot": "nowhere.tsv"}
    with pytest.raises(ConfigError) as caught:
        Study(good, OBJECTIVES, FIGURES, ROOT, reads_structure=READS, structure_classes=CLASSES)
    assert "structures.codes.saprot: no family that reads codes; they are: dplm2, esm3" in str(caught.value)
    assert "structures.codes.saprot: no file nowhere.tsv" in str(caught.value)


def test_every_row_of_the_sheet_can_be_in_the_paper_study_once_its_licence_is_accepted():
    sheet = read_models(ROOT / "config" / "models.tsv")
    licences = sorted({str(row["licence"]) for row in sheet.values()})
    resolved = Study(paper(models=list(sheet), accepted_licences=licences), OBJECTIVES, FIGURES, ROOT)
    assert list(resolved.models) == list(sheet) and len(sheet) > 40
    assert {model["family"] for model in resolved.models.values()} == set(OBJECTIVES)


def test_the_paper_config_has_the_twenty_variants_but_for_those_whose_licence_waits_to_be_accepted():
    sheet = read_models(ROOT / "config" / "models.tsv")
    variants = {name for name, row in sheet.items() if row["in_study"] == "inferred"}
    waiting = {name for name in variants if sheet[name]["gated"] or sheet[name]["needs_acceptance"]}
    assert len(variants) == 20
    assert set(paper()["models"]) == variants - waiting
    text = (ROOT / "config" / "config.yaml").read_text()
    for name in waiting:
        assert f"  # - {name}\n" in text, "it stands there as a comment"
        assert f"# accepted_licences: [{sheet[name]['licence']}]\n" in text
    everything = paper(models=sorted(variants), accepted_licences=sorted({sheet[n]["licence"] for n in waiting}))
    assert set(Study(everything, OBJECTIVES, FIGURES, ROOT).models) == variants


def edit(config: dict, path: str, value: object) -> dict:
    config = copy.deepcopy(config)
    *parents, last = [int(p) if p.isdigit() else p for p in path.split(".")]
    at = config
    for part in parents:
        at = at[part]
    if value is KeyError:
        del at[last]
    else:
        at[last] = value
    return config


CASES = [
    ("study", KeyError, "study: missing; it is required"),
    ("study", "../elsewhere", "study: '../elsewhere' does not fit; expected letters, digits"),
    ("seed", "1e-4", "seed: '1e-4' is not a whole number; YAML reads 1e-4 as text"),
    ("seed", -1, "seed: -1; expected at least 0"),
    ("seeds", 1, "seeds: unknown key; did you mean 'seed'?"),
    ("datasets.0.size", 0, "datasets[0].size: 0; expected at least 1"),
    ("datasets.0.part", "test", "datasets[0].part: 'test' is not allowed; choose from all, held_out"),
    ("datasets.0.source", "unirf", "datasets.mini.source: no source 'unirf'; there are: mini"),
    ("datasets.0.min_length", 500, "datasets.mini: min_length 500 is above max_length 200"),
    ("datasets.0.shardsize", 5, "datasets[0].shardsize: unknown key; did you mean 'shard_size'?"),
    ("sources.0.url", "nowhere.fasta", "sources.mini.url: no file nowhere.fasta"),
    ("sources.0.url", "ftp://host/x.gz", "sources.mini.url: 'ftp://host/x.gz'; expected a path"),
    ("sources.0.sha256", "abc", "sources[0].sha256: 'abc' does not fit"),
    ("structures.source", "rcsb", "structures.source: 'rcsb' is not allowed; choose from folder, pdb, alphafold"),
    ("structures.folder", "nowhere", "structures.folder: no folder 'nowhere'"),
    ("structures", {"source": "pdb", "entries": ["../x"]}, "structures.entries: '../x': expected a PDB id"),
    ("training", KeyError, "datasets.mini.part: 'held_out' needs a training section"),
    ("training.held_out", 1.0, "training.held_out: 1.0; expected less than 1"),
    ("models.0.family", "esm5", "models[0].family: no family 'esm5'; did you mean 'esm2'?"),
    ("models.0.model", "a/b", "models[0].model: 'a/b' does not fit"),
    ("models.0.recipe.n_heads", 7, "is not a multiple of n_heads 7"),
    ("models.0.recipe.step", 7, "models[0].recipe.step: unknown key; did you mean 'steps'?"),
    ("models.0.path", "/x", "models[0]: give exactly one of path, hub, archive, recipe; found path, recipe"),
    ("models.0", "esm2_8mm", "models[0]: no model 'esm2_8mm' in config/models.tsv; did you mean 'esm2_8m'?"),
    ("models.1.model", "esm2_toy_4", "models[1].model: 'esm2_toy_4' stands twice"),
    ("models", [], "models: []; expected a list of at least 1"),
    ("inputs.mlm.noise", [1.5], "inputs.mlm.noise[0]: 1.5; expected at most 1"),
    ("inputs.mlm.noise", 0.15, "inputs.mlm.noise: 0.15 is not a list"),
    ("inputs.ar.directions", ["ltr"], "inputs.ar.directions[0]: 'ltr' is not allowed; choose from n2c, c2n"),
    ("nulls.0.null_model", "random", "nulls[0].null_model: 'random' is not allowed; choose from randinit"),
    ("nulls.1.seed", 0, "nulls: randinit with seed 0 stands twice"),
    ("geometry.points", ["atom"], "geometry.points[0]: 'atom' is not allowed; choose from residue, pooled"),
    ("geometry.neighbours", 5, "geometry.neighbours: unknown key"),
    ("geometry.models", ["esm2_toy_5"], "geometry.models: no model 'esm2_toy_5' in this study"),
    ("geometry.labels", "nowhere.tsv", "geometry.labels: no file nowhere.tsv"),
    ("geometry.pairs", [["esm2_toy_4", "esm2_toy_4"]], "geometry.pairs: 'esm2_toy_4' is paired with itself"),
    (
        "geometry",
        {"models": ["dplm_toy_4"], "pairs": [["dplm_toy_4", "esm2_toy_8"]]},
        "geometry.pairs: 'esm2_toy_8' is",
    ),
    ("inputs.mlm.clean", False, "would be looked at with clean inputs, but inputs.mlm.clean is false"),
    ("ablation.models", ["esm2_toy_5"], "ablation.models: no model 'esm2_toy_5' in this study; did you mean"),
    ("ablation.size", 1000, "ablation.size: 1000 proteins, but the largest data set has"),
    ("ablation.size", 1, "ablation.size: 1; expected at least 2"),
    ("ablation.ops", ["swap"], "ablation.ops[0]: 'swap' is not allowed; choose from exit, remove"),
    ("ablation.policies", ["deep"], "ablation.policies[0]: 'deep' is not allowed"),
    ("ablation.spans", [1], "ablation.spans[0]: 1; expected at least 2"),
    ("ablation.retained", [1.5], "ablation.retained[0]: 1.5; expected at most 1"),
    ("ablation.span", [2], "ablation.span: unknown key; did you mean 'spans'?"),
    ("attribution.models", ["esm2_toy_5"], "attribution.models: no model 'esm2_toy_5' in this study; did you mean"),
    ("attribution.size", 1000, "attribution.size: 1000 proteins, but the largest data set has"),
    ("attribution.methods", ["gates"], "attribution.methods[0]: 'gates' is not allowed; choose from gate, gate_part"),
    ("attribution.rule", "right", "attribution.rule: 'right' is not allowed"),
    ("attribution.power", 0, "attribution.power: 0; expected at least 1"),
    ("ablation.shard_size", 0, "ablation.shard_size: 0; expected at least 1"),
    ("tuned_lens.models", ["esm2_toy_5"], "tuned_lens.models: no model 'esm2_toy_5' in this study; did you mean"),
    ("tuned_lens.held_out", 1, "tuned_lens.held_out: 1; expected less than 1"),
    ("tuned_lens.steps", 0, "tuned_lens.steps: 0; expected at least 1"),
    ("choices", [{"name": "q", "table": "no.csv", "label": "y"}], "choices[0].table: no file no.csv"),
    ("choices.0.models", ["esm2_toy_5"], "choices[0].models: no model 'esm2_toy_5' in this study; did you mean"),
    ("choices.0.sequence", "sequence", "choices[0]: sequence and mutant; expected one of them"),
    ("choices.0.wild_type", "no.fasta#A", "choices[0].wild_type: no file no.fasta"),
    ("choices.0.truncate", 9, "choices[0].truncate: 9 blocks, but esm2_toy_8 has 8; expected at most as many"),
    ("choices.0.truncate", "half", "choices[0].truncate: 'half' does not fit; expected auto, none, or how many blocks"),
    ("choices.0.kind", "colour", "choices[0].kind: 'colour' is not allowed; choose from auto, regression"),
    ("choices.0.tolerance", 1, "choices[0].tolerance: 1; expected less than 1"),
    ("cache.anchors", 0, "geometry.points: residue needs anchors, but cache.anchors is 0"),
    ("fitness.assays", [], "fitness.assays: []; expected a list of at least 1"),
    ("fitness.assays.0.format", "excel", "fitness.assays[0].format: 'excel' is not allowed; choose from proteingym"),
    ("fitness.assays.0.wildtype", KeyError, "fitness.assays[0].wildtype: missing; format table needs it"),
    ("fitness.assays.0.reference", "mini", "fitness.assays[0].reference: format table has no such key; it has: assay"),
    (
        "fitness.assays.0.variants",
        "nowhere.csv",
        "fitness.assays[0].variants: no source 'nowhere.csv' and no such file",
    ),
    ("fitness.assays.1.assay_id", "PABP_YEAST_RRM2", "fitness.assays[1].assay_id: 'PABP_YEAST_RRM2' stands twice"),
    ("fitness.models", ["esm2_toy"], "fitness.models: no model 'esm2_toy' in this study"),
    ("fitness.scorers", ["wild"], "fitness.scorers[0]: 'wild' is not allowed; choose from wt, mask, ar"),
    ("fitness.null_models", ["shuffle_seq"], "fitness.null_models[0]: 'shuffle_seq' is not allowed"),
    ("fitness.shards", 3, "fitness.shards: 3 shards for 2 assays; expected at least one assay each"),
    ("fitness.variants", 5, "fitness.variants: unknown key"),
    ("probes.models", ["esm2_toy"], "probes.models: no model 'esm2_toy' in this study"),
    ("probes.tasks", ["ss4"], "probes.tasks[0]: 'ss4' is not allowed; choose from ss3, rsa"),
    ("probes.families", KeyError, "probes.tasks: homology needs probes.families, and there is none"),
    ("probes.families.table", "no.tsv", "probes.families.table: no file no.tsv"),
    ("probes.families.columns.clan", "c", "probes.families.columns.clan: unknown key; known keys: id, sequence"),
    ("probes.folds", 2, "probes.folds: 2; expected at least 3"),
    ("probes.penalties", [0], "probes.penalties[0]: 0; expected more than 0"),
    ("probes.min_length", 600, "probes: min_length 600 is above max_length 500"),
    ("probes.untrained", 9, "probes.untrained: 9 networks, but nulls lists 3 of randinit"),
    ("clusters.tool", "cdhit", "clusters.tool: 'cdhit' is not allowed; choose from auto, mmseqs, builtin"),
    ("figures", ["contribution"], "figures: no figure 'contribution'; did you mean 'contributions'?"),
    ("compute.device", "gpu", "compute.device: 'gpu' is not allowed; choose from auto, cpu, cuda"),
    ("compute.batchsize", 4, "compute.batchsize: unknown key; known keys: device, token_budget"),
    ("bootstrap.resamples", 10, "bootstrap.resamples: 10; expected at least 100"),
]


@pytest.fixture
def structured(good, tmp_path) -> dict:
    """A study of two models with and one without structure, on a data set from structures and another."""
    good["datasets"].append({"name": "folds", "source": "structures", "size": 4})
    good["inputs"]["conditions"] = ["struct", "seq", "seq_struct"]
    good["models"] = [{"model": f"{f}_x", "family": f, "path": str(tmp_path)} for f in ("saprot", "esm2", "dplm2")]
    del good["effects"]
    return good


def resolved_of(config: dict) -> Study:
    return Study(config, OBJECTIVES, FIGURES, ROOT, reads_structure=READS, structure_classes=CLASSES)


def test_conditions_are_those_that_the_data_set_and_the_family_have_and_the_rest_is_said(structured):
    resolved = resolved_of(structured)
    found = {(d, m): resolved.conditions_of(d, m) for d in resolved.datasets for m in resolved.models}
    assert found.pop(("folds", "saprot_x")) == ["seq", "seq_struct", "struct"]
    assert set(map(tuple, found.values())) == {("seq",)} and len(found) == 5
    assert resolved.left_out == [
        "data set mini: measured under condition seq only, it has no structures (its source is not 'structures')",
        "model esm2_x: measured under condition seq only, its family reads no structure",
        "model dplm2_x: measured under condition seq only, its family reads codes, of which this study has none",
    ]


def test_without_conditions_every_model_is_shown_the_sequence_and_nothing_is_left_out(structured):
    del structured["inputs"]["conditions"]
    resolved = resolved_of(structured)
    assert resolved.config["inputs"]["conditions"] == resolved.conditions_of("folds", "saprot_x") == ["seq"]
    assert resolved.left_out == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("inputs.conditions", ["fold"], "inputs.conditions[0]: 'fold' is not allowed; choose from seq, seq_struct"),
        ("inputs.conditions", [], "inputs.conditions: []; expected a list of at least 1"),
        ("inputs.conditions", ["struct"], "inputs.conditions: struct; expected seq among them"),
        ("datasets.1.source", "mini", "seq_struct, struct: no data set has structures; one with source 'structures'"),
        (
            "models.0.family",
            "dplm",
            "no model of this study can be shown a structure of a table of backbones; families ",
        ),
        ("models.0.family", "dplm", "families that can: saprot, esm3"),
        ("structures", KeyError, "datasets.folds.source: 'structures' needs a section structures, and there is none"),
        ("sources.0.name", "structures", "sources: 'structures' is what data sets call the sequences of the section"),
        ("datasets.1.part", "held_out", "'held_out' is a part of training.source (mini), not of 'structures'"),
        ("training.source", "structures", "training.source: no source 'structures'; there are: mini"),
    ],
)
def test_conditions_without_structures_to_show_are_named(structured, path, value, said):
    with pytest.raises(ConfigError) as caught:
        resolved_of(edit(structured, path, value))
    assert said in str(caught.value)


def test_structure_heads_are_read_where_a_family_has_one_and_is_shown_structures(structured):
    structured["structure_heads"] = {"size": 100, "inputs": {"mlm": {"draws": 1}}}
    resolved = resolved_of(structured)
    found = {(d, m) for d in resolved.datasets for m in resolved.models_in("structure_heads", d)}
    assert found == {("folds", "saprot_x")}, "no codes for dplm2_x, no head of esm2_x, no structures of mini"
    assert resolved.size_in("structure_heads", "folds") == 4 and resolved.structure_classes_of("saprot_x") == 20
    assert resolved.nulls_in("structure_heads") == [{"null_model": "randinit", "seed": 0}]
    assert resolved.inputs_in("structure_heads", "mlm") == {"mlm": {"noise": [0.15], "draws": 1, "clean": True}}
    assert not any("structure_heads" in line for line in resolved.left_out)
    structured["structure_heads"]["models"] = ["saprot_x", "dplm2_x"]
    (said,) = [line for line in resolved_of(structured).left_out if "structure_heads" in line]
    assert said.startswith("model dplm2_x: left out of structure_heads")
    del structured["structure_heads"]
    assert resolved_of(structured).models_in("structure_heads", "folds") == []


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (
            "structure_heads.models",
            ["esm2_x"],
            "esm2_x has no structure head; families that have one: saprot, dplm2, esm3",
        ),
        ("structure_heads.models", ["saprot"], "no model 'saprot' in this study; did you mean 'saprot_x'"),
        ("structure_heads.models", ["dplm2_x"], "no model with a structure head is shown structures in any data set"),
        (
            "structure_heads.shard_size",
            3,
            "structure_heads.shard_size: 3 of 4 proteins; expected a multiple of compute",
        ),
        ("structure_heads.size", 0, "structure_heads.size: 0; expected at least 1"),
        ("structure_heads.inputs", {"ar": {}}, "structure_heads.inputs.ar: unknown key"),
        (
            "inputs.conditions",
            ["seq"],
            "structure_heads: needs a condition with structure, and inputs.conditions is seq",
        ),
    ],
)
def test_structure_heads_that_cannot_be_read_are_named(structured, path, value, said):
    structured["structure_heads"] = {}
    with pytest.raises(ConfigError) as caught:
        resolved_of(edit(structured, path, value))
    assert said in str(caught.value)


@pytest.mark.parametrize(("path", "value", "said"), CASES, ids=[f"{p}={v!r}" for p, v, _ in CASES])
def test_a_bad_value_is_named_with_key_value_and_what_is_allowed(good, path, value, said):
    assert said in complaint(edit(good, path, value))


def test_every_problem_is_said_at_once(good):
    text = complaint(edit(edit(good, "seed", -1), "compute.device", "gpu"))
    assert "2 problems" in text and "seed" in text and "compute.device" in text


def test_a_local_folder_is_a_checkpoint_by_config_alone(good, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    good["models"] = [{"model": "mine", "family": "esm2", "path": str(folder)}]
    assert study(good).models["mine"]["path"] == str(folder)
    folder.rmdir()
    assert "models[0].path: no such folder" in complaint(good)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model\tfamily\n", "no column 'display_name'"),
        ("model\tdisplay_name\tfamily\thub\trevison\n", "unknown column 'revison'; did you mean 'revision'?"),
        ("model\tdisplay_name\tfamily\thub\na\tA\tesm2\n", "row 1 has not 4 cells"),
        ("model\tdisplay_name\tfamily\thub\na\tA\tesm2\torg\n", "hub: 'org' does not fit; expected organisation/name"),
        ("model\tdisplay_name\tfamily\thub\na\tA\tesm2\to/n\na\tA\tesm2\to/n\n", "model a stands twice"),
        (
            "model\tdisplay_name\tfamily\thub\trevision\na\tA\tesm2\to/n\tmain\n",
            "revision: 'main' does not fit; expected a commit of 40 hexadecimal digits",
        ),
        (
            "model\tdisplay_name\tfamily\thub\tn_blocks\na\tA\tesm2\to/n\tsix\n",
            "n_blocks: 'six' is not a whole number",
        ),
    ],
)
def test_a_bad_sheet_of_models_is_named_with_row_and_column(tmp_path, text, said):
    sheet = tmp_path / "models.tsv"
    sheet.write_text(text)
    with pytest.raises(ConfigError, match="problem") as caught:
        read_models(sheet)
    assert said in str(caught.value)


HEADER = "model\tdisplay_name\tfamily\thub\tarchive\trevision\tarchive_sha256\tlicence\tgated\tneeds_acceptance\n"
SHEET = (
    HEADER + "open\tOpen\tesm2\to/open\t\t\t\tMIT\tno\tno\n"
    "gated\tGated\tesm2\to/gated\t\t\t\tBy-Request\tyes\tno\n"
    "trade\tTrade\tesm2\to/trade\t\t\t\tCC-BY-NC-SA-4.0\tno\tyes\n"
    "packed\tPacked\tesm2\t\thttps://host/packed.tar.gz\t\t\tCC-BY-NC-SA-4.0\tno\tyes\n"
)


@pytest.fixture
def with_sheet(good, tmp_path) -> dict:
    (tmp_path / "models.tsv").write_text(SHEET)
    return {**good, "models_sheet": str(tmp_path / "models.tsv"), "models": ["open", "gated", "trade", "packed"]}


def test_weights_under_licences_that_nobody_accepted_are_refused_with_the_way_to_accept_them(with_sheet):
    said = complaint(with_sheet)
    assert "3 problems" in said and "models[0]" not in said
    assert (
        "models[1]: the weights of gated are gated: add 'By-Request' to accepted_licences in the config after "
        "reading it at https://huggingface.co/o/gated"
    ) in said
    assert (
        "models[2]: the weights of trade are not for every use: add 'CC-BY-NC-SA-4.0' to accepted_licences in the "
        "config after reading it at https://huggingface.co/o/trade"
    ) in said
    assert "models[3]: the weights of packed are not for every use" in said and "at https://host/packed.tar.gz" in said


def test_an_accepted_licence_lets_its_weights_in_and_no_others(with_sheet):
    said = complaint({**with_sheet, "accepted_licences": ["CC-BY-NC-SA-4.0"]})
    assert "1 problem " in said and "models[1]" in said
    assert "(it has 'by-Request')" in complaint({**with_sheet, "accepted_licences": ["by-Request"]})
    resolved = study({**with_sheet, "accepted_licences": ["CC-BY-NC-SA-4.0", "By-Request"]})
    assert list(resolved.models) == with_sheet["models"]


@pytest.mark.parametrize("place", [{"hub": "O/Gated"}, {"archive": "https://host/packed.tar.gz"}])
def test_a_repository_of_the_sheet_keeps_its_licence_when_the_config_spells_it_out(with_sheet, place):
    mine = {**with_sheet, "models": [{"model": "mine", "family": "esm2", **place}]}
    assert "models[0]: the weights of mine are" in complaint(mine)
    assert study({**mine, "accepted_licences": ["CC-BY-NC-SA-4.0", "By-Request"]}).models["mine"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("a\tA\tesm2\t\t\t\t\t\t\t", "give exactly one of hub, archive; found none"),
        ("a\tA\tesm2\to/n\thttps://h/a.tar\t\t\t\t\t", "give exactly one of hub, archive; found hub, archive"),
        ("a\tA\tesm2\t\thttps://h/a.zip\t\t\t\t\t", "archive: 'https://h/a.zip' does not fit; expected https:// or"),
        ("a\tA\tesm2\t\tftp://h/a.tar\t\t\t\t\t", "archive: 'ftp://h/a.tar' does not fit"),
        (f"a\tA\tesm2\to/n\t\t\t{'0' * 64}\t\t\t", "archive_sha256: says something about archive, and there is none"),
        (f"a\tA\tesm2\t\thttps://h/a.tar\t{'0' * 40}\t\t\t\t", "revision: says something about hub, and there is none"),
        ("a\tA\tesm2\to/n\t\t\t\t\tyes\t", "must be accepted first, but the column licence is empty"),
        ("a\tA\tesm2\to/n\t\t\t\tMIT\tmaybe\t", "gated: 'maybe' is not"),
    ],
)
def test_a_row_says_where_one_checkpoint_comes_from_and_under_which_licence(tmp_path, row, said):
    sheet = tmp_path / "models.tsv"
    sheet.write_text(HEADER + row + "\n")
    with pytest.raises(ConfigError) as caught:
        read_models(sheet)
    assert said in str(caught.value)


def test_the_shipped_sheet_is_read_with_types_and_has_every_family():
    models = read_models(ROOT / "config" / "models.tsv")
    assert models["esm2_650m"]["n_blocks"] == 33 and models["esm2_650m"]["gated"] is False
    assert {row["family"] for row in models.values()} == set(FAMILIES_THERE_ARE)
    for name, row in models.items():
        patterns = row.get("files", "").split(",")
        for pair in row.get("sha256", "").split(",") if "sha256" in row else []:
            file = pair.split("=")[0]
            assert any(fnmatch(file, pattern) for pattern in patterns), f"{name}: {file} is not fetched"
        assert row["n_parameters"] > 1e6 and row["licence"], name
    places = [(row.get("hub") or row["archive"]).lower() for row in models.values()]
    assert len(set(places)) == len(places)


def test_large_weights_are_not_kept_in_float32():
    models = read_models(ROOT / "config" / "models.tsv")
    assert [n for n, row in models.items() if row["n_parameters"] > 2.5e9 and row["dtype"] == "float32"] == []


def test_a_config_is_checked_without_loading_what_only_stages_need():
    """Snakemake reads the config at every start, perhaps in an environment of its own."""
    code = "import sys, plm_depth.config; print({'numpy', 'pyarrow', 'torch'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow")}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "given, window, n_shards, first",
    [
        ({"shard_size": 10}, 5, 7, (0, 10)),
        ({"shard_tokens": 3000}, 8, 3, (0, 24)),
        ({"shard_tokens": 3000}, 64, 1, (0, 64)),
        ({"shard_tokens": 30}, 8, 8, (0, 8)),
        ({}, 64, 1, (0, 64)),
    ],
)
def test_shards_hold_so_many_proteins_or_residues_and_the_data_are_not_looked_at(good, given, window, n_shards, first):
    dataset = {key: value for key, value in good["datasets"][0].items() if key != "shard_size"}
    good["compute"]["batch_window"], good["effects"]["shard_size"], good["ablation"]["shard_size"] = window, 64, 64
    found = study({**good, "datasets": [{**dataset, "size": 64, "min_length": 50, "max_length": 200, **given}]})
    (name,) = found.datasets
    assert found.n_shards(name) == n_shards and found.ranks(name, 0) == first


def test_no_shard_cuts_the_proteins_that_share_batches(good):
    """The numbers of a study do not depend on the number of its shards, down to the last bit."""
    good["datasets"][0] |= {"size": 200, "reserve": 200, "shard_size": 100}
    good["effects"] |= {"size": 200, "shard_size": 192}
    good["ablation"] |= {"size": 200, "shard_size": 1}
    lines = complaint(good).splitlines()
    name = (
        "datasets.mini.shard_size: 100 of 200 proteins; expected a multiple of compute.batch_window (64), or the whole"
    )
    assert any(name in line and "64, 128 would do" in line for line in lines)
    assert any("ablation.shard_size: 1 of 200" in line and "64 would do" in line for line in lines)
    assert not any("effects.shard_size" in line for line in lines)
    good["compute"]["batch_window"] = 1
    study(good)
    good["compute"]["batch_window"] = 0
    assert "compute.batch_window: 0; expected at least 1" in complaint(good)


def test_a_shard_of_two_sizes_is_a_contradiction(good):
    dataset = {**good["datasets"][0], "shard_size": 64, "shard_tokens": 3000}
    assert "shard_size and shard_tokens both say" in complaint({**good, "datasets": [dataset]})


# ----------------------------------------------------------------------------------------------------------------
# Skip effects

EFFECT_FIGURES = ["block_influence", "output_change", "skip_matrices", "lens_kl"]


def with_skips(good: dict, family: str | None = None, **skips: object) -> dict:
    """Return the study with these settings of what is silenced, of the models of one family or of all."""
    models = [model for model in good["models"] if family in (None, model["family"])]
    names = {model["model"] for model in models}
    own = {key: value for key, value in good.items() if key not in ("choices", "geometry")}
    return own | {"models": models, "effects": {**good["effects"], "skips": skips}} | {"names": names}


def skips_of(config: dict, figures: list[str] = EFFECT_FIGURES) -> dict:
    config.pop("names")
    return Study(config, FAMILIES, figures, ROOT).config["effects"]["skips"]


def test_geometric_branch_and_mean_ablation_are_measured_unless_asked_otherwise(good):
    found = skips_of(with_skips(good))
    assert found["parts"] == ["layer", "attn", "mlp", "geom"] and found["supporting"] == ["mean"]
    assert skips_of(with_skips(good, supporting=[], parts=["layer"])) == {**found, "parts": ["layer"], "supporting": []}


def test_parity_brings_the_settings_that_it_needs(good):
    found = skips_of(with_skips(good, "progen2", parity=True))
    assert found["parity"] and found["pos_sets"] == ["all", "prefix"] and found["supporting"] == []
    assert skips_of(with_skips(good, "progen2", parity=True, draws=2)) == {**found, "draws": 2}


@pytest.mark.parametrize(
    ("family", "skips", "said"),
    [
        (
            None,
            {"parity": True},
            "there are others: esm2_toy_4, esm2_toy_8, dplm_toy_4, dplm_toy_8",
        ),
        (
            "progen2",
            {"parity": True, "pos_sets": ["all", "other"]},
            "pos_sets: other, which parity does not know",
        ),
        ("progen2", {"parity": True, "pos_sets": ["all"]}, "expected prefix .for progen2_toy_4, progen2_toy_8. among"),
        (
            "esm2",
            {"pos_sets": ["all", "prefix"]},
            "expected other .for esm2_toy_4, esm2_toy_8. among them, which block_",
        ),
        ("esm2", {"pos_sets": ["other"]}, "pos_sets: other; expected all among them, which output_change reads"),
        (
            "esm2",
            {"parts": ["attn", "mlp"]},
            "parts: attn, mlp; expected layer among them, which .*supporting read",
        ),
        ("esm2", {"ablations": ["mean"]}, "skips.ablations: mean; expected zero among them"),
        (None, {"supporting": ["zero"]}, "supporting.*'zero' is not allowed"),
    ],
)
def test_what_figures_claims_or_conventions_cannot_have_is_said_at_the_start(good, family, skips, said):
    with pytest.raises(ConfigError, match=said):
        skips_of(with_skips(good, family, **skips))


def test_who_draws_no_figure_of_skip_effects_may_measure_any_positions(good):
    assert skips_of(with_skips(good, pos_sets=["ctx2mask"], supporting=[]), ["lens_kl"])["pos_sets"] == ["ctx2mask"]
