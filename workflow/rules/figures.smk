"""
Figures and their numbers; a figure reads metric tables only.

Needs   profiles/{dataset}/{model}.parquet, summary/{dataset}/{model}.parquet, losses/{model}.parquet
Gives   results/{study}/figures/{dataset}/{figure}.svg, .csv, .html
"""


rule list_models:
    """What figures show of the models: order, names, family, and whether they are toys."""
    output:
        f"{RESULTS}/models.json",
    log:
        f"logs/{RESULTS}/list_models.log",
    localrule: True
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=1000,
        runtime=5,
    params:
        models=as_json(models_for_figures()),
    shell:
        "printf '%s\n' {params.models:q} > {output:q} 2> {log:q}"


rule draw_figure:
    input:
        profiles=expand(
            f"{RESULTS}/profiles/{{{{dataset}}}}/{{model}}.parquet", model=study.models
        ),
        summaries=expand(
            f"{RESULTS}/summary/{{{{dataset}}}}/{{model}}.parquet", model=study.models
        ),
        losses=expand(f"{RESULTS}/losses/{{model}}.parquet", model=TRAINED_HERE),
        models=f"{RESULTS}/models.json",
    output:
        svg=report(
            f"{RESULTS}/figures/{{dataset}}/{{figure}}.svg",
            category="Figures",
            subcategory="{dataset}",
            caption="../report/{figure}.rst",
            labels={"figure": "{figure}", "as": "picture"},
        ),
        html=report(
            f"{RESULTS}/figures/{{dataset}}/{{figure}}.html",
            category="Figures",
            subcategory="{dataset}",
            caption="../report/{figure}.rst",
            labels={"figure": "{figure}", "as": "table"},
        ),
        csv=f"{RESULTS}/figures/{{dataset}}/{{figure}}.csv",
    log:
        f"logs/{RESULTS}/draw_figure/{{dataset}}/{{figure}}.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/draw_figure/{{dataset}}/{{figure}}.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=2000,
        runtime=20,
    params:
        losses=lambda wc, input: ["--losses", *input.losses] if input.losses else [],
        code=lambda wc: code_of(f"figures.{wc.figure}"),
    shell:
        "python -m plm_depth.figures.{wildcards.figure} --profiles {input.profiles:q} --summaries {input.summaries:q}"
        " {params.losses:q} --models {input.models:q} --svg {output.svg:q} --csv {output.csv:q} --html {output.html:q}"
        " > {log:q} 2>&1"
