"""
Structure heads read out layer by layer, where the config has a section `structure_heads`.

Needs   cards/{model}.json, datasets/{dataset}/{candidates,clusters}.parquet, structures/{backbone,codes}.parquet
Gives   results/{study}/structure_read_outs/{dataset}/{model}/{shard}.parquet            per residue and layer
        results/{study}/structure_heads/{dataset}/{model}.parquet, .lens_seq.parquet     corpus values, per protein
"""

STRUCTURE_READ_OUTS = (
    f"{RESULTS}/structure_read_outs/{{dataset}}/{{model}}/{{shard}}.parquet"
)


rule read_structure_head:
    """Trained and null models in one job: a pass is cheap, and loading is paid once."""
    input:
        card=f"{RESULTS}/cards/{{model}}.json",
        weights=weights_of,
        # Shards are ranks of the reserve, which does not change when the sample grows.
        candidates=f"{RESULTS}/datasets/{{dataset}}/candidates.parquet",
        structures=structures_of,
    output:
        STRUCTURE_READ_OUTS,
    log:
        f"logs/{RESULTS}/read_structure_head/{{dataset}}/{{model}}/{{shard}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/read_structure_head/{{dataset}}/{{model}}/{{shard}}.jsonl"
    conda:
        "../../envs/main.yaml"
    threads: COMPUTE["threads"]
    resources:
        gpu=gpus(),
        mem_mb=memory_for(STRUCTURE_READ_OUTS),
        runtime=minutes_for(STRUCTURE_READ_OUTS),
        device=COMPUTE["device"],
        token_budget=COMPUTE["token_budget"],
        batch_window=COMPUTE["batch_window"],
    params:
        ranks=lambda wc: study.ranks_in("structure_heads", wc.dataset, int(wc.shard)),
        nulls=as_json(
            [{"null_model": "trained", "seed": -1}, *study.nulls_in("structure_heads")]
        ),
        inputs=lambda wc: as_json(
            study.inputs_in("structure_heads", study.models[wc.model]["objective"])
        ),
        conditions=options_of_conditions,
        seed=SEED,
        version=STRUCTURE_HEADS_VERSION,
    shell:
        "python -m plm_depth.activations.structure_heads --card {input.card:q} --sequences {input.candidates:q}"
        " --first {params.ranks[0]} --last {params.ranks[1]} --nulls {params.nulls:q} --inputs {params.inputs:q}"
        " {params.conditions:q} --seed {params.seed} --token-budget {resources.token_budget}"
        " --batch-window {resources.batch_window}"
        " --device {resources.device} --threads {threads} --output {output:q} > {log:q} 2>&1"


rule reduce_structure_head:
    input:
        read_outs=lambda wc: expand(
            STRUCTURE_READ_OUTS,
            dataset=wc.dataset,
            model=wc.model,
            shard=shards_in("structure_heads", wc.dataset),
        ),
        clusters=f"{RESULTS}/datasets/{{dataset}}/clusters.parquet",
    output:
        profile=f"{RESULTS}/structure_heads/{{dataset}}/{{model}}.parquet",
        sequences=f"{RESULTS}/structure_heads/{{dataset}}/{{model}}.lens_seq.parquet",
    log:
        f"logs/{RESULTS}/reduce_structure_head/{{dataset}}/{{model}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/reduce_structure_head/{{dataset}}/{{model}}.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(4000),
        runtime=growing(60),
    params:
        grid=as_json(
            study.inputs_in("structure_heads", "diffusion")["diffusion"]["noise"]
        ),
        resamples=study.config["bootstrap"]["resamples"],
        seed=SEED,
        code=code_of("metrics.structure_heads"),
    shell:
        "python -m plm_depth.metrics.structure_heads --read-outs {input.read_outs:q} --clusters {input.clusters:q}"
        " --grid {params.grid:q} --resamples {params.resamples} --seed {params.seed}"
        " --output {output.profile:q} --sequences {output.sequences:q} > {log:q} 2>&1"
