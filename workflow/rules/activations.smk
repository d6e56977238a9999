"""
The forward passes; the only rules of the analysis that ask for a GPU.

Needs   cards/{model}.json from checkpoints.smk, datasets/{dataset}/shards/{shard}.parquet from sequences.smk
        structures/backbone.parquet from structures.smk, for the conditions with structure
Gives   results/{study}/activations/{dataset}/{model}/{variant}/{shard}/{moments,lens,stream}.parquet, to metrics.smk
"""

PASSES = (
    f"{RESULTS}/activations/{{dataset}}/{{model}}/{{variant}}/{{shard}}/moments.parquet"
)


rule extract_activations:
    """One pass per (model, data set, shard): the trained model, or all null models of it in one job.

    `version` is raised by hand when numbers change, so that a reworded comment does not cost a day of GPU.
    """
    input:
        card=f"{RESULTS}/cards/{{model}}.json",
        weights=weights_of,
        sequences=f"{RESULTS}/datasets/{{dataset}}/shards/{{shard}}.parquet",
        structures=structures_of,
    output:
        moments=PASSES,
        lens=f"{RESULTS}/activations/{{dataset}}/{{model}}/{{variant}}/{{shard}}/lens.parquet",
        stream=f"{RESULTS}/activations/{{dataset}}/{{model}}/{{variant}}/{{shard}}/stream.parquet",
    log:
        f"logs/{RESULTS}/extract_activations/{{dataset}}/{{model}}/{{variant}}/{{shard}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/extract_activations/{{dataset}}/{{model}}/{{variant}}/{{shard}}.jsonl"
    conda:
        "../../envs/main.yaml"
    threads: COMPUTE["threads"]
    resources:
        gpu=gpus(),
        mem_mb=memory_for(PASSES),
        runtime=minutes_for(PASSES),
        device=COMPUTE["device"],
        token_budget=COMPUTE["token_budget"],
        batch_window=COMPUTE["batch_window"],
    params:
        nulls=lambda wc: as_json(nulls_of(wc)),
        inputs=lambda wc: as_json(inputs_of(wc.model)),
        anchors=study.config["cache"]["anchors"],
        dtype=study.config["cache"]["dtype"],
        seed=SEED,
        conditions=options_of_conditions,
        version=EXTRACTION,
    shell:
        "python -m plm_depth.activations.extract --card {input.card:q} --sequences {input.sequences:q}"
        " --nulls {params.nulls:q} --inputs {params.inputs:q} {params.conditions:q}"
        " --anchors {params.anchors}"
        " --stream-dtype {params.dtype} --seed {params.seed} --token-budget {resources.token_budget}"
        " --batch-window {resources.batch_window}"
        " --device {resources.device} --threads {threads}"
        " --moments {output.moments:q} --lens {output.lens:q} --stream {output.stream:q} > {log:q} 2>&1"
