"""
Geometry of the stream, where the config has a section `geometry`: CPU only, from the vectors that the passes kept.

Needs   activations of every shard from activations.smk, datasets/{dataset}/clusters.parquet from sequences.smk
Gives   results/{study}/geometry/{dataset}/{model}.parquet    distances, similarity, dimension and neighbours by layer
"""


rule measure_geometry:
    input:
        stream=lambda wc: [
            path
            for variant in VARIANTS
            for path in per_shard("stream")(
                SimpleNamespace(dataset=wc.dataset, model=wc.model, variant=variant)
            )
        ],
        clusters=f"{RESULTS}/datasets/{{dataset}}/clusters.parquet",
        labels=GEOMETRY.get("labels", []),
    output:
        f"{RESULTS}/geometry/{{dataset}}/{{model}}.parquet",
    log:
        f"logs/{RESULTS}/measure_geometry/{{dataset}}/{{model}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/measure_geometry/{{dataset}}/{{model}}.jsonl"
    conda:
        "../../envs/main.yaml"
    threads: COMPUTE["threads"]
    resources:
        mem_mb=lambda wc, attempt: geometry_mb(wc.model) * 2 ** (attempt - 1),
        runtime=growing(720),
    params:
        settings=as_json(geometry_settings()),
        labels=lambda wc, input: ["--labels", input.labels] if input.labels else [],
        seed=SEED,
        code=code_of("metrics.geometry"),
    shell:
        "python -m plm_depth.metrics.geometry --stream {input.stream:q} --clusters {input.clusters:q} {params.labels:q}"
        " --settings {params.settings:q} --seed {params.seed} --output {output:q} > {log:q} 2>&1"
