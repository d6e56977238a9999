"""What ending after a layer saves: parameters as they are counted, operations as the cost formulas have them."""

import json

import numpy as np
import pytest

from plm_depth.activations import savings
from plm_depth.activations.cost import Size, forward_cost
from plm_depth.models import describe, registry
from plm_depth.tables import SAVINGS, read_table

CARD = {
    "model_id": "m",
    "n_blocks": 3,
    "d_model": 10,
    "dtype": "bfloat16",
    "objective": "mlm",
    # 400 of attention and 600 of an MLP of width 30 a block
    "n_parameters_by_depth": [70, 1070, 2070, 3070],
}


def test_parameters_bytes_and_operations_of_every_depth():
    found = savings.savings(CARD, n_tokens=20)
    assert list(found["n_parameters"]) == [70, 1070, 2070, 3070]
    assert list(found["weight_bytes"]) == [140, 2140, 4140, 6140]
    expected = [forward_cost(Size(n, 10, 30), 20).flops / 20 for n in range(4)]
    np.testing.assert_allclose(found["flops_per_token"], expected)
    assert expected[0] == 0 and expected[3] == 3 * (8 * 100 + 4 * 300 + 4 * 10 * 20)


def test_a_card_of_before_depths_were_counted_is_refused():
    old = {key: value for key, value in CARD.items() if key != "n_parameters_by_depth"}
    with pytest.raises(savings.SavingsError, match="does not tell the parameters of each depth; describe"):
        savings.savings(old)
    with pytest.raises(savings.SavingsError, match="--tokens 0"):
        savings.savings(CARD, n_tokens=0)


def test_the_stage_reads_a_card_as_it_is_described(tmp_path):
    adapter = registry.build("esm2", {"n_blocks": 2, "d_model": 16, "n_heads": 2}, seed=0)
    registry.save(adapter, tmp_path / "model")
    card = describe.describe("tiny", "esm2", tmp_path / "model")
    (tmp_path / "card.json").write_text(json.dumps(card))
    savings.main(["--card", f"{tmp_path}/card.json", "--output", f"{tmp_path}/savings.parquet"])
    table = read_table(tmp_path / "savings.parquet", SAVINGS)
    assert table.column("n_parameters").to_pylist()[-1] == adapter.n_parameters
    assert table.column("layer").to_pylist() == [0, 1, 2]
