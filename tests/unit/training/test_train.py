"""The trainer: losses by hand, planted corpora that can be learnt, determinism, what is written and what is refused."""

import functools
import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from plm_depth.models import registry
from plm_depth.models.base import SequenceError, Structure
from plm_depth.randomness import generator
from plm_depth.tables import AMINO_ACIDS, LOSS, read_table
from plm_depth.training import train as stage
from plm_depth.training.corpus import CorpusError, Protein, background
from plm_depth.training.objectives import Scored, scored, structure_example, validation_example, validation_views
from plm_depth.training.recipe import RecipeError, parse_recipe

FAMILIES = ("esm2", "dplm", "progen2")
PAIRS = ("AC", "DE", "FG", "HI")


def recipe(family, **changes):
    values = {
        "model": f"toy_{family}",
        "family": family,
        "n_blocks": 2,
        "d_model": 32,
        "n_heads": 8 if family == "progen2" else 4,
        "steps": 3,
        "tokens_per_batch": 400,
        "learning_rate": 3e-3,
        "warmup": 1,
        "seed": 1,
        "validate_every": 2,
        **changes,
    }
    return parse_recipe(values)


def random_proteins(prefix, n, shortest=20, longest=60, letters=AMINO_ACIDS):
    rng = generator("corpus", prefix)
    lengths = rng.integers(shortest, longest, n)
    return [Protein(f"{prefix}{i}", "".join(rng.choice(list(letters), k))) for i, k in enumerate(lengths)]


def periodic_proteins(prefix, n):
    """Return proteins of period two, ACAC..., GFGF..., of any phase: ln 8 for who sees no context, ln 2 for who knows
    the pair, 0 for who knows the phase too."""
    rng = generator("periodic", prefix)
    made = []
    for i in range(n):
        pair = PAIRS[rng.integers(len(PAIRS))][:: rng.choice([1, -1])]
        # The length marks the side, so that no protein is on both.
        n_repeats = 2 * int(rng.integers(8, 20)) + (prefix == "v")
        made.append(Protein(f"{prefix}{i}", pair * n_repeats))
    return made


@pytest.fixture(scope="module")
def corpus():
    return random_proteins("t", 12), random_proteins("v", 6)


def write_fasta(path, proteins):
    path.write_text("".join(f">{p.sequence_id} note\n{p.sequence}\n" for p in proteins))
    return path


def arguments(folder, corpus, given, **changes):
    options = {
        "recipe": json.dumps(given.as_dict()),
        "train": write_fasta(folder / "train.fasta", corpus[0]),
        "valid": write_fasta(folder / "valid.fasta", corpus[1]),
        "checkpoint": folder / "out" / "checkpoint",
        "loss": folder / "out" / "loss.parquet",
        "device": "cpu",
        **changes,
    }
    return [text for name, value in options.items() for text in (f"--{name}", str(value))]


def left_over(folder):
    return sorted(path.name for path in (folder / "out").rglob("*")) if (folder / "out").exists() else []


# --------------------------------------------------------------------------------------------------------- losses


def reads(targets, true_aa, weights=None):
    n = len(targets)
    weights = np.ones(n) if weights is None else weights
    return Scored(np.zeros(n, int), np.arange(n), np.array(targets), np.array(weights, np.float32), np.array(true_aa))


