"""The study of the config, its paths, and what rules ask about it. Read and checked once; no job starts on a bad config."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

WORKFLOW = Path(str(workflow.current_basedir)).parent
sys.path.insert(0, str(WORKFLOW))

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from plm_depth import clock, code_digest, preflight, runtime, sizing
from plm_depth.activations import (
    ABLATION_VERSION,
    ATTRIBUTION_VERSION,
    EFFECTS_VERSION,
    EMBED_VERSION,
    FITNESS_VERSION,
    STRUCTURE_HEADS_VERSION,
    TUNED_LENS_VERSION,
)
from plm_depth.activations import VERSION as EXTRACTION
from plm_depth.config import FROM_STRUCTURES, ConfigError, Study
from plm_depth.models import pins
from plm_depth.models.letters import policies
from plm_depth.models.registry import FAMILIES
from plm_depth.prices import prices, tables_of
from plm_depth.sizing import growing
from plm_depth.training import VERSION as TRAINING

runtime.export(str(WORKFLOW))
try:
    study = Study(
        config,
        families={name: entry.objective for name, entry in FAMILIES.items()},
        reads_structure={
            name: entry.reads_structure for name, entry in FAMILIES.items()
        },
        structure_classes={
            name: entry.structure_classes for name, entry in FAMILIES.items()
        },
        figures=sorted(
            p.stem
            for p in (WORKFLOW / "report").glob("*.rst")
            if p.stem not in ("workflow", "records", "letters", "run_card", "choice")
        ),
    )
except ConfigError as error:
    raise WorkflowError(str(error)) from None

for line in study.left_out:
    logger.warning(line)

RESULTS = f"results/{study.config['study']}"
SEED = study.config["seed"]
EFFECTS = study.config.get("effects")
GEOMETRY = study.config.get("geometry")
ABLATION = study.config.get("ablation")
FITNESS = study.config.get("fitness")
# Tables of effective depths by model (schema SUMMARY), and the section of the config that each needs, if any.
SUMMARIES = {
    "summary/{dataset}/{model}.parquet": None,
    "ablation_summary/{dataset}/{model}.parquet": "ablation",
    "fitness/summary/{model}.parquet": "fitness",
}
ATTRIBUTION = study.config.get("attribution")
TUNED_LENS = study.config.get("tuned_lens")
STRUCTURE_HEADS = study.config.get("structure_heads")
PROBES = study.config.get("probes")
# Figures that need a section of the config, and the tables that a figure reads beside profiles and summaries.
SECTION_OF_FIGURE = {
    "skip_matrices": "effects",
    "output_change": "effects",
    "block_influence": "effects",
    "verdicts": "effects",
    "layer_similarity": "geometry",
    "stream_geometry": "geometry",
    "layer_maps": "geometry",
    "early_exit": "ablation",
    "block_removal": "ablation",
    "removed_share": "ablation",
    "ablation_matrices": "ablation",
    "fitness": "fitness",
    "fitness_assays": "fitness",
    "fitness_depth": "fitness",
    "gate_attribution": "attribution",
    "attribution_map": "attribution",
    "erasure": "attribution",
    "tuned_lens": "tuned_lens",
    "structure_heads": "structure_heads",
    "probes": "probes",
    "contacts": "probes",
}
MORE_TABLES_OF_FIGURE = {
    "training_loss": ["losses"],
    "skip_matrices": ["skips"],
    "output_change": ["skips"],
    "block_influence": ["skips"],
    "verdicts": ["skips", "verdicts"],
    "layer_similarity": ["geometries"],
    "stream_geometry": ["geometries"],
    "layer_maps": ["pairs"],
    "early_exit": ["ablations"],
    "block_removal": ["ablations"],
    "removed_share": ["ablations"],
    "ablation_matrices": ["ablations"],
    "fitness": ["fitness"],
    "fitness_assays": ["fitness"],
    "fitness_depth": ["fitness_summaries"],
    "probes": ["probes"],
    "contacts": ["probes"],
    "depth_definitions": ["depths"],
    "depth_agreement": ["depths", "taus"],
    "gate_attribution": ["attributions"],
    "attribution_map": ["attribution_maps"],
    "erasure": ["attributions"],
    "tuned_lens": ["tuned_lenses"],
    "structure_heads": ["structure_heads"],
}
# Figures that need a method of the section.
METHOD_OF_FIGURE = {
    "gate_attribution": "gate",
    "attribution_map": "gate",
    "erasure": "erasure",
}
CHOICES = study.choices
VARIANTS = ["trained", "null"] if study.config["nulls"] else ["trained"]
COMPUTE = study.config["compute"]
TRAINED_HERE = [name for name, model in study.models.items() if "recipe" in model]
FETCHED = [
    name for name, model in study.models.items() if "hub" in model or "archive" in model
]
# A receipt beside a fetched checkpoint stands for it: Snakemake would remove the folder before it is made again.
RECEIPT = pins.receipt_of("resources/checkpoints/{model}")
try:
    # What to fetch, by model; what is there already and is what the config asks for is asked for as it was before.
    REQUESTS = {
        name: pins.settled(f"resources/checkpoints/{name}", study.models[name])
        for name in FETCHED
    }
except pins.PinError as error:
    raise WorkflowError(str(error)) from None

# Jobs on other machines and in processes of their own evaluate this file, too.
IS_JOB = workflow.remote_exec or workflow.subprocess_exec
code_of = code_digest.within_run(is_job=IS_JOB)
if not IS_JOB:
    if files := clock.settle([RESULTS, "resources/downloads", "resources/checkpoints"]):
        logger.warning(
            f"{len(files)} files were written in the future, by a clock that ran ahead; they are from now on: {files[0]}, ..."
        )


wildcard_constraints:
    filename=r"[A-Za-z0-9._-]+",
    source="|".join(study.sources),
    dataset="|".join(study.datasets),
    model="|".join(study.models),
    variant="trained|null",
    choice="|".join(CHOICES) or "(?!)",
    shard=r"\d+",


def as_json(value):
    """Return a value as JSON for one command-line option (rules quote it); the order of a config's keys says nothing."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True)


