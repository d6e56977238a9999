"""The stage that ablates depth: settings, folds, what is chosen on whom, plans, rows, and what must not matter."""

import json
import logging

import numpy as np
import polars as pl
import pytest
import torch

from planted import Toy, toy, walk, with_zero_block, write_activations
from plm_depth.activations import ablation
from plm_depth.activations.ablation import (
    OPS,
    Ablations,
    Chosen,
    Protein,
    angles,
    choose,
    composition,
    measure,
    plan,
    read_proteins,
)
from plm_depth.activations.door import ExtractionError
from plm_depth.activations.extract import item_of
from plm_depth.activations.nulls import Null
from plm_depth.activations.settings import SettingsError, read_settings
from plm_depth.metrics.lens import lens
from plm_depth.models.base import Structure
from plm_depth.models.registry import build
from plm_depth.randomness import generator
from plm_depth.tables import ABLATE_SEQ, AMINO_ACIDS, CLUSTERS, SEQUENCES, TableError, read_metadata, write_table
from plm_depth.views import View, mask_of

LOG = logging.getLogger("test")
TRAINED = Null("trained", -1)
MASKED, FORWARD = View("none", 0.15, 0), View("n2c", float("nan"), -1)
KEYS = ["null_model", "null_seed", "condition", "reads", "direction", "noise_t", "sequence_id", "op", "start", "length",
        "policy", "quantity"]  # fmt: skip


def proteins(n: int = 6, lengths=(22, 30, 22, 17, 26)) -> list[Protein]:
    sequences = [
        "".join(AMINO_ACIDS[a] for a in generator("test", i).integers(20, size=lengths[i % len(lengths)]))
        for i in range(n)
    ]
    return [Protein(f"P{i}", sequence, i, i % 2) for i, sequence in enumerate(sequences)]


def run(tmp_path, adapter, sample, *, views=(MASKED,), nulls=(TRAINED,), ranks=range(100), name="x", **options):
    """Return the rows that the stage writes, sorted by their keys."""
    settings = Ablations(**{"selection": 2, **options.pop("ablations", {})})
    measure(
        adapter,
        sample,
        output=tmp_path / f"{name}.parquet",
        model_id="m",
        ranks=ranks,
        nulls=list(nulls),
        views=list(views),
        ablations=settings,
        seed=0,
        log=LOG,
        **{"token_budget": 10**5, **options},
    )
    found = pl.read_parquet(tmp_path / f"{name}.parquet")
    return found.with_columns(pl.col(pl.Categorical).cast(pl.String)).sort(KEYS)


def value(rows: pl.DataFrame, **wanted) -> float:
    """Return the mean of the one row that fits."""
    for key, item in wanted.items():
        rows = rows.filter(pl.col(key) == item)
    assert rows.height == 1, rows
    return rows["sum"][0] / rows["n"][0]


class TestSettings:
    def test_what_is_not_given_has_the_defaults(self):
        given = read_settings(Ablations, '{"ops": ["exit"], "lengths": [1, 2]}', "--ablations")
        assert given == Ablations(ops=("exit",), lengths=(1, 2))
        assert Ablations().removed(4) == [1, 2, 3] and given.removed(2) == [1]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "expected a JSON object"),
            ("[]", "expected a JSON object"),
            ('{"op": ["exit"]}', "keys among ops, policies"),
            ('{"ops": "exit"}', "ops is not a list"),
            ('{"ops": ["skip"]}', "expected at least one of exit, remove"),
            ('{"ops": []}', "expected at least one of"),
            ('{"policies": ["tail", "tail"]}', "none twice"),
            ('{"lengths": [0]}', "whole numbers from 1 on"),
            ('{"spans": [2, 2]}', "none twice"),
            ('{"draws": 0}', "draws is 0; expected a whole number from 1 on"),
            ('{"selection": true}', "selection is True"),
            ('{"pseudo_perplexity": -1}', "pseudo_perplexity is -1; expected a whole number from 0 on"),
        ],
    )
    def test_a_setting_that_cannot_be_is_refused(self, text, message):
        with pytest.raises(SettingsError, match=message):
            read_settings(Ablations, text, "--ablations")


