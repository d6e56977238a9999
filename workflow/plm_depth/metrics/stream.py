"""The stream of one model (``activations.embed`` or ``extract``), looked up by view, protein and position.

A *representation* is one way in which a model was shown the proteins: one view, or both directions of an autoregressive
model side by side.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plm_depth.metrics.groups import CONSTANT, codes_of, row_codes
from plm_depth.tables import ATTENTION_KEYS, STREAM_KEYS, VIEW_KEYS, TableError, VectorTable

MEAN_POSITION = -1
DIRECTIONS = ("n2c", "c2n", "both")
VIEW = tuple(name for name in VIEW_KEYS if name not in ("sequence_id", "n_residues"))


@dataclass(frozen=True)
class Representation:
    """One way in which a model was shown the proteins: the view columns, and which views lie side by side."""

    columns: Mapping[str, object]
    views: tuple[int, ...]

    @property
    def is_untrained(self) -> bool:
        return self.columns["null_model"] != "trained"


class Stream:
    """The stream of one model, looked up by representation, protein and position.

    Attributes:
        table: the vector table.
        common: the COMMON columns that are constant over it.
        views: the view columns of each view, in a fixed order.
    """

    def __init__(self, path: str | Path):
        self.table = VectorTable(path, STREAM_KEYS)
        self.common = {name: self.table.constants[name] for name in CONSTANT}
        keys = self.table.keys()
        if not keys.num_rows:
            raise TableError(f"{path}: no rows; expected the stream of at least one protein")
        first, view = row_codes([codes_of(keys.column(name)) for name in VIEW])
        self.views = [{name: keys.column(name)[int(row)].as_py() for name in VIEW} for row in first]
        proteins = codes_of(keys.column("sequence_id"))
        self._protein = {name: code for code, name in enumerate(proteins.values.tolist())}
        position = keys.column("position").to_numpy().astype(np.int64)
        self._span = int(position.max()) + 2
        place = self._place(view, proteins.codes, position)
        self._order = np.argsort(place, kind="stable")
        self._sorted = place[self._order]
        if (np.diff(self._sorted) == 0).any():
            raise TableError(f"{path}: a protein and position stand twice under one view; write the table again")

    def _place(self, view: np.ndarray | int, protein: np.ndarray, position: np.ndarray) -> np.ndarray:
        """Return one number for each view, protein and position; -1 where no row can be."""
        place = (view * len(self._protein) + protein) * self._span + position + 1
        return np.where((position >= MEAN_POSITION) & (position + 1 < self._span), place, -1)

    def representations(self, directions: Sequence[str]) -> list[Representation]:
        """Return the views, and for autoregressive models both directions side by side where both are there."""
        found = []
        by_direction: dict[tuple, dict[str, int]] = {}
        for number, columns in enumerate(self.views):
            if columns["direction"] == "none" or columns["direction"] in directions:
                found.append(Representation(columns, (number,)))
            if columns["direction"] != "none":
                other = tuple(str(value) for name, value in columns.items() if name != "direction")
                by_direction.setdefault(other, {})[columns["direction"]] = number
        for pair in by_direction.values():
            if "both" in directions and len(pair) == 2:
                columns = {**self.views[pair["n2c"]], "direction": "both"}
                found.append(Representation(columns, (pair["n2c"], pair["c2n"])))
        return found

    def has(self, protein: str) -> bool:
        return protein in self._protein

    def rows(self, of: Representation, names: Sequence[str], owner: np.ndarray, position: np.ndarray) -> np.ndarray:
        """Return the row numbers (n_views, n) of positions of proteins ``names[owner]``.

        Raises:
            TableError: a row that is not there; names it.
        """
        unknown = [name for name in names if name not in self._protein]
        if unknown:
            raise TableError(
                f"{self.table.path}: no rows of {len(unknown)} proteins, the first {unknown[0]}; embed them"
            )
        protein = np.array([self._protein[name] for name in names], np.int64)[owner]
        found = []
        for view in of.views:
            place = self._place(view, protein, position)
            at = np.minimum(np.searchsorted(self._sorted, place), len(self._sorted) - 1)
            if (wrong := np.flatnonzero(self._sorted[at] != place)).size:
                name, p = names[owner[wrong[0]]], position[wrong[0]]
                raise TableError(
                    f"{self.table.path}: no row of {name} at position {p} under {self.views[view]}; embed all residues"
                )
            found.append(self._order[at])
        return np.stack(found)


def features(layer: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the vectors (n, n_views d) of rows (n_views, n) of one layer, float32."""
    return np.concatenate([layer[view].astype(np.float32) for view in rows], 1)


def primary_view(representations: Sequence[Representation]) -> Representation:
    """Return the trained representation on which controls are run: both directions side by side, or the clean input."""
    trained = [one for one in representations if not one.is_untrained and one.columns["condition"] == "seq"]
    both = [one for one in trained if one.columns["direction"] == "both"]
    clean = [one for one in trained if not one.columns["noise_t"] > 0]
    if not trained:
        raise TableError("no trained network in the stream; embed it too")
    return (both or clean or trained)[0]


def vectors(
    stream: Stream,
    representations: Sequence[Representation],
    names: Sequence[str],
    owner: np.ndarray,
    position: np.ndarray,
) -> Iterator[tuple[int, Representation, np.ndarray]]:
    """Yield layer, representation and vectors (n, d) of positions of proteins; each layer is read once."""
    rows = [stream.rows(of, names, owner, position) for of in representations]
    for layer in stream.table.layers:
        matrix = stream.table.layer(layer)
        for of, mine in zip(representations, rows):
            yield layer, of, features(matrix, mine)


class AttentionMaps:
    """The attention maps of one model (``activations.attention``), by representation and protein.

    Attributes:
        table: the vector table; its layers are blocks.
        proteins: ids of the proteins that it has under every view.
    """

    def __init__(self, path: str | Path):
        self.table = VectorTable(path, ATTENTION_KEYS)
        keys = self.table.keys()
        self._rows: dict[tuple, dict[str, slice]] = {}
        self.proteins: set[str] = set()
        if not keys.num_rows:
            return
        _, view = row_codes([codes_of(keys.column(name)) for name in VIEW])
        protein = codes_of(keys.column("sequence_id"))
        place = view * len(protein.values) + protein.codes
        starts = np.flatnonzero(np.r_[True, np.diff(place) != 0])
        if len(starts) > len(np.unique(place)):
            raise TableError(f"{path}: the pairs of a protein do not stand together; write the table again")
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(place)]):
            columns = tuple(str(keys.column(name)[start].as_py()) for name in VIEW)
            self._rows.setdefault(columns, {})[str(protein.values[protein.codes[start]])] = slice(start, end)
        self.proteins = set.intersection(*(set(rows) for rows in self._rows.values()))

    def rows(self, stream: Stream, of: Representation, protein: str) -> list[slice]:
        """Return where the pairs of a protein stand, a slice for each view of the representation."""
        views = [tuple(str(stream.views[view][name]) for name in VIEW) for view in of.views]
        return [self._rows[columns][protein] for columns in views]

    def has(self, stream: Stream, of: Representation) -> bool:
        return all(tuple(str(stream.views[view][name]) for name in VIEW) in self._rows for view in of.views)
