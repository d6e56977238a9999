"""A copy of the repository in a temporary folder, small enough to run whole, and how to ask Snakemake about it."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from plm_depth.config import Study
from plm_depth.models.registry import FAMILIES

ROOT = Path(__file__).parents[1]
# What chooses the kernels of BLAS, and so the last bits of numbers that are to be the same.
KERNELS = {name: value for name, value in os.environ.items() if name.startswith("OPENBLAS_")}
# Seconds after which a run hangs, however busy its neighbours are.
STUDY_S = 7200

CONFIG = """\
study: tiny
seed: 1
sources:
  - {name: mini, url: resources/mini/sequences.fasta}
  - {name: pabp, url: resources/mini/dms/PABP_YEAST_RRM2_Melamed2013.csv}
  - {name: assayed, url: resources/mini/dms/wildtypes.fasta}
training: {source: mini, size: 90, min_length: 40, max_length: 130, held_out: 0.4}
datasets:
  - {name: mini, source: mini, part: held_out, size: 6, shard_size: 6, min_length: 40, max_length: 130}
models:
  - model: esm2_tiny
    family: esm2
    recipe: &r
      {n_blocks: 2, d_model: 16, n_heads: 8, steps: 4, tokens_per_batch: 1024, learning_rate: 0.001, validate_every: 4}
  - {model: progen2_tiny, family: progen2, recipe: *r}
inputs:
  ar: {directions: [n2c]}
  mlm: {noise: [0.15], draws: 1, clean: true}
  diffusion: {noise: [0.3, 0.7], draws: 1, clean: false}
nulls:
  - {null_model: randinit, seed: 0}
  - {null_model: shuffle_seq, seed: 0}
effects:
  size: 6
  shard_size: 6
  skips: {parts: [layer, attn], pos_sets: [all, prefix, other], local: false, draws: 1}
fitness:
  assays:
    - {format: table, assay_id: PABP, uniprot_id: PABP_YEAST, category: OrganismalFitness, variants: pabp,
       mutant: domain_mutant, wildtypes: assayed, wildtype: PABP_YEAST_RRM2}
  max_variants: 20
  embed_variants: 10
  scorers: [mask, ar, emb_zs, emb_ridge]
  resamples: 100
bootstrap: {resamples: 200}
summary: {kl_fraction: [0.5], overlap: 0.3}
compute: {device: cpu, token_budget: 4096, batch_window: 2, threads: 1, memory_gb: 1}
"""


def resolved(config: dict, root: Path = ROOT) -> Study:
    """Return a checked config as the workflow resolves it; every figure that it names is taken to exist."""
    return Study(
        config,
        {name: entry.objective for name, entry in FAMILIES.items()},
        config.get("figures", []),
        root,
        reads_structure={name: entry.reads_structure for name, entry in FAMILIES.items()},
        structure_classes={name: entry.structure_classes for name, entry in FAMILIES.items()},
    )


def copy_repository(to: Path) -> Path:
    """Copy what a run needs into ``to`` and return it."""
    for name in ("workflow", "config", "profiles", "envs"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "resources" / "mini", to / "resources" / "mini")
    shutil.copy(ROOT / "Snakefile", to / "Snakefile")
    (to / "tiny.yaml").write_text(CONFIG, encoding="utf-8")
    return to


def snakemake(
    folder: Path, *options: str, configfile: str = "tiny.yaml", variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Run Snakemake in ``folder`` and return what it said; nothing is inherited but a bare environment.

    Args:
        configfile: of the study, below ``folder``.
        variables: further ones of the environment.
    """
    environment = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), "LANG": "C.UTF-8"}
    environment |= {"XDG_CACHE_HOME": str(folder / ".cache"), **KERNELS, **(variables or {})}
    # Alone, not laid over the paper study: that has sections which these studies do without.
    command = [sys.executable, "-m", "snakemake", "--configfile", configfile, "--replace-workflow-config", *options]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=STUDY_S
    )


def planned(folder: Path, *options: str, configfile: str = "tiny.yaml") -> list[str]:
    """Return the jobs of a dry run, sorted: "rule" or "rule model=esm2_tiny ...".

    Without the default target and the run card, which follow whatever runs.
    """
    result = snakemake(folder, "--dry-run", *options, configfile=configfile)
    text = result.stdout + result.stderr
    assert result.returncode == 0, text
    jobs = []
    for block in re.split(r"\n\n|\n(?=\[)", text):
        head = re.search(r"^(?:local)?rule (\w+):", block, flags=re.MULTILINE)
        if head and head.group(1) not in ("default", "all", "write_run_card"):
            cards = re.search(r"^\s+wildcards: (.*)$", block, flags=re.MULTILINE)
            jobs.append(" ".join([head.group(1), *(sorted(cards.group(1).split(", ")) if cards else [])]))
    return sorted(jobs)