class TestFolds:
    def tables(self, tmp_path, clusters, order=None):
        names = [f"P{i}" for i in range(len(clusters))]
        order = range(len(names)) if order is None else order
        rows = {
            "sequence_id": [names[i] for i in order],
            "sequence_hash": [""] * len(names),
            "rank": list(order),
            "n_residues": [3] * len(names),
            "sequence": ["ACD"] * len(names),
        }
        write_table(rows, SEQUENCES, tmp_path / "s.parquet")
        write_table({"sequence_id": names, "cluster_id": clusters}, CLUSTERS, tmp_path / "c.parquet")
        return tmp_path / "s.parquet", tmp_path / "c.parquet"

    def test_whole_clusters_are_dealt_and_both_folds_are_there(self, tmp_path):
        clusters = [f"c{i // 3}" for i in range(15)]
        found = read_proteins(*self.tables(tmp_path, clusters))
        assert [p.rank for p in found] == list(range(15))
        by_cluster = {c: {p.fold for p, own in zip(found, clusters) if own == c} for c in clusters}
        assert all(len(folds) == 1 for folds in by_cluster.values())
        assert set().union(*by_cluster.values()) == {0, 1}
        n = sum(folds == {0} for folds in by_cluster.values())
        assert n == 3, "five clusters: three and two"
        turned = read_proteins(*self.tables(tmp_path, clusters, order=range(14, -1, -1)))
        assert turned == found

    def test_one_cluster_cannot_be_dealt(self, tmp_path):
        with pytest.raises(TableError, match="all 4 proteins are in one similarity cluster"):
            read_proteins(*self.tables(tmp_path, ["c"] * 4))

    def test_a_protein_without_a_cluster_is_named(self, tmp_path):
        sequences, clusters = self.tables(tmp_path, ["a", "b", "c"])
        write_table({"sequence_id": ["P0", "P2"], "cluster_id": ["a", "c"]}, CLUSTERS, clusters)
        with pytest.raises(TableError, match="no cluster of P1"):
            read_proteins(sequences, clusters)


class TestChoosing:
    def items(self, adapter, sample):
        return [item_of(adapter, p.sequence_id, p.sequence, MASKED, seed=0) for p in sample]

    def test_angles_by_hand(self):
        states = torch.tensor([[[1.0, 0], [1, 0], [0, 2], [-3, 0], [0, 0]]])
        found = angles(states)[0]
        np.testing.assert_allclose(found[:4, :4], [[0, 0, 0.5, 1], [0, 0, 0.5, 1], [0.5, 0.5, 0, 0.5], [1, 1, 0.5, 0]])
        assert found[4].isnan().all() and found[:, 4].isnan().all()

    def test_distances_and_means_are_those_of_plain_walks(self):
        adapter, sample = toy(n_blocks=4), proteins(3)
        items = self.items(adapter, sample)
        found = choose(adapter, items)
        expected, updates = [], []
        for item in items:
            walked = walk(adapter, item.tokens)
            h = walked.streams[:, item.tokens.residue_tokens]
            unit = h / np.linalg.norm(h, axis=-1, keepdims=True)
            cosine = np.einsum("itd,jtd->tij", unit, unit)
            expected.append(np.arccos(np.clip(cosine, -1, 1)).mean(0) / np.pi)
            updates.append(np.stack([u.total[item.tokens.residue_tokens].numpy() for u in walked.updates]))
        upper = np.triu_indices(5)
        np.testing.assert_allclose(found.distance[upper], np.mean(expected, 0)[upper], atol=1e-7)
        assert np.isnan(found.distance[np.tril_indices(5, -1)]).all()
        np.testing.assert_allclose(found.mean, np.concatenate(updates, 1).mean(1), rtol=1e-12, atol=1e-12)

    def test_a_silent_block_is_closest(self):
        adapter = with_zero_block(toy(n_blocks=5), 4)
        found = choose(adapter, self.items(adapter, proteins(2)))
        assert found.closest(1) == 3
        assert found.distance[3, 4] == pytest.approx(0, abs=1e-7)

    def test_undefined_distances_are_passed_over_and_said_if_all_are(self):
        distance = np.full((4, 4), np.nan)
        distance[1, 2], distance[2, 3] = 0.5, 0.5
        chosen = Chosen(distance, torch.zeros(3, 2))
        assert chosen.closest(1) == 1, "the first of equals"
        with pytest.raises(ExtractionError, match="no angular distance at 2 blocks"):
            chosen.closest(2)

    def test_the_composition_has_no_zero(self):
        found = composition(["AAC", "CX"])
        assert found.sum() == pytest.approx(1) and found[0] == 3 / 24 and found.min() == 1 / 24


