"""
Depth ablation, where the config has a section `ablation`: blocks removed, exchanged, reversed, and early exits.

Needs   cards/{model}.json, datasets/{dataset}/candidates.parquet, datasets/{dataset}/clusters.parquet
Gives   results/{study}/datasets/{dataset}/ablated/{proteins,clusters}.parquet             what is ablated
        results/{study}/ablate/{dataset}/{model}/{variant}/{shard}.parquet                 per protein and run
        results/{study}/ablation/{dataset}/{model}.parquet                                 per run, with intervals
        results/{study}/ablation_summary/{dataset}/{model}.parquet                         depth in one number
"""


rule cut_ablated_proteins:
    """The first ranks of the sample: ablations cost many passes, so they are measured on fewer proteins."""
    input:
        f"{RESULTS}/datasets/{{dataset}}/candidates.parquet",
    output:
        f"{RESULTS}/datasets/{{dataset}}/ablated/proteins.parquet",
    log:
        f"logs/{RESULTS}/cut_ablated_proteins/{{dataset}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/cut_ablated_proteins/{{dataset}}.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(10),
    params:
        size=lambda wc: study.size_in("ablation", wc.dataset),
        code=code_of("sequences.shard"),
    shell:
        "python -m plm_depth.sequences.shard --sample {input:q} --first 0 --last {params.size} --output {output:q}"
        " > {log:q} 2>&1"


rule cluster_ablated_proteins:
    """Clusters of these alone, for choosing and evaluating on different ones: a grown sample renews no ablation."""
    input:
        rules.cut_ablated_proteins.output,
    output:
        f"{RESULTS}/datasets/{{dataset}}/ablated/clusters.parquet",
    log:
        f"logs/{RESULTS}/cluster_ablated_proteins/{{dataset}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/cluster_ablated_proteins/{{dataset}}.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(60),
    params:
        identity=study.config["clusters"]["identity"],
        coverage=study.config["clusters"]["coverage"],
        code=code_of("sequences.cluster"),
    shell:
        "python -m plm_depth.sequences.cluster --sample {input:q} --identity {params.identity}"
        " --coverage {params.coverage} --output {output:q} > {log:q} 2>&1"


ABLATIONS = f"{RESULTS}/ablate/{{dataset}}/{{model}}/{{variant}}/{{shard}}.parquet"


rule ablate_depth:
    input:
        card=f"{RESULTS}/cards/{{model}}.json",
        folder=checkpoint_folder,
        proteins=rules.cut_ablated_proteins.output,
        clusters=rules.cluster_ablated_proteins.output,
        structures=structures_of,
    output:
        ABLATIONS,
    log:
        f"logs/{RESULTS}/ablate_depth/{{dataset}}/{{model}}/{{variant}}/{{shard}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/ablate_depth/{{dataset}}/{{model}}/{{variant}}/{{shard}}.jsonl"
    conda:
        "../../envs/main.yaml"
    threads: COMPUTE["threads"]
    resources:
        gpu=gpus(),
        mem_mb=memory_for(ABLATIONS),
        runtime=minutes_for(ABLATIONS),
        device=COMPUTE["device"],
        token_budget=COMPUTE["token_budget"],
    params:
        ranks=lambda wc: study.ranks_in("ablation", wc.dataset, int(wc.shard)),
        nulls=lambda wc: as_json(ablation_nulls_of(wc.variant)),
        inputs=lambda wc: as_json(
            study.inputs_in("ablation", study.models[wc.model]["objective"])
        ),
        ablations=as_json(
            {
                key: ABLATION[key]
                for key in (
                    "ops",
                    "policies",
                    "lengths",
                    "spans",
                    "exhaustive_up_to",
                    "draws",
                    "selection",
                    "pseudo_perplexity",
                )
            }
        ),
        conditions=options_of_conditions,
        seed=SEED,
        version=ABLATION_VERSION,
    shell:
        "python -m plm_depth.activations.ablation --card {input.card:q} --sequences {input.proteins:q}"
        " --clusters {input.clusters:q} --first {params.ranks[0]} --last {params.ranks[1]}"
        " --nulls {params.nulls:q} --inputs {params.inputs:q} --ablations {params.ablations:q}"
        " {params.conditions:q} --seed {params.seed} --token-budget {resources.token_budget}"
        " --device {resources.device} --threads {threads} --output {output:q} > {log:q} 2>&1"


rule reduce_ablation:
    input:
        ablation=ablation_shards,
        clusters=f"{RESULTS}/datasets/{{dataset}}/clusters.parquet",
    output:
        ablation=f"{RESULTS}/ablation/{{dataset}}/{{model}}.parquet",
        summary=f"{RESULTS}/ablation_summary/{{dataset}}/{{model}}.parquet",
    log:
        f"logs/{RESULTS}/reduce_ablation/{{dataset}}/{{model}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/reduce_ablation/{{dataset}}/{{model}}.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        grid=as_json(ablation_grid()),
        retained=as_json(ABLATION["retained"]),
        resamples=study.config["bootstrap"]["resamples"],
        seed=SEED,
        code=code_of("metrics.ablation"),
    shell:
        "python -m plm_depth.metrics.ablation --ablation {input.ablation:q} --clusters {input.clusters:q}"
        " --grid {params.grid:q} --retained {params.retained:q} --resamples {params.resamples} --seed {params.seed}"
        " --output {output.ablation:q} --summary {output.summary:q} > {log:q} 2>&1"
