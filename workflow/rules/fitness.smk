"""
Zero-shot fitness by depth, where the config has a section `fitness`.

Needs   sources (deep mutational scans), cards/{model}.json, structures/backbone.parquet for condition seq_struct
Gives   results/{study}/fitness/shards/{shard}.parquet, shards/assays.parquet      variants of assays, and rows left out
        results/{study}/fitness/scores/{model}/{shard}/{scores,gram}.parquet       of every variant, at every layer
        results/{study}/fitness/{model}.parquet, summary/{model}.parquet           correlations, retention depth
"""

from plm_depth.sequences import ASSAY_FILES

FITNESS_SHARDS = range(FITNESS["shards"])
VARIANT_SCORES = f"{RESULTS}/fitness/scores/{{model}}/{{shard}}/scores.parquet"


rule tabulate_assays:
    """Every row of the sources checked; variants drawn by keyed hash, assays dealt to shards of about equal cost."""
    input:
        sorted(
            {
                assay_file(value)
                for assay in FITNESS["assays"]
                for key, value in assay.items()
                if key in ASSAY_FILES
            }
        ),
    output:
        shards=expand(
            f"{RESULTS}/fitness/shards/{{shard}}.parquet", shard=FITNESS_SHARDS
        ),
        counts=f"{RESULTS}/fitness/shards/assays.parquet",
    log:
        f"logs/{RESULTS}/tabulate_assays.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/tabulate_assays.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(8000),
        runtime=growing(120),
    params:
        assays=as_json(assays_with_paths()),
        sources=sorted(
            {
                source_identity(value)
                for assay in FITNESS["assays"]
                for key, value in assay.items()
                if key in ASSAY_FILES and value in study.sources
            }
        ),
        max_variants=FITNESS["max_variants"],
        seed=SEED,
        code=code_of("sequences.assays"),
    shell:
        "python -m plm_depth.sequences.assays --assays {params.assays:q} --max-variants {params.max_variants}"
        " --seed {params.seed} --shards {output.shards:q} --counts {output.counts:q} > {log:q} 2>&1"


rule score_variants:
    input:
        unpack(fitness_structures),
        card=f"{RESULTS}/cards/{{model}}.json",
        weights=weights_of,
        variants=f"{RESULTS}/fitness/shards/{{shard}}.parquet",
    output:
        scores=VARIANT_SCORES,
        gram=f"{RESULTS}/fitness/scores/{{model}}/{{shard}}/gram.parquet",
    log:
        f"logs/{RESULTS}/score_variants/{{model}}/{{shard}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/score_variants/{{model}}/{{shard}}.jsonl"
    conda:
        "../../envs/main.yaml"
    threads: COMPUTE["threads"]
    resources:
        gpu=gpus(),
        mem_mb=memory_for(VARIANT_SCORES),
        runtime=minutes_for(VARIANT_SCORES),
        device=COMPUTE["device"],
        token_budget=COMPUTE["token_budget"],
    params:
        nulls=as_json(fitness_networks()),
        scorers=as_json(FITNESS["scorers"]),
        embed_variants=FITNESS["embed_variants"],
        window=FITNESS["window"],
        conditions=options_of_fitness_conditions,
        version=FITNESS_VERSION,
    shell:
        "python -m plm_depth.activations.variants --card {input.card:q} --variants {input.variants:q}"
        " --nulls {params.nulls:q} --scorers {params.scorers:q} --embed-variants {params.embed_variants}"
        " --window {params.window} {params.conditions:q} --token-budget {resources.token_budget}"
        " --device {resources.device} --threads {threads} --scores {output.scores:q} --gram {output.gram:q}"
        " > {log:q} 2>&1"


rule correlate_fitness:
    input:
        variants=rules.tabulate_assays.output.shards,
        scores=expand(
            f"{RESULTS}/fitness/scores/{{{{model}}}}/{{shard}}/scores.parquet",
            shard=FITNESS_SHARDS,
        ),
        gram=expand(
            f"{RESULTS}/fitness/scores/{{{{model}}}}/{{shard}}/gram.parquet",
            shard=FITNESS_SHARDS,
        ),
    output:
        fitness=f"{RESULTS}/fitness/{{model}}.parquet",
        summary=f"{RESULTS}/fitness/summary/{{model}}.parquet",
    log:
        f"logs/{RESULTS}/correlate_fitness/{{model}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/correlate_fitness/{{model}}.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(8000),
        runtime=growing(240),
    params:
        folds=FITNESS["folds"],
        resamples=study.config["bootstrap"]["resamples"],
        variant_resamples=FITNESS["resamples"],
        seed=SEED,
        code=code_of("metrics.fitness"),
    shell:
        "python -m plm_depth.metrics.fitness --variants {input.variants:q} --scores {input.scores:q}"
        " --gram {input.gram:q} --folds {params.folds:q} --resamples {params.resamples}"
        " --variant-resamples {params.variant_resamples} --seed {params.seed}"
        " --output {output.fitness:q} --summary {output.summary:q} > {log:q} 2>&1"