class TestPlan:
    chosen = Chosen(np.triu(np.arange(49.0).reshape(7, 7)), torch.ones(6, 4))

    def trials(self, n=6, **options):
        options.setdefault("chosen", self.chosen)
        settings = Ablations(**options.pop("ablations", {}))
        return plan(n, settings, seed=0, **options).trials

    def starts(self, trials, policy, length):
        return [t.start for t in trials if t.op == "remove_block" and t.policy == policy and t.length == length]

    def test_how_many_of_each(self):
        trials = self.trials(ablations={"ops": OPS, "spans": (2, 4), "draws": 2})
        counts = {op: sum(t.op == op for t in trials) for op in ("full", *OPS)}
        assert counts == {"full": 1, "exit": 7, "remove": 6, "swap_adj": 5, "swap_block": 3, "reverse": 5 + 3,
                          "repeat": 5 + 3, "parallel": 5 + 3, "mean": 6,
                          "remove_block": 3 * 5 + 2 * 5 + (6 + 5 + 4 + 3 + 2)}  # fmt: skip
        names = [(t.op, t.start, t.length, t.policy) for t in trials]
        assert len(set(names)) == len(names)

    def test_the_spans_of_each_policy(self):
        trials = self.trials(ablations={"draws": 3})
        assert self.starts(trials, "deepest", 2) == [3], "the last block stays"
        assert self.starts(trials, "tail", 2) == [4]
        assert self.starts(trials, "angular", 2) == [0]
        assert self.starts(trials, "exhaustive", 2) == [0, 1, 2, 3, 4]
        assert len(set(self.starts(trials, "random", 2))) == 3
        assert len(self.starts(trials, "random", 5)) == 2, "there are no more"
        assert self.starts(self.trials(ablations={"exhaustive_up_to": 5}), "exhaustive", 2) == []

    def test_equal_runs_are_run_once(self):
        planned = plan(6, Ablations(), seed=0, chosen=self.chosen)
        keys = [detour.key for detour in planned.detours]
        assert len(set(keys)) == len(keys) < len(planned.trials)
        run_of = {(t.op, t.start, t.length, t.policy): t.run for t in planned.trials}
        assert run_of["remove_block", 4, 2, "tail"] == run_of["exit", 4, 2, "none"]
        assert run_of["remove", 2, 1, "none"] == run_of["remove_block", 2, 1, "exhaustive"]
        assert run_of["reverse", 2, 2, "none"] == run_of["swap_adj", 2, 1, "none"]

    def test_a_moved_geometric_block_is_flagged(self):
        trials = self.trials(ablations={"ops": OPS}, geometric=(1,))
        moved = {(t.op, t.start, t.length) for t in trials if t.moves_geometric}
        assert moved == {("swap_adj", 0, 1), *(("swap_block", 0, n) for n in (2, 3)),
                         *((op, 0, n) for op in ("reverse", "parallel") for n in (2, 3, 4))}  # fmt: skip
        # A block of the second span moves, too.
        trials = self.trials(ablations={"ops": ("swap_adj", "swap_block")}, geometric=(4,))
        moved = {(t.op, t.start, t.length) for t in trials if t.moves_geometric}
        assert moved == {("swap_adj", 2, 1), ("swap_adj", 3, 1), *(("swap_block", k, 2) for k in (0, 1, 2)),
                         ("swap_block", 0, 3)}  # fmt: skip


