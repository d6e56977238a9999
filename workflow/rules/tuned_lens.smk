"""
The tuned lens, where the config has a section `tuned_lens`.

Needs   cards/{model}.json, datasets/{dataset}/tuned_lens/{proteins,clusters}.parquet, datasets/{dataset}/clusters.parquet
Gives   results/{study}/tuned/{dataset}/{model}/{translators.safetensors,tuned.parquet,logit.parquet}
        results/{study}/tuned_lens/{dataset}/{model}.parquet, .lens_seq.parquet
"""

TUNED = f"{RESULTS}/tuned/{{dataset}}/{{model}}/tuned.parquet"


rule fit_tuned_lens:
    """Translators of the trained and the null models of a model in one job: each is fitted in a few passes."""
    input:
        card=f"{RESULTS}/cards/{{model}}.json",
        weights=weights_of,
        proteins=f"{RESULTS}/datasets/{{dataset}}/tuned_lens/proteins.parquet",
        clusters=f"{RESULTS}/datasets/{{dataset}}/tuned_lens/clusters.parquet",
    output:
        translators=f"{RESULTS}/tuned/{{dataset}}/{{model}}/translators.safetensors",
        tuned=TUNED,
        logit=f"{RESULTS}/tuned/{{dataset}}/{{model}}/logit.parquet",
    log:
        f"logs/{RESULTS}/fit_tuned_lens/{{dataset}}/{{model}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/fit_tuned_lens/{{dataset}}/{{model}}.jsonl"
    conda:
        "../../envs/main.yaml"
    threads: COMPUTE["threads"]
    resources:
        gpu=gpus(),
        mem_mb=memory_for(TUNED),
        runtime=minutes_for(TUNED),
        device=COMPUTE["device"],
        token_budget=COMPUTE["token_budget"],
    params:
        nulls=as_json(
            [{"null_model": "trained", "seed": -1}, *study.nulls_in("tuned_lens")]
        ),
        inputs=lambda wc: as_json(
            study.inputs_in("tuned_lens", study.models[wc.model]["objective"])
        ),
        settings=as_json(
            {
                key: TUNED_LENS[key]
                for key in (
                    "train",
                    "size",
                    "held_out",
                    "steps",
                    "batch",
                    "learning_rate",
                )
            }
        ),
        seed=SEED,
        version=TUNED_LENS_VERSION,
    shell:
        "python -m plm_depth.activations.tuned_lens --card {input.card:q} --sequences {input.proteins:q}"
        " --clusters {input.clusters:q} --nulls {params.nulls:q} --inputs {params.inputs:q}"
        " --settings {params.settings:q} --seed {params.seed} --token-budget {resources.token_budget}"
        " --device {resources.device} --threads {threads} --translators {output.translators:q}"
        " --tuned {output.tuned:q} --logit {output.logit:q} > {log:q} 2>&1"


rule reduce_tuned_lens:
    input:
        tuned=TUNED,
        logit=f"{RESULTS}/tuned/{{dataset}}/{{model}}/logit.parquet",
        clusters=f"{RESULTS}/datasets/{{dataset}}/clusters.parquet",
    output:
        profile=f"{RESULTS}/tuned_lens/{{dataset}}/{{model}}.parquet",
        sequences=f"{RESULTS}/tuned_lens/{{dataset}}/{{model}}.lens_seq.parquet",
    log:
        f"logs/{RESULTS}/reduce_tuned_lens/{{dataset}}/{{model}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/reduce_tuned_lens/{{dataset}}/{{model}}.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        grid=as_json(study.inputs_in("tuned_lens", "diffusion")["diffusion"]["noise"]),
        resamples=study.config["bootstrap"]["resamples"],
        seed=SEED,
        code=code_of("metrics.tuned_lens"),
    shell:
        "python -m plm_depth.metrics.tuned_lens --tuned {input.tuned:q} --logit {input.logit:q}"
        " --clusters {input.clusters:q} --grid {params.grid:q} --resamples {params.resamples} --seed {params.seed}"
        " --output {output.profile:q} --sequences {output.sequences:q} > {log:q} 2>&1"
