"""
Causal skip effects and the claims judged by them, where the config has a section `effects`.

Needs   cards/{model}.json, datasets/{dataset}/candidates.parquet, and for verdicts metrics/{dataset}/... from metrics.smk
Gives   results/{study}/effects/{dataset}/{model}/{variant}/{shard}/{skip,output_change}.parquet   per protein and source
        results/{study}/skip/{dataset}/{model}.parquet                                             matrices, with intervals
        results/{study}/verdicts/{dataset}.parquet                                                 claims K1-K6
"""


rule cut_effect_shard:
    """The first ranks of the sample: skip effects cost many passes, so they are measured on fewer proteins."""
    input:
        f"{RESULTS}/datasets/{{dataset}}/candidates.parquet",
    output:
        f"{RESULTS}/datasets/{{dataset}}/effect_shards/{{shard}}.parquet",
    log:
        f"logs/{RESULTS}/cut_effect_shard/{{dataset}}/{{shard}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/cut_effect_shard/{{dataset}}/{{shard}}.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(10),
    params:
        ranks=effect_ranks,
        code=code_of("sequences.shard"),
    shell:
        "python -m plm_depth.sequences.shard --sample {input:q} --first {params.ranks[0]} --last {params.ranks[1]}"
        " --output {output:q} > {log:q} 2>&1"


SWEEPS = f"{RESULTS}/effects/{{dataset}}/{{model}}/{{variant}}/{{shard}}/skip.parquet"


rule measure_effects:
    input:
        card=f"{RESULTS}/cards/{{model}}.json",
        weights=weights_of,
        sequences=f"{RESULTS}/datasets/{{dataset}}/effect_shards/{{shard}}.parquet",
        # Means and donors come from the first of the reserve, so that they do not depend on shards.
        reference=f"{RESULTS}/datasets/{{dataset}}/candidates.parquet",
        structures=structures_of,
    output:
        skip=SWEEPS,
        change=f"{RESULTS}/effects/{{dataset}}/{{model}}/{{variant}}/{{shard}}/output_change.parquet",
    log:
        f"logs/{RESULTS}/measure_effects/{{dataset}}/{{model}}/{{variant}}/{{shard}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/measure_effects/{{dataset}}/{{model}}/{{variant}}/{{shard}}.jsonl"
    conda:
        "../../envs/main.yaml"
    threads: COMPUTE["threads"]
    resources:
        gpu=gpus(),
        mem_mb=memory_for(SWEEPS),
        runtime=minutes_for(SWEEPS),
        device=COMPUTE["device"],
        token_budget=COMPUTE["token_budget"],
        batch_window=COMPUTE["batch_window"],
    params:
        nulls=lambda wc: as_json(effect_nulls_of(wc)),
        inputs=lambda wc: as_json(effect_inputs_of(wc.model)),
        skips=as_json(EFFECTS["skips"]),
        conditions=options_of_conditions,
        seed=SEED,
        version=EFFECTS_VERSION,
    shell:
        "python -m plm_depth.activations.effects --card {input.card:q} --sequences {input.sequences:q}"
        " --reference {input.reference:q} --nulls {params.nulls:q} --inputs {params.inputs:q} --skips {params.skips:q}"
        " {params.conditions:q}"
        " --seed {params.seed} --token-budget {resources.token_budget}"
        " --batch-window {resources.batch_window} --device {resources.device}"
        " --threads {threads} --skip {output.skip:q} --output-change {output.change:q} > {log:q} 2>&1"


rule reduce_effects:
    input:
        skip=per_effect_shard("skip"),
        change=per_effect_shard("output_change"),
        clusters=f"{RESULTS}/datasets/{{dataset}}/clusters.parquet",
    output:
        f"{RESULTS}/skip/{{dataset}}/{{model}}.parquet",
    log:
        f"logs/{RESULTS}/reduce_effects/{{dataset}}/{{model}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/reduce_effects/{{dataset}}/{{model}}.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        grid=as_json(effect_grid()),
        resamples=study.config["bootstrap"]["resamples"],
        seed=SEED,
        code=code_of("metrics.skip"),
    shell:
        "python -m plm_depth.metrics.skip --skip {input.skip:q} --output-change {input.change:q}"
        " --clusters {input.clusters:q} --grid {params.grid:q} --resamples {params.resamples} --seed {params.seed}"
        " --output {output:q} > {log:q} 2>&1"


rule judge_claims:
    input:
        skip=lambda wc: of_all_models(per_effect_shard("skip"), wc),
        change=lambda wc: of_all_models(per_effect_shard("output_change"), wc),
        lens=lambda wc: of_all_models(per_variant("lens"), wc),
        contributions=lambda wc: of_all_models(per_variant("contributions"), wc),
        ablation=lambda wc: of_all_models(ablation_shards, wc) if ABLATION else [],
        attribution=lambda wc: [
            path
            for model in study.models_in("attribution", wc.dataset)
            for path in attribution_shards(wc.dataset, model)
        ],
        clusters=f"{RESULTS}/datasets/{{dataset}}/clusters.parquet",
        models=f"{RESULTS}/datasets/{{dataset}}/models.json",
    output:
        f"{RESULTS}/verdicts/{{dataset}}.parquet",
    log:
        f"logs/{RESULTS}/judge_claims/{{dataset}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/judge_claims/{{dataset}}.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(8000),
        runtime=growing(120),
    params:
        grid=as_json(study.config["inputs"]["diffusion"]["noise"]),
        effect_grid=as_json(effect_grid()),
        margins=as_json(study.config["verdicts"]),
        more=lambda wc, input: [
            word
            for kind, measured in more_evidence().items()
            if input[kind]
            for word in (
                f"--{kind}-grid",
                as_json(measured),
                f"--{kind}",
                *input[kind],
            )
        ],
        resamples=study.config["bootstrap"]["resamples"],
        seed=SEED,
        code=code_of("metrics.verdicts"),
    shell:
        "python -m plm_depth.metrics.verdicts --skip-seq {input.skip:q} --out-seq {input.change:q}"
        " --lens {input.lens:q} --contributions {input.contributions:q} --clusters {input.clusters:q}"
        " --models {input.models:q} --grid {params.grid:q}"
        " --effect-grid {params.effect_grid:q} {params.more:q} --margins {params.margins:q}"
        " --resamples {params.resamples} --seed {params.seed} --output {output:q} > {log:q} 2>&1"