class TestRows:
    def test_an_early_exit_is_the_lens(self, tmp_path):
        """... of another stage, from the plain walk; its rows of the same quantities are the same numbers."""
        for adapter, view in ((toy(n_blocks=4), MASKED), (toy(n_blocks=4, variant="causal"), FORWARD)):
            sample = proteins(4)
            rows = run(tmp_path, adapter, sample, views=[view])
            pairs = [(p.sequence_id, p.sequence) for p in sample]
            paths = {"moments": tmp_path / "moments.parquet", "lens": tmp_path / "logits.parquet"}
            write_activations(adapter, pairs, [view], **paths, dtype="float64")
            lens([paths["lens"]], tmp_path / "lens.parquet")
            expected = pl.read_parquet(tmp_path / "lens.parquet").filter(pl.col("vocab") == "aa20")
            for layer in range(5):
                for quantity, name in (("nll", "nll"), ("acc1", "acc1"), ("kl_to_full", "kl_fl")):
                    own = rows.filter(
                        (pl.col("op") == "exit") & (pl.col("start") == layer) & (pl.col("quantity") == quantity)
                    )
                    other = expected.filter((pl.col("layer") == layer) & (pl.col("quantity") == name))
                    other = other.sort("sequence_id", descending=False)
                    assert own["n"].to_list() == other["n"].to_list()
                    np.testing.assert_allclose(own["sum"], other["sum"], atol=1e-10)
                    np.testing.assert_allclose(own["sumsq"], other["sumsq"], atol=1e-10)

    def test_the_full_model_the_whole_exit_and_the_tail(self, tmp_path):
        rows = run(tmp_path, toy(n_blocks=4), proteins())
        for name in ("P0", "P3"):
            own = rows.filter(pl.col("sequence_id") == name)
            for quantity in ("nll", "acc1"):
                full = value(own, op="full", quantity=quantity)
                assert value(own, op="exit", start=4, quantity=quantity) == full
                for n in range(1, 4):
                    tail = value(own, op="remove_block", policy="tail", length=n, quantity=quantity)
                    assert tail == value(own, op="exit", start=4 - n, quantity=quantity)
            assert value(own, op="full", quantity="kl_to_full") == 0 == value(own, op="full", quantity="flip1")

    def test_spans_and_means_are_chosen_on_the_other_fold(self, tmp_path):
        adapter, sample = toy(n_blocks=4), proteins()
        rows = run(tmp_path, adapter, sample, ablations={"ops": ("remove_block", "mean"), "policies": ("angular",)})
        for fold in (0, 1):
            others = [p for p in sample if p.fold != fold][:2]
            chosen = choose(adapter, [item_of(adapter, p.sequence_id, p.sequence, MASKED, seed=0) for p in others])
            own = rows.filter(pl.col("sequence_id").is_in([p.sequence_id for p in sample if p.fold == fold]))
            for length in (1, 2, 3):
                found = own.filter((pl.col("op") == "remove_block") & (pl.col("length") == length))["start"].unique()
                assert found.to_list() == [chosen.closest(length)]
        changed = [Protein(p.sequence_id, p.sequence[::-1], p.rank, p.fold) if p.fold else p for p in sample]
        other = run(tmp_path, adapter, changed, ablations={"ops": ("mean",)}, name="changed")
        first = rows.filter((pl.col("sequence_id") == "P0") & (pl.col("op") == "mean") & (pl.col("quantity") == "nll"))
        second = other.filter(
            (pl.col("sequence_id") == "P0") & (pl.col("op") == "mean") & (pl.col("quantity") == "nll")
        )
        assert (first["sum"] != second["sum"]).all(), "the means of fold 1 are other ones"

    def test_the_background_knows_the_composition_of_the_other_fold_only(self, tmp_path):
        sample = proteins()
        rows = run(tmp_path, toy(n_blocks=2), sample, ablations={"ops": ("exit",)})
        for protein in sample[:2]:
            p = composition(one.sequence for one in sample if one.fold != protein.fold)
            hidden = mask_of(MASKED, len(protein.sequence), 0, protein.sequence_id)
            letters = [AMINO_ACIDS.index(a) for a, h in zip(protein.sequence, hidden) if h]
            own = rows.filter((pl.col("sequence_id") == protein.sequence_id) & (pl.col("op") == "background"))
            assert value(own, quantity="nll") == pytest.approx(-np.log(p[letters]).mean())
            assert value(own, quantity="acc1") == np.mean(np.array(letters) == p.argmax())
            assert own["quantity"].to_list() == ["acc1", "nll"]

    def test_residues_masked_one_at_a_time(self, tmp_path):
        adapter, sample = toy(n_blocks=3), proteins()
        rows = run(tmp_path, adapter, sample, ablations={"pseudo_perplexity": 2}).filter(pl.col("reads") == "single")
        assert set(rows["sequence_id"]) == {"P0", "P1"} and set(rows["noise_t"]) == {0.0}
        assert set(rows["op"]) == {"full", "background", "exit", "remove"}
        sequence = sample[1].sequence
        total = {layer: 0.0 for layer in range(4)}
        for position, letter in enumerate(sequence):
            tokens = adapter.encode(sequence, masked=np.arange(len(sequence)) == position)
            logits = walk(adapter, tokens).logits[:, tokens.residue_tokens[position]][:, adapter.residue_ids]
            log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            for layer in total:
                total[layer] -= log_p[layer, AMINO_ACIDS.index(letter)]
        own = rows.filter((pl.col("sequence_id") == "P1") & (pl.col("op") == "exit") & (pl.col("quantity") == "nll"))
        assert own["n"].to_list() == [len(sequence)] * 4
        np.testing.assert_allclose(own["sum"], list(total.values()), rtol=1e-10)

    def test_autoregressive_models_have_no_masks(self, tmp_path):
        adapter = toy(n_blocks=2, variant="causal")
        rows = run(tmp_path, adapter, proteins(), views=[FORWARD], ablations={"pseudo_perplexity": 2, "spans": ()})
        assert set(rows["reads"]) == {"next"}

    def test_every_null_model_has_its_rows_and_the_weights_are_back(self, tmp_path):
        adapter = toy(n_blocks=2, seed=7)
        nulls = [Null("randinit", 0), Null("shuffle_seq", 0), TRAINED]
        rows = run(tmp_path, adapter, proteins(), nulls=nulls, ablations={"spans": ()})
        assert set(rows["null_model"]) == {"randinit", "shuffle_seq", "trained"}
        alone = run(tmp_path, adapter, proteins(), ablations={"spans": ()}, name="alone")
        np.testing.assert_array_equal(rows.filter(pl.col("null_model") == "trained")["sum"], alone["sum"])
        assert (rows.filter(pl.col("null_model") == "randinit")["sum"] != alone["sum"]).any()

    def test_a_model_whose_tokens_are_not_residues_gets_no_rows_and_it_is_said(self, tmp_path, caplog):
        adapter = toy(n_blocks=2)
        adapter.tokens_are_residues = False
        with caplog.at_level(logging.WARNING):
            rows = run(tmp_path, adapter, proteins())
        assert rows.height == 0 and "its tokens are not residues" in caplog.text

    def test_moved_geometric_blocks_are_flagged_in_the_rows(self, tmp_path):
        rows = run(tmp_path, toy(n_blocks=3, geometric=True), proteins(2), ablations={"spans": (2,)})
        moved = rows.filter(pl.col("moves_geometric"))
        assert set(zip(moved["op"], moved["start"])) == {("swap_adj", 0), ("reverse", 0)}


