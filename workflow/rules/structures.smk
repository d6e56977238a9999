"""
Structures as data, where the config has a section `structures`.

Needs   a folder of PDB or mmCIF files, or accessions of the PDB or AlphaFold DB
Gives   results/{study}/structures/structures.parquet, backbone.parquet, and sequences.fasta, their sequences
"""

STRUCTURE = study.config["structures"]


rule download_structure:
    output:
        "resources/downloads/structures/{filename}",
    log:
        "logs/download_structure/{filename}.log",
    benchmark:
        "logs/benchmarks/download_structure/{filename}.jsonl"
    localrule: True
    conda:
        "../../envs/main.yaml"
    params:
        url=lambda wc: structure_of_file(wc.filename).url,
        sha256=lambda wc: structure_of_file(wc.filename).sha256 or "none",
    shell:
        "python -m plm_depth.sequences.download --url {params.url:q} --sha256 {params.sha256:q}"
        " --output {output:q} > {log:q} 2>&1"


rule tabulate_structures:
    """Each file stands once in the input and once per wanted chain among the options."""
    input:
        sorted({entry.path for entry in study.structures}),
    output:
        structures=f"{RESULTS}/structures/structures.parquet",
        backbone=f"{RESULTS}/structures/backbone.parquet",
        fasta=f"{RESULTS}/structures/sequences.fasta",
    log:
        f"logs/{RESULTS}/tabulate_structures.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/tabulate_structures.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(2000),
        runtime=growing(120),
    params:
        files=[entry.path for entry in study.structures],
        chains=as_json(
            [
                {"structure": entry.structure_id, "chain": entry.chain}
                for entry in study.structures
            ]
        ),
        source=STRUCTURE["source"],
        confidence=STRUCTURE.get("confidence", "auto"),
        code=code_of("sequences.structures"),
    shell:
        "python -m plm_depth.sequences.structures --files {params.files:q} --chains {params.chains:q}"
        " --source {params.source} --confidence {params.confidence} --structures {output.structures:q}"
        " --backbone {output.backbone:q} --fasta {output.fasta:q} > {log:q} 2>&1"


rule tabulate_codes:
    """Codes of the structure tokenizers of the families that read them, as the config names them."""
    input:
        structures=rules.tabulate_structures.output.structures,
        codes=list(STRUCTURE.get("codes", {}).values()),
    output:
        f"{RESULTS}/structures/codes.parquet",
    log:
        f"logs/{RESULTS}/tabulate_codes.log",
    benchmark:
        f"logs/benchmarks/{RESULTS}/tabulate_codes.jsonl"
    conda:
        "../../envs/main.yaml"
    resources:
        mem_mb=growing(1000),
        runtime=growing(10),
    params:
        codes=[
            f"{family}={path}" for family, path in STRUCTURE.get("codes", {}).items()
        ],
        code=code_of("sequences.codes"),
    shell:
        "python -m plm_depth.sequences.codes --codes {params.codes:q} --structures {input.structures:q}"
        " --output {output:q} > {log:q} 2>&1"
