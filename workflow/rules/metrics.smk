"""
Metrics, CPU only; a metric never loads a model.

Needs   activations of every shard from activations.smk, datasets/{dataset}/clusters.parquet from sequences.smk
Gives   results/{study}/metrics/{dataset}/{model}/{variant}/{contributions,lens}.parquet    per protein and layer
        results/{study}/profiles/{dataset}/{model}.parquet                                  per layer, with intervals
        results/{study}/summary/{dataset}/{model}.parquet                                   depth in one number
        results/{study}/depths/{dataset}/{depths,tau}.parquet                               all of them, by definition
"""


rule measure_contributions:
    input:
        per_shard("moments"),
    output:
        f"{RESULTS}/metrics/{{dataset}}/{{model}}/{{variant}}/contributions.parquet",
    log:
        f"logs/{RESULTS}/measure_contributions/{{dataset}}/{{model}}/{{variant}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/measure_contributions/{{dataset}}/{{model}}/{{variant}}.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=memory_of_metrics("contributions"),
        runtime=minutes_of_metrics("contributions"),
    params:
        code=code_of("metrics.contributions"),
    shell:
        "python -m plm_depth.metrics.contributions --moments {input:q} --output {output:q} > {log:q} 2>&1"


rule measure_lens:
    input:
        per_shard("lens"),
    output:
        f"{RESULTS}/metrics/{{dataset}}/{{model}}/{{variant}}/lens.parquet",
    log:
        f"logs/{RESULTS}/measure_lens/{{dataset}}/{{model}}/{{variant}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/measure_lens/{{dataset}}/{{model}}/{{variant}}.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=memory_of_metrics("lens"),
        runtime=minutes_of_metrics("lens"),
    params:
        code=code_of("metrics.lens"),
    shell:
        "python -m plm_depth.metrics.lens --logits {input:q} --output {output:q} > {log:q} 2>&1"


rule profile_layers:
    input:
        contributions=per_variant("contributions"),
        lens=per_variant("lens"),
        clusters=f"{RESULTS}/datasets/{{dataset}}/clusters.parquet",
    output:
        f"{RESULTS}/profiles/{{dataset}}/{{model}}.parquet",
    log:
        f"logs/{RESULTS}/profile_layers/{{dataset}}/{{model}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/profile_layers/{{dataset}}/{{model}}.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=memory_of_metrics("profile"),
        runtime=minutes_of_metrics("profile"),
    params:
        grid=as_json(study.config["inputs"]["diffusion"]["noise"]),
        resamples=study.config["bootstrap"]["resamples"],
        seed=SEED,
        code=code_of("metrics.profile"),
    shell:
        "python -m plm_depth.metrics.profile --contributions {input.contributions:q} --lens {input.lens:q}"
        " --clusters {input.clusters:q} --grid {params.grid:q} --resamples {params.resamples} --seed {params.seed}"
        " --output {output:q} > {log:q} 2>&1"


rule summarise_depth:
    input:
        contributions=per_variant("contributions"),
        lens=per_variant("lens"),
        clusters=f"{RESULTS}/datasets/{{dataset}}/clusters.parquet",
    output:
        f"{RESULTS}/summary/{{dataset}}/{{model}}.parquet",
    log:
        f"logs/{RESULTS}/summarise_depth/{{dataset}}/{{model}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/summarise_depth/{{dataset}}/{{model}}.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=memory_of_metrics("summary"),
        runtime=minutes_of_metrics("summary"),
    params:
        grid=as_json(study.config["inputs"]["diffusion"]["noise"]),
        thresholds=as_json(study.config["summary"]),
        resamples=study.config["bootstrap"]["resamples"],
        seed=SEED,
        code=code_of("metrics.summary"),
    shell:
        "python -m plm_depth.metrics.summary --contributions {input.contributions:q} --lens {input.lens:q}"
        " --clusters {input.clusters:q} --grid {params.grid:q} --thresholds {params.thresholds:q}"
        " --resamples {params.resamples} --seed {params.seed} --output {output:q} > {log:q} 2>&1"


rule gather_depths:
    """Every definition of effective depth of every model, and whether they order the models alike."""
    input:
        unpack(further_depths),
        summaries=all_summaries,
    output:
        depths=f"{RESULTS}/depths/{{dataset}}/depths.parquet",
        tau=f"{RESULTS}/depths/{{dataset}}/tau.parquet",
    log:
        f"logs/{RESULTS}/gather_depths/{{dataset}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/gather_depths/{{dataset}}.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(20),
    params:
        further=lambda wc, input: options_of(
            (kind, paths) for kind, paths in input.items() if kind != "summaries"
        ),
        code=code_of("metrics.depths"),
    shell:
        "python -m plm_depth.metrics.depths --summaries {input.summaries:q} {params.further:q} --depths {output.depths:q}"
        " --tau {output.tau:q} > {log:q} 2>&1"