class Folded(Toy):
    """A toy that reads the states of a structure, where it is shown one, as if they were the residues."""

    conditions = ("seq", "seq_struct")
    reads_structure = ("three_di",)

    def encode(
        self, sequence, *, masked=None, direction="none", structure=None, condition="seq", struct_at_mask="keep"
    ):
        return super().encode(
            sequence if condition == "seq" else structure.three_di.upper(), masked=masked, direction=direction
        )


class TestConditions:
    def test_conditions_have_rows_of_their_own_on_the_same_reads(self, tmp_path):
        adapter, sample = Folded(toy(n_blocks=2).module, "mlm"), proteins(4)
        structures = {p.sequence_id: Structure(three_di=p.sequence[::-1].lower()) for p in sample}
        options = {"conditions": ("seq", "seq_struct"), "structures": structures}
        rows = run(tmp_path, adapter, sample, ablations={"spans": ()}, **options)
        one, other = (rows.filter(pl.col("condition") == c) for c in ("seq", "seq_struct"))
        alone = run(tmp_path, toy(n_blocks=2), sample, ablations={"spans": ()}, name="alone")
        np.testing.assert_array_equal(one["sum"], alone["sum"])
        # The spans that are closest in angle may be others, so their rows do not line up.
        one, other = (x.filter(pl.col("policy") != "angular") for x in (one, other))
        assert one["n"].to_list() == other["n"].to_list() and (one["sum"] != other["sum"]).any()


