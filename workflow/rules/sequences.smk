"""
From a source to shards of a sample.

Needs   a FASTA file, by path, file:// or https://
Gives   results/{study}/datasets/{dataset}/sample.parquet, left_out.parquet, clusters.parquet, shards/{shard}.parquet
        results/{study}/training/train.fasta and held_out.fasta, split by similarity clusters, to checkpoints.smk
"""


rule download_source:
    output:
        "resources/downloads/{filename}",
    log:
        "logs/download_source/{filename}.log",
    benchmark:
        "logs/benchmarks/download_source/{filename}.jsonl"
    localrule: True
    conda:
        "../../envs/main.yaml"
    params:
        url=lambda wc: source_of_file(wc.filename)["url"],
        sha256=lambda wc: source_of_file(wc.filename).get("sha256") or "none",
    shell:
        "python -m plm_depth.sequences.download --url {params.url:q} --sha256 {params.sha256:q}"
        " --output {output:q} > {log:q} 2>&1"


rule sample_pool:
    input:
        lambda wc: source_file(study.training["source"]),
        (
            [f"{RESULTS}/structures/sequences.fasta"]
            if study.training and study.training["structures"]
            else []
        ),
    output:
        sample=f"{RESULTS}/training/pool.parquet",
        left_out=f"{RESULTS}/training/left_out.parquet",
        letters=f"{RESULTS}/training/letters.parquet",
    log:
        f"logs/{RESULTS}/sample_pool.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/sample_pool.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(240),
    params:
        size=lambda wc: study.training["size"],
        shortest=lambda wc: study.training["min_length"],
        longest=lambda wc: study.training["max_length"],
        seed=SEED,
        source=lambda wc: source_identity(study.training["source"]),
        code=code_of("sequences.sample"),
    shell:
        "python -m plm_depth.sequences.sample --fasta {input:q} --size {params.size} --seed {params.seed}"
        " --min-length {params.shortest} --max-length {params.longest}"
        " --sample {output.sample:q} --left-out {output.left_out:q} --letters {output.letters:q} > {log:q} 2>&1"


rule cluster_pool:
    input:
        rules.sample_pool.output.sample,
    output:
        f"{RESULTS}/training/clusters.parquet",
    log:
        f"logs/{RESULTS}/cluster_pool.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/cluster_pool.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(120),
    params:
        identity=study.config["clusters"]["identity"],
        coverage=study.config["clusters"]["coverage"],
        tool=study.config["clusters"]["tool"],
        code=code_of("sequences.cluster"),
    shell:
        "python -m plm_depth.sequences.cluster --sample {input:q} --identity {params.identity}"
        " --coverage {params.coverage} --tool {params.tool} --output {output:q} > {log:q} 2>&1"


rule split_pool:
    """Train and held-out proteins share no similarity cluster; data sets with `part: held_out` are drawn from the latter."""
    input:
        sample=rules.sample_pool.output.sample,
        clusters=rules.cluster_pool.output,
    output:
        train=f"{RESULTS}/training/train.fasta",
        held_out=f"{RESULTS}/training/held_out.fasta",
    log:
        f"logs/{RESULTS}/split_pool.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/split_pool.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(10),
    params:
        share=lambda wc: study.training["held_out"],
        seed=SEED,
        code=code_of("sequences.split"),
    shell:
        "python -m plm_depth.sequences.split --sample {input.sample:q} --clusters {input.clusters:q}"
        " --held-out {params.share} --seed {params.seed} --train {output.train:q} --valid {output.held_out:q}"
        " > {log:q} 2>&1"


rule hold_out_structures:
    """Of the structures, those whose proteins are held out."""
    input:
        fasta=f"{RESULTS}/structures/sequences.fasta",
        among=rules.split_pool.output.held_out,
    output:
        f"{RESULTS}/training/held_out_structures.fasta",
    log:
        f"logs/{RESULTS}/hold_out_structures.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/hold_out_structures.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(10),
    params:
        code=code_of("sequences.among"),
    shell:
        "python -m plm_depth.sequences.among --fasta {input.fasta:q} --among {input.among:q} --output {output:q}"
        " > {log:q} 2>&1"


