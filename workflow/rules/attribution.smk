"""
Attribution and erasure, where the config has a section `attribution`.

Needs   cards/{model}.json, datasets/{dataset}/candidates.parquet, datasets/{dataset}/clusters.parquet
Gives   results/{study}/attributed/{dataset}/{model}/{shard}/{attribution,erasure}.parquet   per protein and layer
        results/{study}/attribution/{dataset}/{model}.parquet, .example.parquet              corpus values, one protein
"""

ATTRIBUTED = f"{RESULTS}/attributed/{{dataset}}/{{model}}/{{shard}}/attribution.parquet"


rule measure_attribution:
    """Gradients cost many passes, so the first ranks of the sample are measured; trained and null models in one job."""
    input:
        card=f"{RESULTS}/cards/{{model}}.json",
        weights=weights_of,
        # Shards are ranks of the reserve, and mean states come from its first, so that they do not depend on shards.
        candidates=f"{RESULTS}/datasets/{{dataset}}/candidates.parquet",
    output:
        attribution=ATTRIBUTED,
        erasure=f"{RESULTS}/attributed/{{dataset}}/{{model}}/{{shard}}/erasure.parquet",
    log:
        f"logs/{RESULTS}/measure_attribution/{{dataset}}/{{model}}/{{shard}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/measure_attribution/{{dataset}}/{{model}}/{{shard}}.jsonl"
    conda:
        "../../envs/main.yaml"
    threads: COMPUTE["threads"]
    resources:
        gpu=gpus(),
        mem_mb=memory_for(ATTRIBUTED),
        runtime=minutes_for(ATTRIBUTED),
        device=COMPUTE["device"],
        token_budget=COMPUTE["token_budget"],
    params:
        ranks=lambda wc: study.ranks_in("attribution", wc.dataset, int(wc.shard)),
        nulls=as_json(
            [{"null_model": "trained", "seed": -1}, *study.nulls_in("attribution")]
        ),
        inputs=lambda wc: as_json(
            study.inputs_in("attribution", study.models[wc.model]["objective"])
        ),
        settings=as_json(
            {
                key: ATTRIBUTION[key]
                for key in (
                    "methods",
                    "targets",
                    "vocab",
                    "steps",
                    "rule",
                    "power",
                    "specials",
                    "positions",
                    "reference",
                )
            }
        ),
        seed=SEED,
        version=ATTRIBUTION_VERSION,
    shell:
        "python -m plm_depth.activations.attribution --card {input.card:q} --sequences {input.candidates:q}"
        " --first {params.ranks[0]} --last {params.ranks[1]} --reference {input.candidates:q} --nulls {params.nulls:q}"
        " --inputs {params.inputs:q} --settings {params.settings:q} --seed {params.seed}"
        " --token-budget {resources.token_budget} --device {resources.device} --threads {threads}"
        " --attribution {output.attribution:q} --erasure {output.erasure:q} > {log:q} 2>&1"


rule reduce_attribution:
    input:
        attribution=lambda wc: attribution_shards(wc.dataset, wc.model),
        erasure=lambda wc: expand(
            f"{RESULTS}/attributed/{wc.dataset}/{wc.model}/{{shard}}/erasure.parquet",
            shard=shards_in("attribution", wc.dataset),
        ),
        clusters=f"{RESULTS}/datasets/{{dataset}}/clusters.parquet",
    output:
        corpus=f"{RESULTS}/attribution/{{dataset}}/{{model}}.parquet",
        example=f"{RESULTS}/attribution/{{dataset}}/{{model}}.example.parquet",
    log:
        f"logs/{RESULTS}/reduce_attribution/{{dataset}}/{{model}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/reduce_attribution/{{dataset}}/{{model}}.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        grid=as_json(study.inputs_in("attribution", "diffusion")["diffusion"]["noise"]),
        resamples=study.config["bootstrap"]["resamples"],
        seed=SEED,
        code=code_of("metrics.attribution"),
    shell:
        "python -m plm_depth.metrics.attribution --attribution {input.attribution:q} --erasure {input.erasure:q}"
        " --clusters {input.clusters:q} --grid {params.grid:q} --resamples {params.resamples} --seed {params.seed}"
        " --output {output.corpus:q} --example {output.example:q} > {log:q} 2>&1"
