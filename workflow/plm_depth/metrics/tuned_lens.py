"""Tuned against logit lens (C5): both at the same positions of the same proteins, with cluster-bootstrap intervals.

The quantities are those of ``plm_depth.metrics.lens``, in a table like PROFILE whose rows say ``tuned_lens`` and whose
``pos_class`` is the lens: tuned or logit. ``kl_bg`` (layer -1) is the divergence of the composition of the residues
from the last layer: what a layer reaches that knows nothing of the protein.
"""

import argparse
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from plm_depth.metrics.bootstrap import Bootstrap
from plm_depth.metrics.corpus import DIFFUSION_GRID, over_noise, parts_of, read_clusters
from plm_depth.metrics.lens import lens
from plm_depth.metrics.options import add_resampling_options, resampling_of
from plm_depth.metrics.profile import profile_rows, write_profiles
from plm_depth.progress import stage_log
from plm_depth.tables import TableError

LOG = logging.getLogger("metrics.tuned_lens")


def tuned_lens(
    tuned: Sequence[str | Path],
    logit: Sequence[str | Path],
    clusters: str | Path,
    output: str | Path,
    sequences: str | Path,
    *,
    grid: Sequence[float] = DIFFUSION_GRID,
    n_boot: int = 2000,
    seed: int = 1,
) -> int:
    """Write the profiles of both lenses and the LENS_SEQ table of the tuned one; return the rows of the profiles.

    Args:
        tuned, logit: read-outs of ``activations.tuned_lens``, with and without translators.
        clusters: the CLUSTERS table of the data set.
        output, sequences: the two tables.
        grid: noise levels whose mean a diffusion model gets as noise_t -1.
        n_boot, seed: resamples of the clusters, the same for every model of a data set.
    Raises:
        TableError: damaged tables, a protein without a cluster, a noise level without data.
    """
    bootstrap = Bootstrap.of(read_clusters(clusters), n_boot=n_boot, seed=seed)
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        for name, paths, table in (("tuned", tuned, sequences), ("logit", logit, Path(folder) / "logit.parquet")):
            lens(paths, table, name=name)
            for part in parts_of([table], table="lens", bootstrap=bootstrap):
                over = over_noise(part, grid)
                parts += [profile_rows(found, bootstrap) for found in (part, over) if found is not None]
    n_rows = write_profiles(parts, output, table="tuned_lens", seed=seed, resamples=n_boot)
    LOG.info(f"{n_rows} rows")
    return n_rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage from the command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m plm_depth.metrics.tuned_lens", description=__doc__.split("\n")[0])
    parser.add_argument("--tuned", nargs="+", required=True, help="translated read-outs")
    parser.add_argument("--logit", nargs="+", required=True, help="the same without translators")
    add_resampling_options(parser)
    parser.add_argument("--output", required=True, help="the profiles of both lenses (PROFILE)")
    parser.add_argument("--sequences", required=True, help="the LENS_SEQ table of the tuned lens")
    options = parser.parse_args(argv)
    with stage_log(LOG.name, TableError, ValueError):
        tuned_lens(
            options.tuned,
            options.logit,
            options.clusters,
            options.output,
            options.sequences,
            **resampling_of(options),
        )


if __name__ == "__main__":
    main()