rule draw_candidates:
    """The reserve of a data set: its source is read once, and the sample grows inside the reserve, rank by rank."""
    input:
        dataset_fasta,
    output:
        candidates=f"{RESULTS}/datasets/{{dataset}}/candidates.parquet",
        left_out=f"{RESULTS}/datasets/{{dataset}}/left_out.parquet",
        letters=f"{RESULTS}/datasets/{{dataset}}/letters.parquet",
    log:
        f"logs/{RESULTS}/draw_candidates/{{dataset}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/draw_candidates/{{dataset}}.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(240),
    params:
        size=lambda wc: study.datasets[wc.dataset]["reserve"],
        shortest=lambda wc: study.datasets[wc.dataset]["min_length"],
        longest=lambda wc: study.datasets[wc.dataset]["max_length"],
        seed=SEED,
        source=lambda wc: source_identity(study.datasets[wc.dataset]["source"]),
        code=code_of("sequences.sample"),
    shell:
        "python -m plm_depth.sequences.sample --fasta {input:q} --size {params.size} --at-most --seed {params.seed}"
        " --min-length {params.shortest} --max-length {params.longest}"
        " --sample {output.candidates:q} --left-out {output.left_out:q} --letters {output.letters:q} > {log:q} 2>&1"


rule cut_sample:
    input:
        f"{RESULTS}/datasets/{{dataset}}/candidates.parquet",
    output:
        f"{RESULTS}/datasets/{{dataset}}/sample.parquet",
    log:
        f"logs/{RESULTS}/cut_sample/{{dataset}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/cut_sample/{{dataset}}.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(10),
    params:
        size=lambda wc: study.datasets[wc.dataset]["size"],
        code=code_of("sequences.shard"),
    shell:
        "python -m plm_depth.sequences.shard --sample {input:q} --first 0 --last {params.size} --output {output:q}"
        " > {log:q} 2>&1"


rule cluster_dataset:
    input:
        rules.cut_sample.output,
    output:
        f"{RESULTS}/datasets/{{dataset}}/clusters.parquet",
    log:
        f"logs/{RESULTS}/cluster_dataset/{{dataset}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/cluster_dataset/{{dataset}}.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(120),
    params:
        identity=study.config["clusters"]["identity"],
        coverage=study.config["clusters"]["coverage"],
        tool=study.config["clusters"]["tool"],
        code=code_of("sequences.cluster"),
    shell:
        "python -m plm_depth.sequences.cluster --sample {input:q} --identity {params.identity}"
        " --coverage {params.coverage} --tool {params.tool} --output {output:q} > {log:q} 2>&1"


rule cut_shard:
    """Ranks of the reserve. They do not depend on the sample's size, so a grown sample renews no old shard."""
    input:
        f"{RESULTS}/datasets/{{dataset}}/candidates.parquet",
    output:
        f"{RESULTS}/datasets/{{dataset}}/shards/{{shard}}.parquet",
    log:
        f"logs/{RESULTS}/cut_shard/{{dataset}}/{{shard}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/cut_shard/{{dataset}}/{{shard}}.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(10),
    params:
        ranks=lambda wc: study.ranks(wc.dataset, int(wc.shard)),
        code=code_of("sequences.shard"),
    shell:
        "python -m plm_depth.sequences.shard --sample {input:q} --first {params.ranks[0]} --last {params.ranks[1]}"
        " --output {output:q} > {log:q} 2>&1"


rule cut_first_proteins:
    """The first ranks of the sample, for a section that measures fewer proteins."""
    input:
        f"{RESULTS}/datasets/{{dataset}}/candidates.parquet",
    output:
        f"{RESULTS}/datasets/{{dataset}}/{{section}}/proteins.parquet",
    log:
        f"logs/{RESULTS}/cut_first_proteins/{{dataset}}/{{section}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/cut_first_proteins/{{dataset}}/{{section}}.jsonl"
    wildcard_constraints:
        section="ablation|tuned_lens",
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(10),
    params:
        size=lambda wc: study.proteins_in(wc.section, wc.dataset),
        code=code_of("sequences.shard"),
    shell:
        "python -m plm_depth.sequences.shard --sample {input:q} --first 0 --last {params.size} --output {output:q}"
        " > {log:q} 2>&1"


rule cluster_first_proteins:
    """Clusters of these alone, for choosing (or fitting) and evaluating on different ones: a grown sample renews nothing."""
    input:
        rules.cut_first_proteins.output,
    output:
        f"{RESULTS}/datasets/{{dataset}}/{{section}}/clusters.parquet",
    log:
        f"logs/{RESULTS}/cluster_first_proteins/{{dataset}}/{{section}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/cluster_first_proteins/{{dataset}}/{{section}}.jsonl"
    wildcard_constraints:
        section="ablation|tuned_lens",
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(60),
    params:
        identity=study.config["clusters"]["identity"],
        coverage=study.config["clusters"]["coverage"],
        tool=study.config["clusters"]["tool"],
        code=code_of("sequences.cluster"),
    shell:
        "python -m plm_depth.sequences.cluster --sample {input:q} --identity {params.identity}"
        " --coverage {params.coverage} --tool {params.tool} --output {output:q} > {log:q} 2>&1"
