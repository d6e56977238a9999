"""Tables of backbones, written by hand."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from plm_depth.tables import BACKBONE, TableWriter, as_table


def backbone(name: str, sequence: str, *, states: str, plddt=np.nan, coordinates=None, **changes: object) -> pa.Table:
    """Return the rows of one structure."""
    n = len(sequence)
    if coordinates is None:
        coordinates = np.arange(n * 9, dtype=np.float32).reshape(n, 3, 3)
    columns = {
        "sequence_id": [name] * n,
        "sequence_hash": [hashlib.sha256(sequence.encode()).hexdigest()] * n,
        "position": list(range(n)),
        "aa": list(sequence),
        "is_resolved": [state != "-" for state in states],
        "after_break": [False] * n,
        "plddt": np.broadcast_to(np.float32(plddt), n),
        **{atom: list(coordinates[:, k]) for k, atom in enumerate(("n", "ca", "c"))},
        **{atom: [[np.nan] * 3] * n for atom in ("o", "cb")},
        "three_di": list(states),
        "ss8": ["-"] * n,
        "ss3": ["-"] * n,
        "rsa": [np.nan] * n,
        "hse_up": [np.nan] * n,
    }
    return as_table(columns | changes, BACKBONE)


def write(path: Path, *tables: pa.Table) -> Path:
    """Write the rows of several structures, a row group each, and return the path."""
    with TableWriter(path, BACKBONE) as writer:
        for table in tables:
            writer.append(table)
    return path