class TestWhatMustNotMatter:
    def test_two_shardings_give_the_same_rows(self, tmp_path):
        adapter, sample = toy(n_blocks=4), proteins()
        settings = {"ablations": {"ops": OPS, "pseudo_perplexity": 3}}
        whole = run(tmp_path, adapter, sample, **settings)
        parts = [
            run(tmp_path, adapter, sample, ranks=ranks, name=f"s{ranks.start}", **settings)
            for ranks in (range(4, 6), range(0, 1), range(1, 4))
        ]
        joined = pl.concat(parts).sort(KEYS)
        assert joined.drop("sum", "sumsq").equals(whole.drop("sum", "sumsq"))
        np.testing.assert_allclose(joined["sum"], whole["sum"], rtol=1e-11, atol=1e-12)

    def test_the_token_budget_changes_no_number(self, tmp_path):
        adapter, sample = toy(n_blocks=4), proteins()
        whole = run(tmp_path, adapter, sample)
        small = run(tmp_path, adapter, sample, token_budget=120, name="small")
        assert small.drop("sum", "sumsq").equals(whole.drop("sum", "sumsq"))
        np.testing.assert_allclose(small["sum"], whole["sum"], rtol=1e-11, atol=1e-12)

    def test_two_runs_give_the_same_bytes(self, tmp_path):
        for name in ("a", "b"):
            run(tmp_path, toy(n_blocks=3), proteins(), name=name)
        assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


class TestFailures:
    def test_nan_weights_are_named_and_nothing_is_written(self, tmp_path):
        adapter = toy(n_blocks=3)
        with torch.no_grad():
            adapter.module.blocks[2].mlp_out.bias[0] = float("nan")
        with pytest.raises(ExtractionError, match=r"read-out of protein P\d is NaN or infinite"):
            run(tmp_path, adapter, proteins(), ablations={"ops": ("exit", "remove")})
        assert list(tmp_path.iterdir()) == []

    def test_a_shard_without_proteins(self, tmp_path):
        with pytest.raises(ExtractionError, match="no protein of ranks 90 to 94"):
            run(tmp_path, toy(n_blocks=2), proteins(), ranks=range(90, 95))

    def test_the_command_ends_in_one_message(self, tmp_path):
        arguments = ["--card", "c.json", "--sequences", str(tmp_path / "none.parquet"), "--inputs", "{}", "--seed", "0"]
        arguments += ["--clusters", "c", "--first", "0", "--last", "2", "--output", str(tmp_path / "o")]
        for nulls, ablations, message in (
            ("[]", "{}", "activations.ablation: --nulls"),
            ('[{"null_model": "trained", "seed": -1}]', '{"x": 1}', "activations.ablation: --ablations"),
            ('[{"null_model": "trained", "seed": -1}]', "{}", "none.parquet: not a readable Parquet file"),
        ):
            with pytest.raises(SystemExit, match=message):
                ablation.main([*arguments, "--nulls", nulls, "--ablations", ablations])


def test_the_command_writes_the_table(tmp_path):
    from plm_depth.models import describe
    from plm_depth.models.registry import save

    save(build("progen2", {"n_blocks": 2, "d_model": 32, "n_heads": 8}, seed=1), tmp_path / "model")
    describe.main(
        f"--model toy --family progen2 --folder {tmp_path}/model --dtype float32 --revision none "
        f"--output {tmp_path}/card.json".split()
    )
    sample = proteins(3)
    rows = [
        {"sequence_id": p.sequence_id, "sequence_hash": "", "rank": p.rank, "n_residues": len(p.sequence),
         "sequence": p.sequence}
        for p in sample
    ]  # fmt: skip
    write_table({k: [row[k] for row in rows] for k in rows[0]}, SEQUENCES, tmp_path / "s.parquet")
    names = [p.sequence_id for p in sample]
    write_table({"sequence_id": names, "cluster_id": names}, CLUSTERS, tmp_path / "c.parquet")
    ablation.main(
        [
            *f"--card {tmp_path}/card.json --sequences {tmp_path}/s.parquet --clusters {tmp_path}/c.parquet".split(),
            *f"--first 1 --last 3 --seed 3 --threads 1 --device cpu --output {tmp_path}/a.parquet".split(),
            *("--nulls", '[{"null_model": "trained", "seed": -1}]', "--inputs", '{"ar": {"directions": ["n2c"]}}'),
            *("--ablations", '{"ops": ["exit", "swap_adj"]}'),
        ]
    )
    found = pl.read_parquet(tmp_path / "a.parquet")
    # 2 proteins x ((full, 3 exits, 1 swap) x 4 quantities + 2 of the background)
    assert found.height == 2 * (5 * 4 + 2) and set(found.columns) == set(ABLATE_SEQ.names)
    assert json.loads(read_metadata(tmp_path / "a.parquet")["ablations"])["ops"] == ["exit", "swap_adj"]