def source_file(name):
    """Return where a source lies: a path of the config as it stands, anything with a scheme after its download."""
    url = study.sources[name]["url"]
    return f"resources/downloads/{Path(url).name}" if "://" in url else url


def dataset_fasta(wildcards):
    dataset = study.datasets[wildcards.dataset]
    if dataset["part"] == "held_out":
        of_structures = dataset["source"] == FROM_STRUCTURES
        name = "held_out_structures" if of_structures else "held_out"
        return f"{RESULTS}/training/{name}.fasta"
    if dataset["source"] == FROM_STRUCTURES:
        return f"{RESULTS}/structures/sequences.fasta"
    return source_file(dataset["source"])


def pool_letters(wildcards):
    """Return the table of letters of the training pool, for the data sets that come out of it."""
    is_of_pool = study.datasets[wildcards.dataset]["part"] == "held_out"
    return f"{RESULTS}/training/letters.parquet" if is_of_pool else []


def structures_of_dataset(wildcards):
    """Return the table of structures of a data set that is made of them."""
    is_of_structures = study.datasets[wildcards.dataset]["source"] == FROM_STRUCTURES
    return f"{RESULTS}/structures/structures.parquet" if is_of_structures else []


def source_identity(name):
    """Return what tells one release of a source from another; a file of this study's tells that by its own inputs."""
    if name == FROM_STRUCTURES:
        return name
    source = study.sources[name]
    return source.get("sha256") or source["url"]


def source_of_file(filename):
    """Return the source whose download has this file name."""
    return next(
        s
        for name, s in study.sources.items()
        if source_file(name) == f"resources/downloads/{filename}"
    )


def structure_of_file(filename):
    """Return an entry whose download has this file name; entries of one file share address and digest."""
    return next(
        entry
        for entry in study.structures
        if entry.url and Path(entry.path).name == filename
    )


