"""
Checkpoints: trained here, fetched from the hub or from an archive, or a folder of the user's; each described by a card.

Needs   train.fasta and held_out.fasta from sequences.smk, or a hub, an archive or a folder
Gives   results/{study}/cards/{model}.json, to activations.smk; results/{study}/losses/{model}.parquet, to figures.smk
"""


rule train_checkpoint:
    input:
        train=f"{RESULTS}/training/train.fasta",
        valid=f"{RESULTS}/training/held_out.fasta",
        structures=lambda wc: list(training_structures(wc).values()),
    output:
        folder=directory(f"{RESULTS}/checkpoints/{{model}}"),
        loss=f"{RESULTS}/losses/{{model}}.parquet",
    log:
        f"logs/{RESULTS}/train_checkpoint/{{model}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/train_checkpoint/{{model}}.jsonl"
    wildcard_constraints:
        model="|".join(TRAINED_HERE) or "(?!)",
    conda:
        "../../envs/main.yaml"
    threads: COMPUTE["threads"]
    resources:
        gpu=gpus(),
        mem_mb=memory_for(f"{RESULTS}/checkpoints/{{model}}"),
        runtime=minutes_for(f"{RESULTS}/checkpoints/{{model}}"),
        device=COMPUTE["device"],
    params:
        recipe=lambda wc: as_json(recipe_of(wc.model)),
        structures=lambda wc: options_of_paths(training_structures(wc)),
        version=TRAINING,
    shell:
        "python -m plm_depth.training.train --recipe {params.recipe:q} --train {input.train:q} --valid {input.valid:q}"
        " {params.structures:q} --checkpoint {output.folder:q} --loss {output.loss:q} --device {resources.device} --threads {threads}"
        " > {log:q} 2>&1"


rule download_checkpoint:
    """The folder of the output belongs to the stage, which replaces it when something else is whole, and never before."""
    output:
        RECEIPT,
    log:
        "logs/download_checkpoint/{model}.log",
    benchmark:
        "logs/benchmarks/download_checkpoint/{model}.jsonl"
    wildcard_constraints:
        model="|".join(FETCHED) or "(?!)",
    localrule: True
    conda:
        "../../envs/main.yaml"
    params:
        source=where_to_fetch,
        folder=checkpoint_folder,
    shell:
        "python -m plm_depth.models.download {params.source:q} --output {params.folder:q}"
        " --receipt {output:q} > {log:q} 2>&1"


rule describe_checkpoint:
    """Load it once, check that stepping through its blocks gives its own logits, and write down what it is."""
    input:
        weights_of,
    output:
        f"{RESULTS}/cards/{{model}}.json",
    log:
        f"logs/{RESULTS}/describe_checkpoint/{{model}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/describe_checkpoint/{{model}}.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=memory_for(f"{RESULTS}/cards/{{model}}.json"),
        runtime=minutes_for(f"{RESULTS}/cards/{{model}}.json"),
    params:
        family=lambda wc: study.models[wc.model]["family"],
        dtype=lambda wc: study.models[wc.model]["dtype"],
        # Its commit, if it has one, stands in the manifest of the download.
        folder=checkpoint_folder,
        version=EXTRACTION,
    shell:
        "python -m plm_depth.models.describe --model {wildcards.model:q} --family {params.family:q}"
        " --folder {params.folder:q} --dtype {params.dtype} --output {output:q} > {log:q} 2>&1"
