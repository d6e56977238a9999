"""Keys as codes: order, NaN, and combinations of more values than a whole number counts."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plm_depth.metrics.groups import codes_of, dictionary, row_codes


def chunked(*parts) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(part) for part in parts])


def test_codes_name_the_sorted_values_of_a_column():
    for column in (
        chunked(["b", "a"], ["b", "c"]),
        pa.chunked_array([pa.array(["b", "a"]).dictionary_encode(), pa.array(["b", "c"]).dictionary_encode()]),
    ):
        found = codes_of(column)
        assert found.values.tolist() == ["a", "b", "c"] and found.codes.tolist() == [1, 0, 1, 2]
    numbers = codes_of(chunked(np.array([0.5, np.nan, -1.0, np.nan], np.float32)))
    assert numbers.codes.tolist() == [1, 2, 0, 2] and np.isnan(numbers.values[2]) and len(numbers.values) == 3


def test_a_dictionary_with_repeats_or_unused_texts_is_mended():
    array = pa.DictionaryArray.from_arrays(pa.array([0, 2, 1]), ["x", "y", "x", "unused"])
    found = codes_of(pa.chunked_array([array]))
    assert found.values[found.codes].tolist() == ["x", "x", "y"]
    again = dictionary(["x", "y", "x"], np.array([2, 1, 0]))
    assert again.to_pylist() == ["x", "y", "x"] and again.dictionary.to_pylist() == ["x", "y"]


@given(
    st.lists(
        st.tuples(st.sampled_from("cab"), st.integers(-2, 2), st.sampled_from([0.0, 1.5])), min_size=1, max_size=40
    )
)
@settings(max_examples=60, deadline=None)
def test_rows_are_numbered_in_the_order_of_their_values(rows):
    first, number = row_codes([codes_of(chunked(list(column))) for column in zip(*rows)])
    ordered = sorted(set(rows))
    assert [rows[i] for i in first] == ordered
    assert [ordered[i] for i in number] == rows
    assert [rows.index(row) for row in ordered] == first.tolist()


@pytest.mark.parametrize("n_columns", [2, 8, 30])
def test_many_columns_of_many_values_do_not_overflow(n_columns):
    random = np.random.default_rng(0)
    table = random.integers(0, 1000, (200, n_columns))
    table[100:] = table[:100]
    first, number = row_codes([codes_of(chunked(column)) for column in table.T])
    assert len(first) == len(np.unique(table, axis=0)) and (number[100:] == number[:100]).all()
    np.testing.assert_array_equal(table[first], np.unique(table, axis=0))
