"""
Depth ablation, where the config has a section `ablation`: blocks removed, exchanged, reversed, and early exits.

Needs   cards/{model}.json, datasets/{dataset}/ablation/{proteins,clusters}.parquet, datasets/{dataset}/clusters.parquet
Gives   results/{study}/ablate/{dataset}/{model}/{variant}/{shard}.parquet                 per protein and run
        results/{study}/ablation/{dataset}/{model}.parquet                                 per run, with intervals
        results/{study}/ablation_summary/{dataset}/{model}.parquet                         depth in one number
"""

ABLATIONS = f"{RESULTS}/ablate/{{dataset}}/{{model}}/{{variant}}/{{shard}}.parquet"


rule ablate_depth:
    input:
        card=f"{RESULTS}/cards/{{model}}.json",
        weights=weights_of,
        proteins=f"{RESULTS}/datasets/{{dataset}}/ablation/proteins.parquet",
        clusters=f"{RESULTS}/datasets/{{dataset}}/ablation/clusters.parquet",
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
        batch_window=COMPUTE["batch_window"],
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
        " --batch-window {resources.batch_window}"
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