def shards_of(dataset):
    return range(study.n_shards(dataset))


def checkpoint_folder(wildcards):
    """Return the folder of a checkpoint: trained here, the user's, or fetched."""
    model = study.models[wildcards.model]
    if "recipe" in model:
        return f"{RESULTS}/checkpoints/{wildcards.model}"
    return model.get("path", f"resources/checkpoints/{wildcards.model}")


def weights_of(wildcards):
    """Return the file or folder that stands for the weights of a model as the input of a rule."""
    if wildcards.model in FETCHED:
        return RECEIPT.format(model=wildcards.model)
    return checkpoint_folder(wildcards)


def where_to_fetch(wildcards):
    """Return the options that tell the download where a checkpoint comes from."""
    return pins.options_of(REQUESTS[wildcards.model])


def recipe_of(model):
    """Return what the trainer needs to know: the recipe, with the study's seed unless it has its own."""
    entry = study.models[model]
    return {"seed": SEED, **entry["recipe"], "model": model, "family": entry["family"]}


def inputs_of(model):
    """Return the views of this model's objective only, so that another objective's settings do not renew its passes."""
    objective = study.models[model]["objective"]
    return {objective: study.config["inputs"][objective]}


def has_structures(wildcards):
    """Return whether a model is measured on a data set under conditions with structure."""
    return study.conditions_of(wildcards.dataset, wildcards.model) != ["seq"]


def structure_tables(family):
    """Return the tables that tell a family of structures, by the option that takes them."""
    tables = {"backbone": f"{RESULTS}/structures/backbone.parquet"}
    if family in study.config.get("structures", {}).get("codes", {}):
        tables["codes"] = f"{RESULTS}/structures/codes.parquet"
    return tables


def structures_of(wildcards):
    """Return the tables behind the conditions with structure; none where there are no such conditions."""
    if not has_structures(wildcards):
        return []
    return list(structure_tables(study.models[wildcards.model]["family"]).values())


def options_of_conditions(wildcards):
    """Return the options of the conditions with structure, none without them: then nothing of a pass has changed."""
    if not has_structures(wildcards):
        return []
    conditions = study.conditions_of(wildcards.dataset, wildcards.model)
    tables = structure_tables(study.models[wildcards.model]["family"])
    return [
        "--conditions",
        as_json(conditions),
        *options_of_paths(tables),
        *how_structures_are_shown(),
    ]


def how_structures_are_shown():
    """Return the options of how structures are shown, as far as the config says."""
    inputs, words = study.config["inputs"], []
    if "struct_at_mask" in inputs:
        words += ["--struct-at-mask", inputs["struct_at_mask"]]
    if "structure_parts" in inputs:
        words += ["--structure-parts", *inputs["structure_parts"]]
    return words


def options_of_paths(paths):
    """Return the options of a stage that takes one path an option."""
    return [word for option, path in paths.items() for word in (f"--{option}", path)]


def training_structures(wildcards):
    """Return the tables of structures that a model to be trained is shown, by option."""
    family = study.models[wildcards.model]["family"]
    if not (study.training["structures"] and study.can_be_shown(family)):
        return {}
    return structure_tables(family)


def gpus():
    return 0 if COMPUTE["device"] == "cpu" else 1


PRICES = {}


def price_of(output):
    """Return the price of the job that makes an output, None for a model whose size is unknown."""
    if not PRICES:
        PRICES.update((price.output, price) for price in prices(study))
    return PRICES.get(output)


def memory_for(output):
    """Return a resource: the memory that a job with a model asks for, by the pattern of the output that has its price."""

    def mem_mb(wildcards, attempt):
        price = price_of(output.format(**wildcards))
        return sizing.memory_mb(price, room_gb=COMPUTE["memory_gb"], attempt=attempt)

    return mem_mb


