"""
Which layer serves a user's labels, and how few blocks that needs, where the config has a section `choices`.

Needs   a user's table; cards/{model}.json and the checkpoint from checkpoints.smk
Gives   results/{study}/choices/{choice}/{model}.parquet              score of every layer, plateau, recommended layer
        results/{study}/choices/{choice}/recommendation.{html,md}     the same in words
        results/{study}/choices/{choice}/scores.{svg,csv,html}        the picture and its numbers
        results/{study}/choices/{choice}/truncated/{model}            checkpoints that end there, on request
"""


rule read_user_labels:
    """Read and check the user's table as a whole."""
    input:
        table=lambda wc: CHOICES[wc.choice]["table"],
        wild_type=wild_type_of_choice,
    output:
        sequences=f"{RESULTS}/choices/{{choice}}/sequences.parquet",
        labels=f"{RESULTS}/choices/{{choice}}/labels.parquet",
    log:
        f"logs/{RESULTS}/read_user_labels/{{choice}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/read_user_labels/{{choice}}.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(20),
    params:
        columns=columns_of_choice,
        code=code_of("sequences.labels"),
    shell:
        "python -m plm_depth.sequences.labels --table {input.table:q} {params.columns:q}"
        " --sequences {output.sequences:q} --labels {output.labels:q} > {log:q} 2>&1"


rule cluster_user_proteins:
    input:
        f"{RESULTS}/choices/{{choice}}/sequences.parquet",
    output:
        f"{RESULTS}/choices/{{choice}}/clusters.parquet",
    log:
        f"logs/{RESULTS}/cluster_user_proteins/{{choice}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/cluster_user_proteins/{{choice}}.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(240),
    params:
        identity=lambda wc: CHOICES[wc.choice].get(
            "identity", study.config["clusters"]["identity"]
        ),
        coverage=study.config["clusters"]["coverage"],
        tool=study.config["clusters"]["tool"],
        code=code_of("sequences.cluster"),
    shell:
        "python -m plm_depth.sequences.cluster --sample {input:q} --identity {params.identity}"
        " --coverage {params.coverage} --tool {params.tool} --output {output:q} > {log:q} 2>&1"


rule embed_user_proteins:
    input:
        card=f"{RESULTS}/cards/{{model}}.json",
        weights=weights_of,
        sequences=f"{RESULTS}/choices/{{choice}}/sequences.parquet",
    output:
        f"{RESULTS}/choices/{{choice}}/streams/{{model}}.parquet",
    log:
        f"logs/{RESULTS}/embed_user_proteins/{{choice}}/{{model}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/embed_user_proteins/{{choice}}/{{model}}.jsonl"
    conda:
        "../../envs/main.yaml"
    threads: COMPUTE["threads"]
    resources:
        gpu=gpus(),
        mem_mb=memory_for(f"{RESULTS}/choices/{{choice}}/streams/{{model}}.parquet"),
        runtime=minutes_for(f"{RESULTS}/choices/{{choice}}/streams/{{model}}.parquet"),
        device=COMPUTE["device"],
        token_budget=COMPUTE["token_budget"],
    params:
        residues=residues_of_choice,
        norm=lambda wc: CHOICES[wc.choice]["norm"],
        dtype=study.config["cache"]["dtype"],
        seed=SEED,
        version=EMBED_VERSION,
    shell:
        "python -m plm_depth.activations.embed --card {input.card:q} --sequences {input.sequences:q}"
        " --residues {params.residues} --norm {params.norm} --dtype {params.dtype} --seed {params.seed}"
        " --token-budget {resources.token_budget} --device {resources.device} --threads {threads}"
        " --output {output:q} > {log:q} 2>&1"


rule count_savings:
    """What a model costs when it ends after each of its layers."""
    input:
        f"{RESULTS}/cards/{{model}}.json",
    output:
        f"{RESULTS}/savings/{{model}}.parquet",
    log:
        f"logs/{RESULTS}/count_savings/{{model}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/count_savings/{{model}}.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(5),
    params:
        code=code_of("activations.savings"),
    shell:
        "python -m plm_depth.activations.savings --card {input:q} --output {output:q} > {log:q} 2>&1"


