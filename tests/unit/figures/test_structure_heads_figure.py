"""The figure of structure heads: both heads beside each other, predictions and copies apart."""

import csv

import polars as pl
import pytest

from plm_depth.figures import door, lens_kl, structure_heads
from plm_depth.figures.select import primary_rows
from plm_depth.tables import PROFILE, read_table, write_table
from unit.figures import invented

SHOWN, OTHER = invented.MINI[0], invented.MINI[4]  # masked with 4 blocks; diffusion, not measured by this section
FACTORS = {"seq": 1.0, "seq_struct": 2.0, "struct": 3.0}
COPIES = 10.0  # times the values of predictions


def as_rows(rows, /, **texts):
    """Return rows with other texts and the types of the table."""
    return rows.with_columns(pl.lit(text).cast(rows[name].dtype).alias(name) for name, text in texts.items())


def scaled(table, factor):
    return table.with_columns(pl.col(name) * factor for name in ("value", "ci_lo", "ci_hi"))


@pytest.fixture
def given(tmp_path):
    """Return the options of a study of two models under three conditions, one of them with a structure head."""
    options = invented.write_study([SHOWN, OTHER], tmp_path)
    heads = []
    for model in (SHOWN, OTHER):
        path = next(text for text in options if "profile" in text and model.model in text)
        table = pl.from_arrow(read_table(path, PROFILE))
        right = table.filter(pl.col("quantity") == "settled_top1")
        table = pl.concat([table, as_rows(right, quantity="acc1")])
        parts = [scaled(as_rows(table, condition=name), factor) for name, factor in FACTORS.items()]
        write_table(pl.concat(parts).to_arrow(), PROFILE, path)
        if model is SHOWN:
            of_lens = table.filter((pl.col("table") == "lens") & (pl.col("vocab") == "full"))
            own = as_rows(of_lens, readout="struct", table="structure_heads", pos_class="logit")
            unknown = pl.when(pl.col("quantity").is_in(["nll", "acc1"])).then(float("nan")).otherwise(pl.col("value"))
            heads = [as_rows(own, condition="seq")]
            for name in ("seq_struct", "struct"):
                heads.append(scaled(as_rows(own, condition=name, pos_class="copy"), COPIES * FACTORS[name]))
                heads.append(as_rows(own, condition=name).with_columns(value=unknown))  # structures that nobody knows
    write_table(pl.concat(heads).to_arrow(), PROFILE, tmp_path / "heads.parquet")
    return [*options, "--structure_heads", str(tmp_path / "heads.parquet")]


def outputs(folder):
    return [text for kind in ("svg", "csv", "html") for text in (f"--{kind}", str(folder / f"figure.{kind}"))]


def drawn(folder, given, stage=structure_heads.STAGE):
    door.run(stage, [*given, *outputs(folder)])
    with (folder / "figure.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["network"] == "trained"]


def values(rows, quantity, condition):
    mine = [row for row in rows if row["model"] == f"{SHOWN.model} {condition}" and row["quantity"] == quantity]
    return [float(row["value"]) for row in mine]


def test_predictions_and_copies_stand_in_rows_of_their_own_beside_the_residues(given, tmp_path):
    rows = drawn(tmp_path, given)
    assert {row["model"].split()[0] for row in rows} == {SHOWN.model}, "only models whose head was read"
    table = pl.from_arrow(read_table(tmp_path / "heads.parquet", PROFILE))
    for quantity in ("kl_lf", "acc1"):
        expected = table.filter(
            (pl.col("quantity") == quantity) & (pl.col("condition") == "seq") & (pl.col("null_model") == "trained")
            & (pl.col("aggregate") == "mean") & ((pl.col("noise_t") - 0.15).abs() < 1e-6)
        ).sort("layer")["value"].to_list()  # fmt: skip
        assert len(expected) == SHOWN.n_blocks + 1
        assert values(rows, f"{quantity}: structure", "seq") == pytest.approx(expected, rel=1e-4)
        for name in ("seq_struct", "struct"):
            copies = values(rows, f"{quantity}: structure shown", name)
            assert copies == pytest.approx([COPIES * FACTORS[name] * value for value in expected], rel=1e-4)
            assert values(rows, f"{quantity}: structure", name) == [], "structures that nobody knows are no prediction"
        assert values(rows, f"{quantity}: structure shown", "seq") == []
        residues = [values(rows, f"{quantity}: residue", name) for name in FACTORS]
        assert residues[2] == pytest.approx([3 * value for value in residues[0]], rel=1e-4) and any(residues[0])
    picture = (tmp_path / "figure.svg").read_text()
    assert (
        "shown structure" in picture
        and "hidden structure" in picture
        and "could be copied: no prediction" in picture.replace("\n", " ")
    )


def test_without_a_known_structure_the_distance_alone_is_drawn(given, tmp_path):
    path = tmp_path / "heads.parquet"
    table = pl.from_arrow(read_table(path, PROFILE))
    is_unknown = pl.col("quantity").is_in(["acc1", "nll"])
    table = table.with_columns(value=pl.when(is_unknown).then(float("nan")).otherwise(pl.col("value")))
    write_table(table.to_arrow(), PROFILE, path)
    found = {row["quantity"] for row in drawn(tmp_path, given)}
    assert found == {"kl_lf: residue", "acc1: residue", "kl_lf: structure", "kl_lf: structure shown"}


def test_no_other_figure_reads_a_structure_head(given, tmp_path):
    rows = drawn(tmp_path, given, lens_kl.STAGE)
    (path,) = [text for text in given if text.endswith("heads.parquet")]
    table = pl.from_arrow(read_table(path, PROFILE)).with_columns(pl.col(pl.Categorical).cast(pl.String))
    mixed = pl.concat([table, table.with_columns(readout=pl.lit("seq"), table=pl.lit("lens"), vocab=pl.lit("aa20"))])
    assert set(primary_rows(mixed)["readout"]) == {"seq"}
    assert set(primary_rows(mixed, of_structures=True)["readout"]) == {"struct"}
    assert len(rows) == 2 * (SHOWN.n_blocks + 1), "both models, each layer once"


def test_a_study_without_structure_heads_has_nothing_to_draw(given, tmp_path):
    write_table(
        pl.from_arrow(read_table(tmp_path / "heads.parquet", PROFILE)).head(0).to_arrow(), PROFILE,
        tmp_path / "heads.parquet",
    )  # fmt: skip
    with pytest.raises(SystemExit, match="structure_heads: no rows at primary inputs; measure at least one model"):
        door.run(structure_heads.STAGE, [*given, *outputs(tmp_path)])