def memory_mb(model, attempt=1):
    """Return the memory that a job asks for which loads a model and has no price of its own."""
    price = price_of(f"{RESULTS}/cards/{model}.json")
    return sizing.memory_mb(price, room_gb=COMPUTE["memory_gb"], attempt=attempt)


def minutes_for(output):
    """Return a resource: the minutes that a job with a model asks for, as in `memory_for`."""

    def runtime(wildcards, attempt):
        price = price_of(output.format(**wildcards))
        on = {key: COMPUTE[key] for key in ("device", "threads", "tflops")}
        return sizing.minutes(
            price, room_gb=COMPUTE["memory_gb"], attempt=attempt, **on
        )

    return runtime


def memory_of_metrics(stage):
    """Return a resource: the memory that a stage of the metrics asks for, by the tables that it reads."""

    def mem_mb(wildcards, attempt):
        return sizing.metrics_mb(
            stage,
            tables_read(wildcards),
            resamples=study.config["bootstrap"]["resamples"],
            attempt=attempt,
        )

    return mem_mb


def minutes_of_metrics(stage):
    """Return a resource: the minutes that a stage of the metrics asks for, by the tables that it reads."""

    def runtime(wildcards, attempt):
        return sizing.metrics_minutes(stage, tables_read(wildcards), attempt=attempt)

    return runtime


def tables_read(wildcards):
    variant = getattr(wildcards, "variant", None)
    return tables_of(study, wildcards.dataset, wildcards.model, variant)


def listed(models):
    """Return models as figures need them."""
    keys = ("model", "display_name", "family", "objective")
    return [
        {
            **{key: m[key] for key in keys},
            "family_name": FAMILIES[m["family"]].name,
            "toy": "recipe" in m,
            "reads_residues": FAMILIES[m["family"]].tokens_are_residues,
        }
        for m in (study.models[name] for name in models)
    ]


def models_for_figures(dataset):
    return listed(study.models_of(dataset))


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


def all_summaries(wildcards):
    """Return the tables of effective depths of every model of a data set that this study makes."""
    return [
        f"{RESULTS}/{table.format(dataset=wildcards.dataset, model=model)}"
        for table, section in SUMMARIES.items()
        for model in (
            study.models_in(section, wildcards.dataset)
            if section
            else study.models_of(wildcards.dataset)
        )
    ]


def further_depths(wildcards):
    """Return the other tables that hold effective depths, by the option that takes them."""
    kinds = {
        "skips": ("effects", "skip/{dataset}/{model}.parquet"),
        "attributions": ("attribution", "attribution/{dataset}/{model}.parquet"),
        "probes": ("probes", "probes/{model}.parquet"),
    }
    tables = {
        kind: [
            f"{RESULTS}/{path.format(dataset=wildcards.dataset, model=model)}"
            for model in study.models_in(section, wildcards.dataset)
        ]
        for kind, (section, path) in kinds.items()
    }
    return {kind: paths for kind, paths in tables.items() if paths}


def stream_of(model):
    """Return an input function: the stream tables of all shards and variants of a model, named or by its wildcard."""

    def paths(wildcards):
        named = {"dataset": wildcards.dataset, "model": getattr(wildcards, model)}
        return [
            path
            for variant in VARIANTS
            for path in per_shard("stream")(SimpleNamespace(**named, variant=variant))
        ]

    return paths


def geometry_settings():
    """Return what the clouds of one model are measured with."""
    keys = ("points", "spaces", "max_points", "spectrum_points", "k", "groups")
    return {key: GEOMETRY[key] for key in keys}


def geometry_mb(*models):
    """Return the memory of the clouds of models: all layers, as stored and in one space, and as much again to work."""
    numbers = 0
    for model in models:
        entry = study.models[model]
        sizes = entry.get("recipe", entry)
        numbers += (sizes.get("n_blocks", 48) + 1) * sizes.get("d_model", 2560)
    return 1000 + int(4 * 4 * numbers * GEOMETRY["max_points"] / 1e6)


