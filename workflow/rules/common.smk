"""The study of the config, its paths, and what rules ask about it. Read and checked once; no job starts on a bad config."""

import json
import sys
from pathlib import Path

WORKFLOW = Path(str(workflow.current_basedir)).parent
sys.path.insert(0, str(WORKFLOW))

from snakemake.exceptions import WorkflowError

from plm_depth import runtime
from plm_depth.activations import VERSION as EXTRACTION
from plm_depth.code_digest import code_of
from plm_depth.config import ConfigError, Study
from plm_depth.models.registry import FAMILIES
from plm_depth.training import VERSION as TRAINING

runtime.export(str(WORKFLOW))
try:
    study = Study(
        config,
        families={name: entry.objective for name, entry in FAMILIES.items()},
        figures=sorted(
            p.stem for p in (WORKFLOW / "report").glob("*.rst") if p.stem != "workflow"
        ),
    )
except ConfigError as error:
    raise WorkflowError(str(error)) from None

RESULTS = f"results/{study.config['study']}"
SEED = study.config["seed"]
VARIANTS = ["trained", "null"] if study.config["nulls"] else ["trained"]
COMPUTE = study.config["compute"]
TRAINED_HERE = [name for name, model in study.models.items() if "recipe" in model]
FROM_HUB = [name for name, model in study.models.items() if "hub" in model]


wildcard_constraints:
    filename=r"[A-Za-z0-9._-]+",
    source="|".join(study.sources),
    dataset="|".join(study.datasets),
    model="|".join(study.models),
    variant="trained|null",
    shard=r"\d+",
    figure="|".join(study.config["figures"]),


def as_json(value):
    """Return a value as compact JSON for one command-line option (rules quote it)."""
    return json.dumps(value, separators=(",", ":"))


def source_file(name):
    """Return where a source lies: a path of the config as it stands, anything with a scheme after its download."""
    url = study.sources[name]["url"]
    return f"resources/downloads/{Path(url).name}" if "://" in url else url


def dataset_fasta(wildcards):
    dataset = study.datasets[wildcards.dataset]
    if dataset["part"] == "held_out":
        return f"{RESULTS}/training/held_out.fasta"
    return source_file(dataset["source"])


def source_identity(name):
    """Return what tells one release of a source from another."""
    source = study.sources[name]
    return source.get("sha256") or source["url"]


def source_of_file(filename):
    """Return the source whose download has this file name."""
    return next(
        s
        for name, s in study.sources.items()
        if source_file(name) == f"resources/downloads/{filename}"
    )


def sample_identity(name):
    """Return what makes a data set's sample another one, apart from its size."""
    dataset = study.datasets[name]
    identity = [
        source_identity(dataset["source"]),
        SEED,
        dataset["min_length"],
        dataset["max_length"],
        dataset["part"],
    ]
    if dataset["part"] == "held_out":
        identity += [
            study.training[key]
            for key in ("size", "min_length", "max_length", "held_out")
        ]
        identity += [
            study.config["clusters"],
            code_of("sequences.cluster"),
            code_of("sequences.split"),
        ]
    return as_json([*identity, code_of("sequences.sample")])


def shards_of(dataset):
    return range(study.n_shards(dataset))


def checkpoint_folder(wildcards):
    model = study.models[wildcards.model]
    if "recipe" in model:
        return f"{RESULTS}/checkpoints/{wildcards.model}"
    return (
        f"resources/checkpoints/{wildcards.model}" if "hub" in model else model["path"]
    )


def recipe_of(model):
    """Return what the trainer needs to know: the recipe, with the study's seed unless it has its own."""
    entry = study.models[model]
    return {"seed": SEED, **entry["recipe"], "model": model, "family": entry["family"]}


def inputs_of(model):
    """Return the views of this model's objective only, so that another objective's settings do not renew its passes."""
    objective = study.models[model]["objective"]
    return {objective: study.config["inputs"][objective]}


def gpus():
    return 0 if COMPUTE["device"] == "cpu" else 1


def memory_mb(model):
    """Return the memory a pass asks for: the weights one and a half times (loading), and the configured room to work."""
    entry = study.models[model]
    bytes_each = 4 if entry["dtype"] == "float32" else 2
    return COMPUTE["memory_gb"] * 1000 + int(
        1.5 * bytes_each * entry.get("n_parameters", 0) / 1e6
    )


def models_for_figures():
    keys = ("model", "display_name", "family", "objective")
    return [
        {**{key: m[key] for key in keys}, "toy": "recipe" in m}
        for m in study.models.values()
    ]


def nulls_of(wildcards):
    return (
        [{"null_model": "trained", "seed": -1}]
        if wildcards.variant == "trained"
        else study.config["nulls"]
    )


def per_shard(table):
    """Return an input function: one kind of activation table of every shard of a model and data set."""

    def paths(wildcards):
        return [
            f"{RESULTS}/activations/{wildcards.dataset}/{wildcards.model}/{wildcards.variant}/{shard}/{table}.parquet"
            for shard in shards_of(wildcards.dataset)
        ]

    return paths


def per_variant(table):
    """Return an input function: one kind of per-sequence metric table of a model, trained and null."""

    def paths(wildcards):
        return [
            f"{RESULTS}/metrics/{wildcards.dataset}/{wildcards.model}/{variant}/{table}.parquet"
            for variant in VARIANTS
        ]

    return paths


def figures_of_the_study():
    return expand(
        f"{RESULTS}/figures/{{dataset}}/{{figure}}.svg",
        dataset=study.datasets,
        figure=[
            f for f in study.config["figures"] if f != "training_loss" or TRAINED_HERE
        ],
    )


def downloads_of_the_study():
    fetched = [
        source_file(name)
        for name, source in study.sources.items()
        if "://" in source["url"]
    ]
    return fetched + [f"resources/checkpoints/{name}" for name in FROM_HUB]
