"""
Geometry of the stream, where the config has a section `geometry`: CPU only, from the vectors that the passes kept.

Needs   activations of every shard from activations.smk, datasets/{dataset}/clusters.parquet from sequences.smk
Gives   results/{study}/geometry/{dataset}/{model}.parquet            distances, similarity, dimension, neighbours by layer
        results/{study}/geometry_pairs/{dataset}/{model}/{deep}.parquet       two models of a family, layer against layer
"""


rule measure_geometry:
    input:
        stream=stream_of("model"),
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


rule compare_layers:
    input:
        shallow=stream_of("model"),
        deep=stream_of("deep"),
        clusters=f"{RESULTS}/datasets/{{dataset}}/clusters.parquet",
    output:
        f"{RESULTS}/geometry_pairs/{{dataset}}/{{model}}/{{deep}}.parquet",
    log:
        f"logs/{RESULTS}/compare_layers/{{dataset}}/{{model}}/{{deep}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/compare_layers/{{dataset}}/{{model}}/{{deep}}.jsonl"
    wildcard_constraints:
        deep="|".join(study.models),
    conda:
        "../../envs/main.yaml"
    threads: COMPUTE["threads"]
    resources:
        mem_mb=lambda wc, attempt: geometry_mb(wc.model, wc.deep) * 2 ** (attempt - 1),
        runtime=growing(720),
    params:
        settings=as_json(geometry_settings()),
        seed=SEED,
        code=code_of("metrics.geometry_pairs"),
    shell:
        "python -m plm_depth.metrics.geometry_pairs --shallow {input.shallow:q} --deep {input.deep:q}"
        " --clusters {input.clusters:q} --settings {params.settings:q} --seed {params.seed} --output {output:q}"
        " > {log:q} 2>&1"