def models_of_choice(name):
    """Return the models that a question is put to: those with a state a residue, where labels are of residues."""
    choice = CHOICES[name]
    of_residues = choice["kind"].startswith("residue-")
    return [
        model
        for model in choice.get("models", study.models)
        if FAMILIES[study.models[model]["family"]].tokens_are_residues
        or not of_residues
    ]


def columns_of_choice(wildcards):
    """Return the options that say how a user's table is to be read."""
    choice = CHOICES[wildcards.choice]
    keys = ("mutant", "wild_type", "identifier", "split", "cluster")
    keys += ("kind", "max_length", "too_long", "unknown")
    options = [
        f"--{key.replace('_', '-')}={choice[key]}" for key in keys if key in choice
    ]
    if "mutant" not in choice:
        options.append(f"--sequence={choice['sequence']}")
    return [*options, "--label", *choice["label"]]


def wild_type_of_choice(wildcards):
    """Return the file of the wild type of a question, none where there is none."""
    return CHOICES[wildcards.choice].get("wild_type", "").rpartition("#")[0] or []


def clusters_of_choice(wildcards):
    """Return the table of clusters of a question, none where the user's table brings its own."""
    if "cluster" in CHOICES[wildcards.choice]:
        return []
    return f"{RESULTS}/choices/{wildcards.choice}/clusters.parquet"


def settings_of_choice(wildcards):
    """Return how layers are compared, as the stage takes it."""
    keys = ("folds", "probes", "neighbours", "tolerance", "capacity", "direction")
    return {key: CHOICES[wildcards.choice][key] for key in keys}


def residues_of_choice(wildcards):
    """Return how many residues of a protein are embedded: none, unless labels are of residues or may be."""
    choice = CHOICES[wildcards.choice]
    of_proteins = choice["kind"] in ("regression", "classification", "multi-label")
    return "none" if of_proteins or len(choice["label"]) > 1 else choice["residues"]


def origin_of(model):
    """Return the options that tell a truncated checkpoint's card where the whole one comes from."""
    entry = study.models[model]
    options = {
        "--origin": entry.get("hub") or entry.get("archive"),
        "--licence": entry.get("licence"),
    }
    return [word for pair in options.items() if pair[1] for word in pair]


def outputs_of_choices():
    """Return what is made for every question: tables, recommendation, picture, truncated checkpoints."""
    made = []
    for name, choice in CHOICES.items():
        folder, models = f"{RESULTS}/choices/{name}", models_of_choice(name)
        made += [f"{folder}/recommendation.html", f"{folder}/scores.svg"]
        made += [f"{folder}/{model}.parquet" for model in models]
        if choice["truncate"] != "none":
            made += [f"{folder}/truncated/{model}" for model in models]
    return made


def effect_ranks(wildcards):
    """Return the first rank of an effect shard and the one after its last."""
    first = int(wildcards.shard) * EFFECTS["shard_size"]
    return first, min(
        first + EFFECTS["shard_size"], study.effects_size(wildcards.dataset)
    )


def effect_nulls_of(wildcards):
    if wildcards.variant == "trained":
        return [{"null_model": "trained", "seed": -1}]
    return study.nulls_in("effects")


def effect_inputs_of(model):
    """Return the views under which effects are measured: the study's, without the clean controls unless asked for."""
    objective = study.models[model]["objective"]
    inputs = {
        **study.config["inputs"][objective],
        **EFFECTS["inputs"].get(objective, {}),
    }
    return {objective: inputs}


def effect_grid():
    """Return the noise levels over which effects of diffusion models are averaged: those at which they are measured."""
    return {
        **study.config["inputs"]["diffusion"],
        **EFFECTS["inputs"].get("diffusion", {}),
    }["noise"]


