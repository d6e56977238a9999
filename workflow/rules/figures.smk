"""
Figures and their numbers; a figure reads metric tables only.

Needs   profiles/{dataset}/{model}.parquet, summary/{dataset}/{model}.parquet, losses/{model}.parquet
Gives   results/{study}/figures/{dataset}/{figure}.svg, .csv, .html
"""


rule list_models:
    """What figures and verdicts need of the models: order, names, family, sizes, and whether they are toys."""
    input:
        lambda wc: expand(
            f"{RESULTS}/cards/{{model}}.json", model=study.models_of(wc.dataset)
        ),
    output:
        f"{RESULTS}/datasets/{{dataset}}/models.json",
    log:
        f"logs/{RESULTS}/list_models/{{dataset}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/list_models/{{dataset}}.jsonl"
    localrule: True
    conda:
        "../../envs/main.yaml"
    params:
        models=lambda wc: as_json(models_for_figures(wc.dataset)),
        code=code_of("models.listing"),
    shell:
        "python -m plm_depth.models.listing --models {params.models:q} --cards {input:q} --output {output:q} > {log:q} 2>&1"


rule tabulate_records:
    """Counts of records by reason, and of letters beside the 20 amino acids, for the report."""
    input:
        left_out=f"{RESULTS}/datasets/{{dataset}}/left_out.parquet",
        clusters=f"{RESULTS}/datasets/{{dataset}}/clusters.parquet",
        letters=f"{RESULTS}/datasets/{{dataset}}/letters.parquet",
        pool_letters=pool_letters,
        structures=structures_of_dataset,
    output:
        html=report(
            f"{RESULTS}/figures/{{dataset}}/records.html",
            category="Data",
            caption="../report/records.rst",
            labels={"data set": "{dataset}", "table": "records by reason"},
        ),
        csv=f"{RESULTS}/figures/{{dataset}}/records.csv",
        letters_html=report(
            f"{RESULTS}/figures/{{dataset}}/letters.html",
            category="Data",
            caption="../report/letters.rst",
            labels={"data set": "{dataset}", "table": "odd letters"},
        ),
        letters_csv=f"{RESULTS}/figures/{{dataset}}/letters.csv",
    log:
        f"logs/{RESULTS}/tabulate_records/{{dataset}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/tabulate_records/{{dataset}}.jsonl"
    localrule: True
    conda:
        "../../envs/main.yaml"
    params:
        size=lambda wc: study.datasets[wc.dataset]["size"],
        more=lambda wc, input: options_of(
            (kind.replace("_", "-"), [path])
            for kind, path in (
                ("pool_letters", input.get("pool_letters")),
                ("structures", input.get("structures")),
            )
            if path
        ),
        policies=as_json(policies([m["family"] for m in study.models.values()])),
        code=code_of("figures.records"),
    shell:
        "python -m plm_depth.figures.records --left-out {input.left_out:q} --clusters {input.clusters:q}"
        " --dataset {wildcards.dataset:q} --size {params.size} --csv {output.csv:q} --html {output.html:q}"
        " --letters {input.letters:q} {params.more:q} --policies {params.policies:q}"
        " --letters-csv {output.letters_csv:q} --letters-html {output.letters_html:q} > {log:q} 2>&1"


# One rule a figure: each has its caption, and those of effects wait for effects.
for FIGURE in drawn_figures():

    rule:
        name:
            f"draw_{FIGURE}"
        input:
            unpack(tables_of_figure(FIGURE)),
            models=f"{RESULTS}/datasets/{{dataset}}/models.json",
        output:
            svg=report(
                f"{RESULTS}/figures/{{dataset}}/{FIGURE}.svg",
                category="Figures",
                caption=f"../report/{FIGURE}.rst",
                labels={"data set": "{dataset}", "figure": FIGURE, "as": "picture"},
            ),
            html=report(
                f"{RESULTS}/figures/{{dataset}}/{FIGURE}.html",
                category="Figures",
                caption=f"../report/{FIGURE}.rst",
                labels={"data set": "{dataset}", "figure": FIGURE, "as": "table"},
            ),
            csv=f"{RESULTS}/figures/{{dataset}}/{FIGURE}.csv",
        log:
            f"logs/{RESULTS}/draw_{FIGURE}/{{dataset}}.log",
        benchmark:
            f"logs/benchmarks/{RESULTS}/draw_{FIGURE}/{{dataset}}.jsonl"
        conda:
            "../../envs/main.yaml"
        resources:
            mem_mb=growing(2000),
            runtime=growing(20),
        params:
            figure=FIGURE,
            tables=lambda wc, input: options_of(
                (kind, paths) for kind, paths in input.items() if kind != "models"
            ),
            code=code_of(f"figures.{FIGURE}"),
        shell:
            "python -m plm_depth.figures.{params.figure} {params.tables:q} --models {input.models:q} --svg {output.svg:q}"
            " --csv {output.csv:q} --html {output.html:q} > {log:q} 2>&1"


rule write_run_card:
    """What made the results: written last, read by nothing; what it says of this machine and moment reruns nothing."""
    input:
        results=figures_of_the_study(),
        cards=expand(f"{RESULTS}/cards/{{model}}.json", model=study.models),
    output:
        card=f"{RESULTS}/run_card.json",
        html=report(
            f"{RESULTS}/run_card.html",
            category="Data",
            caption="../report/run_card.rst",
            labels={"data set": "all", "table": "what made these results"},
        ),
    log:
        f"logs/{RESULTS}/write_run_card.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/write_run_card.jsonl"
    localrule: True
    conda:
        "../../envs/main.yaml"
    resources:
        # No param: a setting that changes no result must not make this card say that it was there when they were made.
        config=as_json(config),
    params:
        versions=as_json(stage_versions()),
        unpinned=preflight.unpinned(study),
        sources=as_json({name: source_file(name) for name in study.used_sources}),
        code=code_of("figures.run_card"),
    shell:
        "python -m plm_depth.figures.run_card --config {resources.config:q} --versions {params.versions:q}"
        " --cards {input.cards:q} --unpinned {params.unpinned:q} --sources {params.sources:q}"
        " --results {input.results:q}"
        " --card {output.card:q} --html {output.html:q} > {log:q} 2>&1"


if CHOICES:

    use rule write_run_card as write_run_card_of_choices with:
        input:
            results=outputs_of_choices(),
            cards=expand(
                f"{RESULTS}/cards/{{model}}.json",
                model=sorted({m for name in CHOICES for m in models_of_choice(name)}),
            ),
        output:
            card=f"{RESULTS}/choices/run_card.json",
            html=f"{RESULTS}/choices/run_card.html",
        log:
            f"logs/{RESULTS}/write_run_card_of_choices.log",
        benchmark:
            f"logs/benchmarks/{RESULTS}/write_run_card_of_choices.jsonl"