def test_the_training_loss_is_the_weighted_sum_over_the_number_of_reads():
    logits = torch.tensor([[0.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    at = reads([2, 0], [0, 1], [0.5, 0.25])
    first = np.log(1 + np.exp(-1) + np.exp(-2))
    assert stage.training_loss(logits, at).item() == pytest.approx((0.5 * first + 0.25 * np.log(3)) / 2)


def test_a_batch_without_reads_has_loss_zero_and_a_gradient_of_zero():
    logits = torch.zeros(0, 3, requires_grad=True)
    loss = stage.training_loss(logits, reads(np.array([], int), np.array([], int)))
    loss.backward()
    assert loss.item() == 0.0


def test_reported_nats_are_renormalised_over_the_twenty_and_leave_other_targets_out():
    rng = generator(0)
    logits, columns = rng.normal(size=(3, 33)), rng.permutation(33)[:20]
    at = reads([columns[7], 0, columns[19]], [7, -1, 19])
    nats = stage.residue_nats(torch.from_numpy(logits), at, columns)
    twenty = np.exp(logits[:, columns])
    expected = -np.log(twenty / twenty.sum(1, keepdims=True))
    np.testing.assert_allclose(nats, [expected[0, 7], expected[2, 19]], rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_untrained_model_loses_about_the_log_of_twenty(family, corpus):
    curve = stage.train(recipe(family, steps=1), *corpus).curve
    assert curve[0].step == 0 and curve[0].n_residues == 0 and curve[0].split == "valid"
    assert curve[0].nats == pytest.approx(np.log(20), abs=0.05)


@pytest.mark.parametrize(("family", "n_rows"), [("esm2", 33), ("dplm", 33), ("progen2", 32)])
def test_the_training_loss_of_an_untrained_model_is_about_the_log_of_its_vocabulary(
    family, n_rows, corpus, monkeypatch
):
    losses = []
    real = stage.training_loss

    def kept(logits, at):
        loss = real(logits, at)
        losses.append(loss.item() / np.average(at.weights))
        return loss

    monkeypatch.setattr(stage, "training_loss", kept)
    stage.train(recipe(family, steps=1), *corpus)
    assert losses == [pytest.approx(np.log(n_rows), abs=0.1)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_validation_is_the_mean_over_views_of_the_mean_over_residues(family, corpus):
    result = stage.train(recipe(family, steps=2), *corpus)
    adapter, ignorant = result.adapter, background(corpus[0])
    means, references, n = [], [], 0
    for view in validation_views(adapter, 0.15):
        nats, ignored = [], []
        for protein in corpus[1]:
            example = validation_example(adapter, protein.sequence, view, sequence_id=protein.sequence_id)
            logits = adapter.library_logits(adapter.collate([example.tokens]))[0].double()
            for token, aa in zip(example.reads, example.true_aa, strict=True):
                if aa >= 0:
                    nats.append(-logits[token, adapter.residue_ids].log_softmax(-1)[aa].item())
                    ignored.append(ignorant[aa])
        means.append(np.mean(nats))
        references.append(np.mean(ignored))
        n += len(nats)
    last = result.last("valid")
    assert last.nats == pytest.approx(np.mean(means), abs=1e-5)
    assert last.reference == pytest.approx(np.mean(references), abs=1e-9)
    assert last.n == n


# ------------------------------------------------------------------------------------------------------- learning


@functools.cache
def learnt(family):
    """Return a model trained on the periodic proteins, and what it was validated on."""
    train, valid = periodic_proteins("t", 60), periodic_proteins("v", 12)
    steps = 80 if family == "progen2" else 150
    given = recipe(family, steps=steps, validate_every=steps, tokens_per_batch=800, learning_rate=5e-3, warmup=10)
    return stage.train(given, train, valid), valid


@pytest.mark.parametrize(("family", "ceiling"), [("esm2", 1.0), ("dplm", 1.0), ("progen2", 0.5)])
def test_a_periodic_corpus_is_learnt_far_below_its_composition(family, ceiling):
    last = learnt(family)[0].last("valid")
    assert last.reference == pytest.approx(np.log(8), abs=0.2)
    assert last.nats < ceiling


def with_states(proteins):
    """Return proteins whose structure is told by their residues: the place of each in the alphabet."""
    states = {letter: "acdefghiklmnpqrstvwy"[i] for i, letter in enumerate(AMINO_ACIDS)}
    return [
        replace(
            p,
            structure=Structure(
                three_di="".join(states[letter] for letter in p.sequence),
                codes=np.array([AMINO_ACIDS.index(letter) for letter in p.sequence]),
            ),
        )
        for p in proteins
    ]


@pytest.mark.parametrize("family", ["saprot", "esm3", "dplm2"])
def test_a_structure_that_the_sequence_tells_is_learnt_below_its_composition(family, caplog):
    def repeats(prefix, n, odd):  # the length marks the side, so that no protein is on both
        return with_states([Protein(f"{prefix}{i}", "ACDE"[i % 4] * (20 + 2 * i + odd)) for i in range(n)])

    train, valid = repeats("t", 20, 0), repeats("v", 8, 1)
    sizes = {"d_model": 64, "n_heads": 1} if family == "esm3" else {}
    given = recipe(family, steps=80, validate_every=80, tokens_per_batch=800, learning_rate=5e-3, warmup=10, **sizes)
    with caplog.at_level(logging.INFO):
        found = stage.train(given, train, valid).with_structure
    assert found["n_proteins"] == 8
    assert found["structure"] < found["structure_reference"] - 0.5, found
    assert "their structures: " in caplog.text


def test_structures_of_which_no_class_is_known_have_no_loss():
    codeless = [replace(p, structure=Structure(coordinates=np.zeros((len(p.sequence), 3, 3), np.float32)))
                for p in random_proteins("v", 2)]  # fmt: skip
    adapter = stage.untrained(recipe("esm3", d_model=64, n_heads=1))
    assert stage.structure_loss(adapter, codeless, codeless, 100) == {}


def test_the_loss_of_structures_is_that_of_a_model_asked_for_one_after_the_other():
    adapter = registry.build("dplm2", {"n_blocks": 2, "d_model": 32, "n_heads": 4})
    proteins = with_states(random_proteins("v", 3))
    examples = [structure_example(adapter, p.sequence, p.structure) for p in proteins]
    with torch.inference_mode():
        together = stage.structure_nats(adapter, examples)
        alone = torch.cat([stage.structure_nats(adapter, [one]) for one in examples])
        logits = adapter.native_logits(stream_of(adapter, examples[0].tokens))[0, examples[0].structure_reads]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    first = next(token for token, text in enumerate(adapter.alphabet.tokens) if text == "0000")
    codes = logits[:, first : first + 8192].log_softmax(-1)
    expected = -codes[torch.arange(len(codes)), torch.from_numpy(proteins[0].structure.codes)]
    torch.testing.assert_close(alone[: len(expected)], expected, rtol=1e-4, atol=1e-5)


def stream_of(adapter, tokens):
    batch = adapter.collate([tokens])
    stream, context = adapter.embed(batch)
    for block in range(1, adapter.n_blocks + 1):
        stream = adapter.add(stream, adapter.updates(block, stream, context))
    return stream


@pytest.mark.parametrize("direction", ["n2c", "c2n"])
def test_both_reading_directions_are_trained(direction):
    result, valid = learnt("progen2")
    tokens = result.adapter.encode(valid[0].sequence, direction=direction)
    logits = result.adapter.library_logits(result.adapter.collate([tokens]))[0]
    # From the second residue on the next one is certain.
    nats = torch.nn.functional.cross_entropy(logits[1:-2], torch.from_numpy(tokens.ids[2:-1]))
    assert nats.item() < 0.2


@pytest.mark.parametrize("family", sorted(registry.FAMILIES))
def test_every_family_of_the_registry_is_trained_by_its_objective_alone(family, corpus):
    # Heads of 64 dimensions where the layout demands it, else eight heads.
    given = recipe(family, d_model=64, n_heads=1 if family == "esm3" else 8, steps=12, validate_every=12)
    adapter = stage.untrained(given)
    protein = corpus[1][0]
    if not adapter.tokens_are_residues:
        result = stage.train(given, *corpus)
        first, last = [point for point in result.curve if point.split == "valid"]
        assert last.nats < first.nats - 0.05 and last.n == first.n == sum(len(p.sequence) for p in corpus[1])
        return
    for view in validation_views(adapter, 0.15):
        example = validation_example(adapter, protein.sequence, view, sequence_id=protein.sequence_id)
        reported = example.true_aa >= 0
        np.testing.assert_array_equal(example.targets[reported], adapter.residue_ids[example.true_aa[reported]])
    result = stage.train(given, *corpus)
    # The random corpus holds nothing but its composition to learn: the loss comes near to it from wherever it began.
    assert abs(result.last("valid").nats - result.last("valid").reference) < 0.06
    before = dict(adapter.module.named_parameters())
    moved = {name for name, p in result.adapter.module.named_parameters() if not torch.equal(p, before[name])}
    assert len(moved) > 0.5 * len(before)  # heads and inputs of other tracks are not asked


# ----------------------------------------------------------------------------------------------------- the curve


def test_the_curve_counts_steps_and_residues_and_ends_with_the_last_step(corpus):
    curve = stage.train(recipe("esm2", steps=5, validate_every=2), *corpus).curve
    assert [(p.step, p.split) for p in curve] == [
        (0, "valid"),
        (2, "train"),
        (2, "valid"),
        (4, "train"),
        (4, "valid"),
        (5, "train"),
        (5, "valid"),
    ]
    seen = [p.n_residues for p in curve]
    assert seen == sorted(seen) and seen[-1] > 0
    assert len({p.n for p in curve if p.split == "valid"}) == 1  # always the same residues
    assert len({p.reference for p in curve if p.split == "valid"}) == 1


def test_one_epoch_counts_every_training_residue_once(corpus):
    total = sum(len(p.sequence) for p in corpus[0])
    curve = stage.train(recipe("progen2", steps=1, tokens_per_batch=10_000), *corpus).curve
    assert curve[-1].n_residues == total
    train_point = next(p for p in curve if p.split == "train")
    assert train_point.n == total  # every residue is the next one once


def test_the_reference_of_the_training_residues_is_their_own_composition():
    train, valid = [Protein("t", "A" * 30 + "C" * 10)], [Protein("v", "AC" * 9)]
    curve = stage.train(recipe("progen2", steps=1, tokens_per_batch=100), train, valid).curve
    a, c = -np.log(31 / 60), -np.log(11 / 60)
    assert curve[1].reference == pytest.approx((30 * a + 10 * c) / 40)
    assert curve[2].reference == pytest.approx((a + c) / 2)


def test_every_step_has_its_learning_rate_a_clipped_gradient_and_decays_matrices_alone(corpus, monkeypatch):
    steps = []

    class Watched(torch.optim.AdamW):
        def step(self, closure=None):
            gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
            norm = torch.stack([gradient.norm() for gradient in gradients]).norm().item()
            groups = [(g["lr"], g["weight_decay"], {p.ndim for p in g["params"]}) for g in self.param_groups]
            steps.append((norm, groups))
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    given = recipe("esm2", steps=4, warmup=2, clip_norm=0.05, weight_decay=0.3)
    stage.train(given, *corpus)
    for step, (norm, (matrices, others)) in enumerate(steps):
        assert norm == pytest.approx(0.05, rel=1e-3)
        assert matrices == (given.learning_rate_at(step), 0.3, {2})
        assert others == (given.learning_rate_at(step), 0.0, {1})
    assert len(steps) == 4


def test_long_proteins_are_read_in_pieces_and_counted_in_the_log(caplog):
    caplog.set_level(logging.INFO)
    train, valid = random_proteins("t", 8, 90, 120), random_proteins("v", 4, 90, 120)
    curve = stage.train(recipe("progen2", steps=1, crop=30, tokens_per_batch=32), train, valid).curve
    assert curve[-1].n_residues == 30
    assert curve[0].n == 2 * 4 * 30
    assert "8 of them longer than 30 residues" in caplog.text and "4 of them longer than 30 residues" in caplog.text


def test_dropout_is_off_in_validation_and_in_the_result(corpus):
    result = stage.train(recipe("dplm", steps=1, sizes={"dropout": 0.5}), *corpus)
    assert not any(module.training for module in result.adapter.module.modules())
    tokens = result.adapter.collate([result.adapter.encode("MKTAYI")])
    assert torch.equal(result.adapter.library_logits(tokens), result.adapter.library_logits(tokens))


def test_the_first_stage_of_a_diffusion_model_is_masked_and_the_second_is_not(corpus, monkeypatch):
    asked = []
    real = stage.training_example

    def kept(adapter, sequence, **options):
        asked.append(options["objective"])
        return real(adapter, sequence, **options)

    monkeypatch.setattr(stage, "training_example", kept)
    stage.train(recipe("dplm", steps=3, mlm_steps=2, tokens_per_batch=10_000), *corpus)
    assert asked == ["mlm"] * 24 + ["diffusion"] * 12


@pytest.mark.parametrize("family", FAMILIES)
def test_the_spread_of_the_initial_weights_follows_the_recipe_and_is_published(family, tmp_path):
    plain, wide = stage.untrained(recipe(family)), stage.untrained(recipe(family, initializer_range=0.1))
    name, matrix = next((n, p) for n, p in wide.module.named_parameters() if p.ndim == 2)
    assert matrix.std().item() == pytest.approx(0.1, rel=0.15)
    assert plain.module.get_parameter(name).std().item() == pytest.approx(0.02, rel=0.15)
    registry.save(wide, tmp_path)
    loaded = registry.load(family, tmp_path)
    loaded.reinitialise(1)  # a null model
    assert torch.equal(loaded.module.get_parameter(name), matrix)


def test_bfloat16_products_keep_float32_weights(corpus):
    result = stage.train(recipe("esm2", steps=2, dtype="bfloat16"), *corpus)
    assert {p.dtype for p in result.adapter.module.parameters()} == {torch.float32}
    plain = stage.train(recipe("esm2", steps=2), *corpus)
    assert result.curve[-1].nats != plain.curve[-1].nats
    assert result.curve[-1].nats == pytest.approx(plain.curve[-1].nats, abs=0.02)


# ---------------------------------------------------------------------------------------------------- the stage


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_recipe_writes_the_same_bytes_and_another_seed_others(family, corpus, tmp_path):
    contents = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(len(contents))  # the state of the caller's generator must not matter
        folder = tmp_path / name
        folder.mkdir()
        stage.main(arguments(folder, corpus, recipe(family, seed=seed)))
        contents.append(
            {path.name: path.read_bytes() for path in sorted((folder / "out").rglob("*")) if path.is_file()}
        )
    assert contents[0].keys() == contents[1].keys() == contents[2].keys()
    assert [name for name in contents[0] if contents[0][name] != contents[1][name]] == []
    weights = next(name for name in contents[0] if name.startswith(("model.", "pytorch_model.")))
    assert contents[0][weights] != contents[2][weights]


def test_training_leaves_the_callers_generator_and_settings_alone(corpus):
    before = torch.random.get_rng_state()
    stage.train(recipe("dplm", steps=1), *corpus)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_checkpoint_loads_through_the_registry_with_identical_logits(family, corpus, tmp_path):
    given = recipe(family)
    stage.main(arguments(tmp_path, corpus, given))
    loaded = registry.load(family, tmp_path / "out" / "checkpoint")
    trained = stage.train(given, *corpus).adapter
    batch = trained.collate([trained.encode(p.sequence, direction=trained.directions[-1]) for p in corpus[1]])
    with torch.inference_mode():
        assert torch.equal(loaded.library_logits(batch), trained.library_logits(batch))


def test_the_folder_holds_the_official_layout_a_card_and_the_training_notes(corpus, tmp_path):
    given = recipe("esm2")
    stage.main(arguments(tmp_path, corpus, given))
    folder = tmp_path / "out" / "checkpoint"
    notes = json.loads((folder / "plm_depth_training.json").read_text())
    assert parse_recipe(notes["recipe"]) == given
    assert notes["n_train_proteins"] == 12 and notes["n_valid_proteins"] == 6
    assert notes["versions"]["torch"] == torch.__version__
    card = (folder / "README.md").read_text()
    assert "A toy model" in card and "a handful of proteins: 12 proteins of" in card
    assert "no evidence about real protein language models" in card
    assert {"config.json", "model.safetensors", "vocab.txt"} <= {path.name for path in folder.iterdir()}
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # weights as readable as the rest

    table = read_table(tmp_path / "out" / "loss.parquet", LOSS).to_pylist()
    assert [row["step"] for row in table] == [0, 2, 2, 3, 3]
    assert {row["model_id"] for row in table} == {"toy_esm2"}
    assert table[-1]["nats"] == notes["final"]["valid_nats"]
    assert f"{table[-1]['nats']:.4f}" in card and f"{table[-1]['reference']:.4f}" in card


def test_an_old_checkpoint_is_replaced_as_a_whole(corpus, tmp_path):
    folder = tmp_path / "out" / "checkpoint"
    folder.mkdir(parents=True)
    (folder / "old.bin").write_text("old")
    stage.main(arguments(tmp_path, corpus, recipe("esm2")))
    assert not (folder / "old.bin").exists() and (folder / "config.json").exists()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["checkpoint", "loss.parquet"]


# --------------------------------------------------------------------------------------------------- what is refused


def spoiled(at_call):
    """Return registry.build for a model whose logits turn NaN in the ``at_call``-th training pass."""
    real = registry.build

    def build(family, sizes, seed=0):
        adapter, calls = real(family, sizes, seed=seed), []

        def spoil(module, inputs, output):
            if module.training:
                calls.append(1)
                if len(calls) == at_call:
                    output.logits = output.logits * float("nan")
            return output

        adapter.module.register_forward_hook(spoil)
        return adapter

    return build


def test_a_loss_that_is_not_finite_stops_with_its_step_and_leaves_nothing(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(stage.registry, "build", spoiled(2))
    with pytest.raises(
        SystemExit, match=r"toy_esm2: loss nan.* at step 2 of 3.*nothing is written; lower learning_rate"
    ):
        stage.main(arguments(tmp_path, corpus, recipe("esm2")))
    assert left_over(tmp_path) == []


def test_weights_that_are_not_finite_stop_the_validation(corpus, tmp_path, monkeypatch):
    real = registry.build

    def build(family, sizes, seed=0):
        adapter = real(family, sizes, seed=seed)
        with torch.no_grad():
            next(adapter.module.parameters()).fill_(float("nan"))
        return adapter

    monkeypatch.setattr(stage.registry, "build", build)
    with pytest.raises(SystemExit, match="held-out loss nan after step 0"):
        stage.main(arguments(tmp_path, corpus, recipe("esm2")))
    assert left_over(tmp_path) == []


def test_a_failure_while_writing_leaves_nothing(corpus, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(stage, "write_table", full)
    with pytest.raises(SystemExit, match="no space"):
        stage.main(arguments(tmp_path, corpus, recipe("esm2")))
    assert left_over(tmp_path) == []


def test_running_out_of_memory_says_what_to_lower(corpus, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    monkeypatch.setattr(stage, "training_loss", full)
    with pytest.raises(SystemExit, match=r"tried to allocate 20 GiB.*lower tokens_per_batch or crop"):
        stage.main(arguments(tmp_path, corpus, recipe("esm2")))
    assert left_over(tmp_path) == []


def test_a_protein_on_both_sides_is_refused(corpus):
    with pytest.raises(CorpusError, match="split by clusters"):
        stage.train(recipe("esm2"), corpus[0], [Protein("other", corpus[0][3].sequence)])


def test_a_letter_that_the_family_cannot_read_is_named_with_its_protein(corpus):
    with pytest.raises(SequenceError, match="validation protein 'v9': 'J' at position 2"):
        stage.train(recipe("esm2"), corpus[0], [Protein("v9", "MKJ")])
    with pytest.raises(SequenceError, match="training protein 't9': empty sequence"):
        stage.train(recipe("esm2"), [Protein("t9", "")], corpus[1])


def test_a_letter_outside_the_first_piece_is_found_too(corpus):
    with pytest.raises(SequenceError, match="training protein 't9'"):
        stage.train(recipe("esm2", crop=5), [Protein("t9", "MKTAYIAKJ")], corpus[1])


def test_a_batch_too_small_for_a_protein_is_refused_with_the_mend(corpus):
    with pytest.raises(CorpusError, match="raise tokens_per_batch or set crop"):
        stage.train(recipe("esm2", tokens_per_batch=20), *corpus)


def test_an_unknown_family_and_sizes_that_do_not_fit_are_refused(corpus):
    with pytest.raises(RecipeError, match=r"recipe of toy_esm3000: unknown family 'esm3000'"):
        stage.train(recipe("esm3000"), *corpus)
    with pytest.raises(RecipeError, match=r"recipe of toy_progen2: .*multiple of 8"):
        stage.train(recipe("progen2", n_heads=4), *corpus)
    with pytest.raises(RecipeError, match=r"unknown size 'rotary_dims' of progen2; did you mean 'rotary_dim'"):
        stage.train(recipe("progen2", sizes={"rotary_dims": 4}), *corpus)


def test_a_first_stage_of_masked_modelling_is_for_diffusion_models_alone(corpus):
    with pytest.raises(RecipeError, match="only diffusion models have such a first stage and esm2 is 'mlm'"):
        stage.train(recipe("esm2", mlm_steps=1), *corpus)


def test_validation_proteins_without_a_canonical_residue_are_refused(corpus):
    with pytest.raises(stage.TrainingError, match="no canonical residue"):
        stage.train(recipe("progen2"), corpus[0], [Protein("v9", "XXX")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "{}"}, "missing model"),
        ({"recipe": "/nowhere.json"}, "cannot be read"),
        ({"train": "/nowhere.fasta"}, "not a readable FASTA"),
        ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"threads": 0}, "expected at least 1"),
    ],
)
def test_every_foreseeable_failure_ends_in_one_message(corpus, tmp_path, changes, message):
    with pytest.raises(SystemExit) as caught:
        stage.main(arguments(tmp_path, corpus, recipe("esm2"), **changes))
    assert str(caught.value.code).startswith("training.train: ") and message in caught.value.code
    assert left_over(tmp_path) == []


def test_where_a_token_holds_several_residues_the_loss_is_per_residue(corpus):
    adapter = stage.untrained(recipe("protgpt2"))
    protein = corpus[1][0]
    example = validation_example(adapter, protein.sequence, validation_views(adapter, 0.15)[0], sequence_id="v")
    assert example.held.sum() == len(protein.sequence) and example.held.sum(1).max() == 2
    batch = adapter.collate([example.tokens])
    logits = adapter.library_logits(batch)[0][example.reads]
    ignorant = stage.background(corpus[0])
    nats, reference, n = stage.loss_of_reads(logits, scored([example]), adapter.residue_ids, ignorant)
    assert n == len(protein.sequence)
    assert reference == pytest.approx(sum(ignorant[AMINO_ACIDS.index(letter)] for letter in protein.sequence))
    pieces = np.flatnonzero(example.held.any(1))
    by_hand = -logits.log_softmax(-1)[pieces, example.targets[pieces]].sum()
    assert nats == pytest.approx(by_hand.item(), rel=1e-5)


def test_a_model_that_its_layout_cannot_hold_is_refused_before_training():
    with pytest.raises(RecipeError, match="they must have 64 dimensions"):
        stage.check_can_be_written(recipe("esm3", d_model=48, n_heads=2))
    stage.check_can_be_written(recipe("esm3", d_model=64, n_heads=1))