def per_effect_shard(table):
    """Return an input function: one kind of effect table of every shard and variant of a model and data set."""

    def paths(wildcards):
        return [
            f"{RESULTS}/effects/{wildcards.dataset}/{wildcards.model}/{variant}/{shard}/{table}.parquet"
            for variant in VARIANTS
            if variant == "trained" or study.nulls_in("effects")
            for shard in range(
                -(-study.effects_size(wildcards.dataset) // EFFECTS["shard_size"])
            )
        ]

    return paths


def shards_in(section, dataset):
    """Return the shards of a data set in a section."""
    own = study.config[section]
    return range(-(-study.size_in(section, dataset) // own["shard_size"]))


def of_all_models(paths, wildcards):
    """Return what an input function of one model gives, for all models of a data set."""
    return [
        path
        for model in study.models_of(wildcards.dataset)
        for path in paths(SimpleNamespace(dataset=wildcards.dataset, model=model))
    ]


def options_of(tables):
    """Return the options of a stage that takes tables by kind, as (kind, paths) pairs."""
    return [word for kind, paths in tables for word in (f"--{kind}", *paths)]


def drawn_figures():
    """Return the figures of this study that it has the tables for."""
    return [
        figure
        for figure in study.config["figures"]
        if (figure != "training_loss" or TRAINED_HERE)
        and study.config.get(SECTION_OF_FIGURE.get(figure, "models"))
        and (
            figure not in METHOD_OF_FIGURE
            or METHOD_OF_FIGURE[figure] in ATTRIBUTION["methods"]
        )
    ]


def tables_of_figure(figure):
    """Return an input function: the tables that a figure reads, by the option of the figures' door."""
    per_model = {
        "profiles": "profiles/{dataset}/{model}.parquet",
        "summaries": "summary/{dataset}/{model}.parquet",
        "skips": "skip/{dataset}/{model}.parquet",
    }
    per_section = {
        "geometries": ("geometry", "geometry/{dataset}/{model}.parquet"),
        "ablations": ("ablation", "ablation/{dataset}/{model}.parquet"),
        "fitness": ("fitness", "fitness/{model}.parquet"),
        "fitness_summaries": ("fitness", "fitness/summary/{model}.parquet"),
        "probes": ("probes", "probes/{model}.parquet"),
        "attributions": ("attribution", "attribution/{dataset}/{model}.parquet"),
        "attribution_maps": (
            "attribution",
            "attribution/{dataset}/{model}.example.parquet",
        ),
        "tuned_lenses": ("tuned_lens", "tuned_lens/{dataset}/{model}.parquet"),
        "structure_heads": (
            "structure_heads",
            "structure_heads/{dataset}/{model}.parquet",
        ),
    }
    per_dataset = {
        "verdicts": "verdicts/{dataset}.parquet",
        "depths": "depths/{dataset}/depths.parquet",
        "taus": "depths/{dataset}/tau.parquet",
    }
    wanted = ["profiles", "summaries", *MORE_TABLES_OF_FIGURE.get(figure, [])]

    def tables(wildcards):
        models = study.models_of(wildcards.dataset)
        paths = {
            "pairs": [
                f"geometry_pairs/{{dataset}}/{one}/{other}.parquet"
                for one, other in study.geometry_pairs(wildcards.dataset)
            ],
            "losses": [
                f"losses/{model}.parquet" for model in models if model in TRAINED_HERE
            ],
            **{kind: [path] for kind, path in per_dataset.items()},
            **{
                kind: expand(path, model=models, allow_missing=True)
                for kind, path in per_model.items()
            },
            **{
                kind: expand(
                    path,
                    model=study.models_in(section, wildcards.dataset),
                    allow_missing=True,
                )
                for kind, (section, path) in per_section.items()
            },
        }
        return {
            kind: [
                f"{RESULTS}/{path.format(dataset=wildcards.dataset)}"
                for path in paths[kind]
            ]
            for kind in wanted
        }

    return tables


def has_tables(figure, dataset):
    """Return whether a data set has any table that a figure is drawn from."""
    if figure == "training_loss":
        return bool(set(TRAINED_HERE) & set(study.models_of(dataset)))
    if figure == "conditions":
        models = study.models_of(dataset)
        return any(len(study.conditions_of(dataset, model)) > 1 for model in models)
    if figure == "layer_maps":
        return bool(study.geometry_pairs(dataset))
    section = SECTION_OF_FIGURE.get(figure)
    return section is None or bool(study.models_in(section, dataset))


def figures_of_the_study():
    """Return every figure that this study has the tables for, and the tables of the report."""
    return [
        *(
            f"{RESULTS}/figures/{dataset}/{figure}.svg"
            for dataset in study.datasets
            for figure in drawn_figures()
            if has_tables(figure, dataset)
        ),
        *(
            f"{RESULTS}/{kind}/{dataset}/{model}.parquet"
            for dataset in study.datasets
            for model in study.models_in("ablation", dataset)
            for kind in ("ablation", "ablation_summary")
        ),
        *expand(f"{RESULTS}/figures/{{dataset}}/records.html", dataset=study.datasets),
        *expand(
            f"{RESULTS}/depths/{{dataset}}/{{table}}.parquet",
            dataset=study.datasets,
            table=["depths", "tau"],
        ),
        *(
            f"{RESULTS}/geometry/{dataset}/{model}.parquet"
            for dataset in study.datasets
            for model in study.models_in("geometry", dataset)
        ),
        *(
            f"{RESULTS}/geometry_pairs/{dataset}/{one}/{other}.parquet"
            for dataset in study.datasets
            for one, other in study.geometry_pairs(dataset)
        ),
        *(
            f"{RESULTS}/skip/{dataset}/{model}.parquet"
            for dataset in (study.datasets if EFFECTS else [])
            for model in study.models_of(dataset)
        ),
        *expand(
            f"{RESULTS}/verdicts/{{dataset}}.parquet",
            dataset=study.datasets if EFFECTS else [],
        ),
        *outputs_of_choices(),
        *(
            f"{RESULTS}/{section}/{model}.parquet"
            for section in ("fitness", "probes")
            for dataset in study.datasets
            for model in study.models_in(section, dataset)
        ),
        *(
            f"{RESULTS}/attribution/{dataset}/{model}.parquet"
            for dataset in study.datasets
            for model in study.models_in("attribution", dataset)
        ),
        *(
            f"{RESULTS}/{section}/{dataset}/{model}.parquet"
            for section in ("tuned_lens", "structure_heads")
            for dataset in study.datasets
            for model in study.models_in(section, dataset)
        ),
        *expand(
            f"{RESULTS}/structures/{{table}}.parquet",
            table=["structures", "backbone"] if study.structures else [],
        ),
    ]


def stage_versions():
    """Return the hand-raised versions of the stages that run a model."""
    return {
        "training": TRAINING,
        "extraction": EXTRACTION,
        "effects": EFFECTS_VERSION,
        "ablation": ABLATION_VERSION,
        "embeddings": EMBED_VERSION,
        "fitness": FITNESS_VERSION,
        "attribution": ATTRIBUTION_VERSION,
        "tuned_lens": TUNED_LENS_VERSION,
        "structure_heads": STRUCTURE_HEADS_VERSION,
    }


def downloads_of_the_study():
    fetched = [
        source_file(name)
        for name, source in study.used_sources.items()
        if "://" in source["url"]
    ]
    fetched += sorted({entry.path for entry in study.structures if entry.url})
    return fetched + [RECEIPT.format(model=name) for name in FETCHED]


def remember_the_command(jobs):
    """Write down what to resume; a question about the study is not a run of it."""
    if not any(job.rule.name == "preflight" for job in jobs):
        runtime.remember(sys.argv[1:])


def say_what_it_costs(jobs, is_local):
    """Say what jobs cost before the first of them runs (of the target preflight: of what is not there yet); end a study that cannot finish."""
    asked = any(job.rule.name == "preflight" for job in jobs)
    outputs = None if asked else [str(path) for job in jobs for path in job.output]
    if folder := runtime.unwritable(outputs or []):
        raise WorkflowError(
            f"{folder} cannot be written by this user on this machine (read-only?); nothing was started"
        )
    try:
        preflight.at_start(study, outputs, is_local=is_local, say=logger.info)
    except preflight.PreflightError as error:
        raise WorkflowError(str(error)) from None


def more_evidence():
    """Return the further kinds of per-protein tables that claims rest on, and the noise levels of each."""
    kinds = [kind for kind in ("ablation", "attribution") if study.config.get(kind)]
    return {
        kind: study.inputs_in(kind, "diffusion")["diffusion"]["noise"] for kind in kinds
    }


def ablation_nulls_of(variant):
    if variant == "trained":
        return [{"null_model": "trained", "seed": -1}]
    return study.nulls_in("ablation")


def ablation_shards(wildcards):
    """Return the ablation tables of every shard and variant of a model and data set; none of a model left out."""
    if wildcards.model not in study.models_in("ablation", wildcards.dataset):
        return []
    return [
        f"{RESULTS}/ablate/{wildcards.dataset}/{wildcards.model}/{variant}/{shard}.parquet"
        for variant in ("trained", "null")
        if ablation_nulls_of(variant)
        for shard in shards_in("ablation", wildcards.dataset)
    ]


def ablation_grid():
    """Return the noise levels over which ablations of diffusion models are averaged: those at which they are run."""
    return study.inputs_in("ablation", "diffusion")["diffusion"]["noise"]


def attribution_shards(dataset, model):
    """Return the tables of attributions of every shard of a model and data set."""
    return [
        ATTRIBUTED.format(dataset=dataset, model=model, shard=shard)
        for shard in shards_in("attribution", dataset)
    ]


def assay_file(name):
    """Return where a file of assays lies: a source of the config, or a path."""
    return source_file(name) if name in study.sources else name


def assays_with_paths():
    """Return the assays of the config with the paths of their files."""
    return [
        {
            key: assay_file(value) if key in ASSAY_FILES else value
            for key, value in assay.items()
        }
        for assay in FITNESS["assays"]
    ]


def fitness_networks():
    """Return the trained network and its null models: one job scores all of them and loads the model once."""
    nulls = [
        n for n in study.config["nulls"] if n["null_model"] in FITNESS["null_models"]
    ]
    return [{"null_model": "trained", "seed": -1}, *nulls]


def fitness_structures(wildcards):
    """Return the tables of structures that wild types are shown with, by option; none for the sequence alone."""
    family = study.models[wildcards.model]["family"]
    if FITNESS["conditions"] == ["seq"] or not study.can_be_shown(family):
        return {}
    return structure_tables(family)


def options_of_fitness_conditions(wildcards):
    tables = fitness_structures(wildcards)
    if not tables:
        return []
    return ["--conditions", as_json(FITNESS["conditions"]), *options_of_paths(tables)]


def families_of_probes():
    return [PROBES["families"]["table"]] if "families" in PROBES else []


def options_of_annotations():
    """Return the options that say where chains and members of families come from."""
    words = []
    if PROBED_STRUCTURES:
        words += ["--structures", f"{RESULTS}/structures/structures.parquet"]
        words += ["--size", PROBES["chains"]]
    for table in families_of_probes():
        words += ["--families", table]
        words += ["--columns", as_json(PROBES["families"].get("columns", {}))]
    return words


def probed_networks():
    """Return the trained network and the untrained ones beside it: one job shows all of them the proteins."""
    untrained = [n for n in study.config["nulls"] if n["null_model"] == "randinit"]
    wanted = PROBES["untrained"] if "untrained" in PROBES["controls"] else 0
    return [{"null_model": "trained", "seed": -1}, *untrained[:wanted]]


def probed_inputs(model):
    """Return the views that are probed: the clean input, and for masked and diffusion models the noise asked for."""
    objective = study.models[model]["objective"]
    if objective == "ar":
        return {"ar": {"directions": ["n2c", "c2n"]}}
    return {objective: {"noise": PROBES["noise"], "draws": 1, "clean": True}}
