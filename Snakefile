"""plm-depth: `snakemake --cores all` runs config/config.yaml, the paper study."""


include: "workflow/Snakefile"


# An included default target does not count: without a rule of its own this file would do nothing.
rule default:
    default_target: True
    input:
        rules.all.input,
    localrule: True
