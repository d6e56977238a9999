"""
Linear probes of every layer, where the config has a section `probes`.

Needs   structures/{structures,backbone}.parquet, a table of families, cards/{model}.json
Gives   results/{study}/probes/{chains,members,annotations,clusters}.parquet    proteins with known answers
        results/{study}/probes/stream/{model}.parquet                           their states at every layer
        results/{study}/probes/attention/{model}.parquet                        attention maps of some chains
        results/{study}/probes/{model}.parquet, probes/folds/{model}.parquet    scores, controls, depth
"""

PROBED_STRUCTURES = [task for task in PROBES["tasks"] if task != "homology"]
PROBE_STREAM = f"{RESULTS}/probes/stream/{{model}}.parquet"
# Attention maps come with the states where contacts are asked of them: one job, one start.
ATTENTION_MAPS = (
    {"attention": f"{RESULTS}/probes/attention/{{model}}.parquet"}
    if "contacts" in PROBES["tasks"] and PROBES["attention_chains"]
    else {}
)
# Settings of the probes themselves; the others say which proteins and which states.
PROBE_SETTINGS = (
    *("tasks", "folds", "residues", "contact_chains", "pairs", "capacity", "spaces"),
    *("penalties", "controls", "directions", "tolerance", "retention"),
)


rule annotate_proteins:
    """Proteins with known answers: chains with a structure, members of labelled families."""
    input:
        structures=(
            [f"{RESULTS}/structures/structures.parquet"] if PROBED_STRUCTURES else []
        ),
        families=families_of_probes(),
    output:
        chains=f"{RESULTS}/probes/chains.parquet",
        members=f"{RESULTS}/probes/members.parquet",
        annotations=f"{RESULTS}/probes/annotations.parquet",
    log:
        f"logs/{RESULTS}/annotate_proteins.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/annotate_proteins.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(20),
    params:
        sources=options_of_annotations(),
        shortest=PROBES["min_length"],
        longest=PROBES["max_length"],
        seed=SEED,
        code=code_of("sequences.annotations"),
    shell:
        "python -m plm_depth.sequences.annotations {params.sources:q} --min-length {params.shortest}"
        " --max-length {params.longest} --seed {params.seed} --chains {output.chains:q}"
        " --members {output.members:q} --annotations {output.annotations:q} > {log:q} 2>&1"


rule cluster_annotated:
    input:
        rules.annotate_proteins.output.chains,
        rules.annotate_proteins.output.members,
    output:
        f"{RESULTS}/probes/clusters.parquet",
    log:
        f"logs/{RESULTS}/cluster_annotated.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/cluster_annotated.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(120),
    params:
        identity=study.config["clusters"]["identity"],
        coverage=study.config["clusters"]["coverage"],
        tool=study.config["clusters"]["tool"],
        code=code_of("sequences.cluster"),
    shell:
        "python -m plm_depth.sequences.cluster --sample {input:q} --identity {params.identity}"
        " --coverage {params.coverage} --tool {params.tool} --output {output:q} > {log:q} 2>&1"


rule embed_annotated:
    """All residues of the chains (contacts need every one), the means of the members of families."""
    input:
        card=f"{RESULTS}/cards/{{model}}.json",
        weights=weights_of,
        chains=rules.annotate_proteins.output.chains,
        members=rules.annotate_proteins.output.members,
    output:
        **ATTENTION_MAPS,
        stream=PROBE_STREAM,
    log:
        f"logs/{RESULTS}/embed_annotated/{{model}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/embed_annotated/{{model}}.jsonl"
    conda:
        "../../envs/main.yaml"
    threads: COMPUTE["threads"]
    resources:
        gpu=gpus(),
        mem_mb=memory_for(PROBE_STREAM),
        runtime=minutes_for(PROBE_STREAM),
        device=COMPUTE["device"],
        token_budget=COMPUTE["token_budget"],
    params:
        nulls=as_json(probed_networks()),
        inputs=lambda wc: as_json(probed_inputs(wc.model)),
        every=PROBES["every"],
        dtype=study.config["cache"]["dtype"],
        attention=lambda wc, output: (
            ["--attention", output.attention]
            + ["--attention-proteins", PROBES["attention_chains"]]
            if ATTENTION_MAPS
            else []
        ),
        seed=SEED,
        version=EMBED_VERSION,
    shell:
        "python -m plm_depth.activations.embed --card {input.card:q} --sequences {input.chains:q} {input.members:q}"
        " --residues all none --nulls {params.nulls:q} --inputs {params.inputs:q} --every {params.every}"
        " --dtype {params.dtype} --seed {params.seed} --token-budget {resources.token_budget}"
        " --device {resources.device} --threads {threads} {params.attention:q} --output {output.stream:q}"
        " > {log:q} 2>&1"


rule probe_layers:
    input:
        **ATTENTION_MAPS,
        stream=PROBE_STREAM,
        annotations=rules.annotate_proteins.output.annotations,
        clusters=rules.cluster_annotated.output,
        backbone=(
            [f"{RESULTS}/structures/backbone.parquet"] if PROBED_STRUCTURES else []
        ),
    output:
        probes=f"{RESULTS}/probes/{{model}}.parquet",
        folds=f"{RESULTS}/probes/folds/{{model}}.parquet",
    log:
        f"logs/{RESULTS}/probe_layers/{{model}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/probe_layers/{{model}}.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(8000),
        runtime=growing(480),
    params:
        settings=as_json({key: PROBES[key] for key in PROBE_SETTINGS}),
        backbone=lambda wc, input: (
            ["--backbone", *input.backbone] if input.backbone else []
        ),
        attention=lambda wc, input: (
            ["--attention", input.attention] if ATTENTION_MAPS else []
        ),
        resamples=PROBES["resamples"],
        seed=SEED,
        code=code_of("metrics.probes"),
    shell:
        "python -m plm_depth.metrics.probes --stream {input.stream:q} --annotations {input.annotations:q}"
        " --clusters {input.clusters:q} {params.backbone:q} {params.attention:q} --settings {params.settings:q}"
        " --resamples {params.resamples} --seed {params.seed} --probe {output.folds:q} --probes {output.probes:q}"
        " > {log:q} 2>&1"