rule choose_layer:
    input:
        labels=f"{RESULTS}/choices/{{choice}}/labels.parquet",
        clusters=clusters_of_choice,
        stream=f"{RESULTS}/choices/{{choice}}/streams/{{model}}.parquet",
    output:
        f"{RESULTS}/choices/{{choice}}/{{model}}.parquet",
    log:
        f"logs/{RESULTS}/choose_layer/{{choice}}/{{model}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/choose_layer/{{choice}}/{{model}}.jsonl"
    conda:
        "../../envs/main.yaml"
    threads: COMPUTE["threads"]
    resources:
        mem_mb=growing(8000),
        runtime=growing(720),
    params:
        clusters=lambda wc, input: (
            ["--clusters", input.clusters] if input.clusters else []
        ),
        settings=lambda wc: as_json(settings_of_choice(wc)),
        resamples=study.config["bootstrap"]["resamples"],
        seed=SEED,
        code=code_of("metrics.choice"),
    shell:
        "python -m plm_depth.metrics.choice --labels {input.labels:q} --stream {input.stream:q} {params.clusters:q}"
        " --name {wildcards.choice:q} --settings {params.settings:q} --resamples {params.resamples}"
        " --seed {params.seed} --output {output:q} > {log:q} 2>&1"


rule cut_checkpoint:
    """The checkpoint that ends at the recommended layer (or at the depth that the config asks for), with a model card."""
    input:
        card=f"{RESULTS}/cards/{{model}}.json",
        weights=weights_of,
        choice=f"{RESULTS}/choices/{{choice}}/{{model}}.parquet",
    output:
        directory(f"{RESULTS}/choices/{{choice}}/truncated/{{model}}"),
    log:
        f"logs/{RESULTS}/cut_checkpoint/{{choice}}/{{model}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/cut_checkpoint/{{choice}}/{{model}}.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=memory_for(f"{RESULTS}/choices/{{choice}}/truncated/{{model}}"),
        runtime=growing(60),
    params:
        blocks=lambda wc: CHOICES[wc.choice]["truncate"],
        keep=lambda wc: CHOICES[wc.choice]["keep"],
        origin=lambda wc: origin_of(wc.model),
        code=code_of("models.truncate"),
    shell:
        "python -m plm_depth.models.truncate --card {input.card:q} --choice {input.choice:q} --blocks {params.blocks}"
        " --keep {params.keep} {params.origin:q} --output {output:q} > {log:q} 2>&1"


rule list_models_of_choice:
    input:
        lambda wc: expand(
            f"{RESULTS}/cards/{{model}}.json", model=models_of_choice(wc.choice)
        ),
    output:
        f"{RESULTS}/choices/{{choice}}/models.json",
    log:
        f"logs/{RESULTS}/list_models_of_choice/{{choice}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/list_models_of_choice/{{choice}}.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(5),
    params:
        models=lambda wc: as_json(listed(models_of_choice(wc.choice))),
        code=code_of("models.listing"),
    shell:
        "python -m plm_depth.models.listing --models {params.models:q} --cards {input:q} --output {output:q} > {log:q} 2>&1"


rule recommend_layer:
    input:
        choices=lambda wc: expand(
            f"{RESULTS}/choices/{{choice}}/{{model}}.parquet",
            choice=wc.choice,
            model=models_of_choice(wc.choice),
        ),
        savings=lambda wc: expand(
            f"{RESULTS}/savings/{{model}}.parquet", model=models_of_choice(wc.choice)
        ),
        models=f"{RESULTS}/choices/{{choice}}/models.json",
    output:
        page=report(
            f"{RESULTS}/choices/{{choice}}/recommendation.html",
            category="Layer choice",
            caption="../report/choice.rst",
            labels={"question": "{choice}", "as": "recommendation"},
        ),
        svg=report(
            f"{RESULTS}/choices/{{choice}}/scores.svg",
            category="Layer choice",
            caption="../report/choice.rst",
            labels={"question": "{choice}", "as": "picture"},
        ),
        html=report(
            f"{RESULTS}/choices/{{choice}}/scores.html",
            category="Layer choice",
            caption="../report/choice.rst",
            labels={"question": "{choice}", "as": "table"},
        ),
        csv=f"{RESULTS}/choices/{{choice}}/scores.csv",
        markdown=f"{RESULTS}/choices/{{choice}}/recommendation.md",
    log:
        f"logs/{RESULTS}/recommend_layer/{{choice}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/recommend_layer/{{choice}}.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(20),
    params:
        truncated=lambda wc: (
            []
            if CHOICES[wc.choice]["truncate"] == "none"
            else [
                *("--blocks", CHOICES[wc.choice]["truncate"]),
                *("--truncated", f"{RESULTS}/choices/{wc.choice}/truncated"),
            ]
        ),
        code=code_of("figures.choice"),
    shell:
        "python -m plm_depth.figures.choice --choices {input.choices:q} --savings {input.savings:q}"
        " --models {input.models:q} {params.truncated:q} --svg {output.svg:q} --csv {output.csv:q} --html {output.html:q}"
        " --page {output.page:q} --markdown {output.markdown:q} > {log:q} 2>&1"


rule choices:
    """All questions of the config: recommendations, pictures, truncated checkpoints, and what made them."""
    input:
        outputs_of_choices(),
        f"{RESULTS}/choices/run_card.json",
    localrule: True
