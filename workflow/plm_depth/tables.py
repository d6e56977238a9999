"""The files between the rooms: their columns, types and units, and the only code that reads or writes them.

Two kinds of table:

* ordinary tables (``write_table``, ``read_table``): typed columns, Parquet with zstd, one of the schemas below;
* vector tables (``VectorWriter``, ``VectorTable``): ordinary key columns plus one fixed-size-binary column of
  little-endian numbers per layer, uncompressed, a row a residue, row groups that end where a sequence ends. A reader
  takes one layer without touching the others and gets a numpy view without a copy.

Everything is written under a temporary name and renamed, so a file under its final name is whole. A file that is
truncated, corrupt or of another schema raises ``TableError`` with its path.
"""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"  # the order of every 20-way axis in this package


class TableError(Exception):
    """A table that is missing, truncated, corrupt or not what its schema says."""


# ----------------------------------------------------------------------------------------------------------------
# Schemas


def _schema(description: str, **columns: tuple[pa.DataType, str]) -> pa.Schema:
    """Return an Arrow schema whose fields carry their meaning and unit, and whose metadata says what a row is."""
    fields = [
        pa.field(name, kind, nullable=False, metadata={"description": meaning})
        for name, (kind, meaning) in columns.items()
    ]
    return pa.schema(fields, metadata={"description": description})


_text, _cat = pa.string(), pa.dictionary(pa.int32(), pa.string())
_i16, _i32, _i64, _f32, _f64, _bool = pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.bool_()

SEQUENCES = _schema(
    "one protein of a sample, in rank order",
    sequence_id=(_text, "accession"),
    sequence_hash=(_text, "SHA-256 of the residues, hexadecimal"),
    rank=(_i32, "place in the order of the keyed hash, from 0: a sample of size k holds ranks 0..k-1"),
    n_residues=(_i32, "residues"),
    sequence=(_text, "residues, upper case"),
)
LEFT_OUT = _schema(
    "records of a source by what became of them; counts add up to the records read",
    reason=(_text, "sampled, not_sampled, or why the record was left out"),
    n_records=(_i64, "records"),
)
LETTERS = _schema(
    "letters of a source beside the 20 amino acids, and what became of the records that hold them",
    letter=(_text, "the letter; lower case, or stop: a * at the end"),
    n_records=(_i64, "records that hold it"),
    n_letters=(_i64, "how often it stands in them"),
    fate=(_cat, "left out, upper-cased, or dropped"),
)
CLUSTERS = _schema(
    "similarity cluster of each protein",
    sequence_id=(_text, "accession"),
    cluster_id=(_text, "accession of the cluster's representative"),
)
ANNOTATIONS = _schema(
    "what is known of a protein on which probes are tested",
    sequence_id=(_text, "protein"),
    source=(_cat, "structures: a chain; families: a member of a labelled family"),
    group=(_text, "what is to be recognised (superfamily or family), empty if unknown"),
    part=(_text, "part of the group that is held out (family or subfamily), empty if unknown"),
)
LOSS = _schema(
    "training curve of one checkpoint",
    model_id=(_text, "model"),
    step=(_i32, "optimiser steps done"),
    n_residues=(_i64, "residues seen so far, repeats counted"),
    split=(_cat, "train or valid"),
    nats=(
        _f64,
        "mean loss per predicted residue, in nats, over the 20 canonical residues (of whole tokens over the whole "
        "vocabulary, where a token holds several residues)",
    ),
    n=(_i64, "predicted residues behind the mean"),
    reference=(_f64, "nats that the composition of the training proteins pays for the same residues: ignoring context"),
)

# Which measurement a row belongs to. Categories: objective ar, mlm, diffusion; null_model trained, randinit, shuffle_w,
# shuffle_seq; condition seq, seq_struct, struct; readout seq, struct, none; direction n2c, c2n, none.
COMMON = {
    "model_id": (_cat, "model"),
    "family": (_cat, "family of the model"),
    "objective": (_cat, "ar, mlm or diffusion"),
    "n_blocks": (_i16, "blocks of the model"),
    "d_model": (_i32, "width of the residual stream"),
    "dtype": (_cat, "dtype of the weights in the forward pass"),
    "null_model": (_cat, "trained, randinit, shuffle_w or shuffle_seq"),
    "null_seed": (_i16, "seed of the null model, -1 for trained"),
    "condition": (_cat, "seq, seq_struct or struct"),
    "readout": (_cat, "seq, struct or none"),
    "direction": (_cat, "n2c or c2n for autoregressive models, else none"),
    "noise_t": (_f32, "share of residues masked; 0 clean; NaN for autoregressive models"),
    "mask_draw": (_i16, "which draw of the mask, -1 where nothing is masked"),
}
PER_SEQUENCE = {
    "sequence_id": (_cat, "accession"),
    "n_residues": (_i32, "residues of the protein"),
}
VIEW_KEYS = PER_SEQUENCE | {
    name: COMMON[name] for name in ("null_model", "null_seed", "condition", "direction", "noise_t", "mask_draw")
}
_SUMS = {
    "n": (_i32, "values behind the sums"),
    "n_nan": (_i32, "values left out because they are undefined"),
    "sum": (_f64, "sum of the values"),
    "sumsq": (_f64, "sum of their squares"),
}
_VOCAB = (_cat, "aa20: renormalised over the canonical residues; full: all real tokens (classes of a structure head)")


def _interval(resampling: str) -> dict[str, tuple[pa.DataType, str]]:
    """Return the two ends of a 95 % interval."""
    return {
        "ci_lo": (_f64, f"2.5th percentile of the {resampling}"),
        "ci_hi": (_f64, f"97.5th percentile of the {resampling}"),
    }


# Ends of tables of corpus values.
_RESAMPLED = {"n_cluster": (_i32, "similarity clusters among them"), "n_boot": (_i32, "bootstrap resamples")}
_CORPUS_VALUE = {
    "value": (_f64, "corpus value"),
    **_interval("bootstrap; NaN for max"),
    "n_seq": (_i32, "proteins with at least one defined value"),
    **_RESAMPLED,
    "n_nan": (_i64, "undefined values left out"),
}
_STATISTIC = {
    "value": (_f64, "the statistic"),
    **_interval("cluster bootstrap"),
    "n_seq": (_i32, "proteins"),
    "n_cluster": (_i32, "similarity clusters"),
    "n_boot": (_i32, "resamples in which the statistic was defined"),
}

CONTRIB_SEQ = _schema(
    "residual-stream contributions (metrics A1-A4) of one protein at one layer",
    **COMMON,
    **PER_SEQUENCE,
    layer=(_i16, "0..n_blocks for states (norm_h, var_h, massive), 1..n_blocks for blocks"),
    quantity=(_cat, "see plm_depth.metrics.contributions"),
    pos_class=(_cat, "residue, masked, unmasked or special"),
    **_SUMS,
    p95=(_f32, "95th percentile over positions"),
    max=(_f32, "largest value over positions"),
    argmax_pos=(_i32, "position of the largest value, -1 if there is none"),
)
LENS_SEQ = _schema(
    "logit lens (metrics C1-C4) of one protein at one layer",
    **COMMON,
    **PER_SEQUENCE,
    layer=(_i16, "0..n_blocks; -1 in settling rows, whose values are layers, and in rows of kl_bg"),
    lens=(
        _cat,
        "logit: read at masked or next residues; tuned: through translators; copy: at visible residues; of a structure "
        "head, logit: structures that were not shown, copy: those that were",
    ),
    vocab=_VOCAB,
    quantity=(_cat, "see plm_depth.metrics.lens"),
    **_SUMS,
    max=(_f64, "largest value over positions"),
    rank_hist=(pa.list_(_i32, 20), "positions by rank of the true residue, 1..20; zeros unless quantity is rank_true"),
)
PROFILE = _schema(
    "corpus value of one quantity at one layer, with its cluster-bootstrap interval",
    **COMMON,
    table=(_cat, "contributions or lens; tuned_lens, structure_heads: of these sections"),
    quantity=(_cat, "as in that table"),
    pos_class=(_cat, "as in contributions; lens name for lens rows"),
    vocab=(_cat, "aa20, full, or none"),
    layer=(_i16, "as in that table"),
    aggregate=(_cat, "mean (macro), micro, p95, max"),
    **_CORPUS_VALUE,
)
SUMMARY = _schema(
    "one summary statistic of one model (metrics I)",
    **COMMON,
    stat=(
        _cat,
        "I1 depth_score, I2 kl_depth, I3 overlap_depth, I4 retention_depth, I5 cosine_depth, I6 n80 and participation, "
        "I7 areas, I8 removable_fraction, I10 settling, A4 growth",
    ),
    profile=(_cat, "the profile it was computed from"),
    param=(_f64, "threshold or other parameter of the statistic, NaN if it has none"),
    **_STATISTIC,
)

# Skip effects (metrics B). Which run a row belongs to, and what is kept of the positions at which it is read.
SKIP_KEYS = {
    "part": (_cat, "what is silenced in the source block: layer, attn, mlp or geom"),
    "pos_set": (
        _cat,
        "where: all, prefix, other, ctx2mask, tokens, struct2seq or seq2struct; see "
        "plm_depth.activations.interventions",
    ),
    "local": (_bool, "whether only the source's own contribution is taken out of each target's clean input"),
    "ablation": (_cat, "what stands in its place: zero, mean or resample"),
    "draw": (_i16, "draw of a random position set, -1 where the set is not random"),
    "src": (_i16, "source block, 1..n_blocks"),
}
SKIP_SEQ = _schema(
    "effect of silencing one block of one protein on the update of every block; lists of length n_blocks, one value a "
    "target block 1..n_blocks",
    **COMMON,
    **PER_SEQUENCE,
    **SKIP_KEYS,
    n=(pa.list_(_i32), "positions read, with a defined ratio"),
    n_nan=(pa.list_(_i32), "positions read whose clean update is (nearly) zero"),
    sum=(pa.list_(_f64), "sum over positions of |u - u*| / |u|"),
    sumsq=(pa.list_(_f64), "sum of the squared ratios"),
    num=(pa.list_(_f64), "sum of |u - u*| over all positions read, activation units"),
    den=(pa.list_(_f64), "sum of |u| over all positions read, activation units"),
    p95=(pa.list_(_f32), "95th percentile of the ratios, NaN if there is none"),
    max=(pa.list_(_f32), "largest ratio, NaN if there is none"),
    below_floor=(pa.list_(_bool), "whether the mean ratio is below three times the noise floor of model and dtype"),
)
SKIP_OUT_SEQ = _schema(
    "effect of silencing one block of one protein on its output",
    **COMMON,
    **PER_SEQUENCE,
    **SKIP_KEYS,
    vocab=(_cat, "aa20: renormalised over the canonical residues; full: all real tokens; none for router_flip"),
    quantity=(
        _cat,
        "l2, kl_fo (nats), tv, flip1, dnll (nats); in mixtures of experts router_flip: the share of later blocks in "
        "which a position takes other experts",
    ),
    n=(_i32, "read-outs with a defined value"),
    n_nan=(_i32, "read-outs without one"),
    sum=(_f64, "sum over read-outs"),
    sumsq=(_f64, "sum of squares"),
    p95=(_f32, "95th percentile, NaN if there is no value"),
    max=(_f32, "largest value, NaN if there is none"),
    below_floor=(_bool, "whether the mean is below three times the noise floor of model and dtype"),
)
SKIP = _schema(
    "corpus value of one skip effect, with its cluster-bootstrap interval",
    **COMMON,
    part=(_cat, "as in the sequence tables"),
    pos_set=(_cat, "as in the sequence tables; locality rows: the set of the numerator"),
    local=(_bool, "as in the sequence tables"),
    ablation=(_cat, "as in the sequence tables"),
    vocab=(_cat, "aa20 or full for output changes, else none"),
    quantity=(
        _cat,
        "effect (D), influence (s), dependence (c), EE, LL, EL, LL/EE; l2, kl_fo, tv, flip1, dnll (output change); "
        "router_flip; locality (of l2); influence_, l2_ and dnll_ with depth_score, n80, participation, half_contrast, "
        "over all blocks, of influence over those that have a later one",
    ),
    src=(_i16, "source block, 1..n_blocks; -1 in reductions over sources"),
    tgt=(_i16, "target block, 1..n_blocks; -1 for output changes and in reductions over targets"),
    agg=(_cat, "mean (macro), ratio (of sums), p95, max"),
    **_CORPUS_VALUE,
    below_floor=(_f64, "share of proteins whose mean is below three times the noise floor"),
)
GEOM = _schema(
    "geometry of the stream (metrics F): one statistic of one layer or of two, of one model or of two",
    **COMMON,
    model_j=(_cat, "model of layer_j; model_id unless two models are compared"),
    layer_i=(_i16, "layer, 0..n_blocks; -1 where a statistic is over all layers"),
    layer_j=(_i16, "other layer, of model_j; -1 where a statistic is of one layer"),
    quantity=(_cat, "see plm_depth.metrics.geometry and geometry_pairs"),
    space=(_cat, "raw: the stream; zscore: each coordinate standardised; fnorm: after the final norm"),
    points=(_cat, "residue: anchor residues; pooled: means over the residues of a protein"),
    share=(_f64, "share of the points that was taken: 1, or 1/2 and 1/4 where a statistic depends on their number"),
    k=(_i16, "neighbours, 0 where there are none"),
    value=(_f64, "the statistic"),
    se=(_f64, "its standard error, by a jackknife over groups of similarity clusters; NaN if there is none"),
    n_points=(_i32, "points behind the value"),
    n_nan=(_i32, "points left out: without a direction, coinciding with another, or without k nearest neighbours"),
    n_seq=(_i32, "proteins of the points"),
    n_cluster=(_i32, "similarity clusters of the points"),
)

# Depth ablation (metrics D). Which run a row belongs to.
ABLATE_KEYS = {
    "reads": (
        _cat,
        "what is read: next, masked or visible residues of the view; single: residues masked one at a time",
    ),
    "op": (
        _cat,
        "full, background, exit, remove, remove_block, swap_adj, swap_block, reverse, repeat, parallel or mean; see "
        "plm_depth.activations.ablation",
    ),
    "start": (_i16, "blocks passed before the change, 0..n_blocks; -1: several, averaged (random and angular spans)"),
    "length": (_i16, "blocks that the change concerns; of swaps, of each of the two spans"),
    "policy": (_cat, "of remove_block: angular, deepest, tail, random or exhaustive; else none"),
    "moves_geometric": (_bool, "whether a block with a geometric branch is not where it was"),
}
ABLATE_SEQ = _schema(
    "prediction of one protein after one change to the course of blocks, over the 20 canonical residues",
    **COMMON,
    **PER_SEQUENCE,
    **ABLATE_KEYS,
    quantity=(_cat, "nll (nats), acc1, kl_to_full (nats), flip1"),
    n=(_i32, "residues read"),
    sum=(_f64, "sum of the values"),
    sumsq=(_f64, "sum of their squares"),
)
ABLATION = _schema(
    "corpus value of the prediction after one change to the course of blocks, with its cluster-bootstrap interval",
    **COMMON,
    **ABLATE_KEYS,
    quantity=(
        _cat,
        "nll (nats), acc1, kl_to_full (nats), flip1; dnll, dacc1: less the full model's; perplexity: exp of nll",
    ),
    value=(_f64, "corpus value (mean over proteins)"),
    **_interval("bootstrap"),
    n_seq=(_i32, "proteins"),
    **_RESAMPLED,
)
DEPTHS = _schema(
    "effective depth of one model by one definition (metrics I), at its primary input",
    **COMMON,
    definition=(_cat, "what it is, its profile and its parameter; see plm_depth.metrics.depths"),
    index=(_cat, "number of the definition, I1 to I10, or E3"),
    kind=(_cat, "where: a relative depth, 0 the embedding, 1 the last layer; amount: the share of the depth in use"),
    **_STATISTIC | {"value": (_f64, "0 to 1")},
)
DEPTH_TAU = _schema(
    "how far two definitions of effective depth order the trained models of a data set alike",
    definition=(_cat, "one definition"),
    other=(_cat, "the other definition"),
    tau=(_f64, "Kendall's tau-b over models, -1 to 1; NaN with fewer than 3 models or where a definition is constant"),
    p_value=(
        _f64,
        "of no association, two-sided, adjusted by Holm over all pairs of two definitions; takes models for "
        "independent, which those of one family are not; NaN where tau is",
    ),
    n_models=(_i32, "models with a value of both"),
)
VERDICT = _schema(
    "one statistic of one claim, beside its margin and its null, and what follows",
    claim=(_cat, "K1 to K6"),
    scope=(_text, "model, family, objective, or all"),
    statistic=(_text, "what was computed; the claim itself in its summary row"),
    role=(_cat, "decides: the verdict rests on it; supports: shown beside it; claim: the summary row"),
    value=(_f64, "the statistic"),
    **_interval("paired cluster bootstrap"),
    null_value=(_f64, "mean of the untrained networks of the same architecture, NaN if there is none"),
    null_lo=(_f64, "lower end of what another untrained network would give (95 %), NaN if fewer than two"),
    null_hi=(_f64, "upper end of the same"),
    max_value=(_f64, "the statistic on maxima over positions instead of means, NaN where there is none"),
    margin=(_f64, "fixed beforehand in the config; NaN where there is none"),
    verdict=(_cat, "pass, pass_descriptive, fail or inconclusive; shown in supporting rows"),
    reason=(_text, "in words"),
    n_seq=(_i32, "proteins"),
    n_cluster=(_i32, "similarity clusters"),
)

CODES = _schema(
    "precomputed structure codes of one structure, by the tokenizer of one family",
    structure_id=(_text, "as in STRUCTURES"),
    family=(_cat, "the family whose tokenizer gave the codes; no other family is shown them"),
    codes=(pa.list_(_i32), "a code a residue of the sequence, -1 where unknown"),
)
# Linear probes (metrics G). In these tables ``direction`` is also "both": the streams of both directions side by side.
PROBE_KEYS = {
    "task": (_cat, "ss3, rsa, exposed, hse (residues); contacts (pairs); homology (proteins)"),
    "space": (
        _cat,
        "pca256: at most so many principal components; full: all coordinates; raw, centred: retrieval; heads",
    ),
    "probe": (_cat, "logistic, ridge, retrieval (cosine, no training), attention (of attention maps)"),
    "control": (_cat, "none, perm (permuted labels), kmer (random label per 3-mer), untrained, onehot (no model)"),
    "metric": (_cat, "accuracy, macro_f1, auroc, spearman; p_at_l_short, _medium, _long; top1, first_error"),
}
PROBE = _schema(
    "score of one probe of one layer on the test proteins of one fold",
    **COMMON,
    **PROBE_KEYS,
    layer=(_i16, "0..n_blocks; the block for attention; -1 where no layer is read (onehot)"),
    dim=(_i32, "numbers that the probe reads of a residue, pair or protein"),
    fold=(_i16, "fold that is test"),
    value=(_f64, "the score"),
    n_train=(_i32, "rows (residues, pairs, proteins) that the probe was fitted on; 0 for retrieval"),
    n_test=(_i32, "rows that it was scored on"),
    **{"lambda": (_f64, "penalty chosen on training rows; NaN where there is none")},
)
PROBES = _schema(
    "corpus value of a probe's score or of what follows from it, with its cluster-bootstrap interval",
    **COMMON,
    **PROBE_KEYS,
    stat=(
        _cat,
        "score; validation (what layers are chosen by); selectivity (score less kmer); over_untrained, over_onehot "
        "(score less that control); best_layer, shallowest (of the layers within the tolerance of the best, by "
        "validation); selected (test score of the layer that each fold's validation chose); retention_depth (I4); "
        "seen_share (of the tested residues, those whose 3-mer stands in their training rows: control kmer is scored "
        "on these, selectivity as well); undefined (no score: value clusters or residues there are, param needed)",
    ),
    layer=(_i16, "0..n_blocks; -1 in values that belong to no layer, whose value may be a layer"),
    param=(_f64, "retention_depth: share of the gain; shallowest: tolerance; undefined: what is needed; else NaN"),
    floor=(_cat, "retention_depth: chance or layer_0, from which the gain is counted; else none"),
    value=(_f64, "corpus value"),
    **_interval("cluster bootstrap"),
    chance=(_f64, "score of a guess that reads nothing"),
    in_plateau=(_bool, "score rows: whether the validation score is within the tolerance of the best"),
    n_rows=(_i32, "residues, pairs or proteins scored"),
    n_seq=(_i32, "proteins among them"),
    n_grouped=(_i32, "those of them whose superfamily (group) is known, which folds keep whole; 0: clusters only"),
    n_cluster=(_i32, "similarity clusters among them"),
    n_boot=(_i32, "resamples in which the value was defined"),
)

# Zero-shot fitness (metrics H): assays of variants, their scores at every layer, and how well these rank the variants.
VARIANTS = _schema(
    "one measured variant of an assay; the rows of an assay stand together, in the order of their keyed hashes",
    assay_id=(_cat, "assay"),
    uniprot_id=(_cat, "UniProt id of the protein"),
    category=(_cat, "function class of the assay: Activity, Binding, Expression, OrganismalFitness, Stability, ..."),
    sequence=(_cat, "wild type, canonical residues"),
    variant=(_i32, "place in the order of the keyed hash, from 0: the k variants of a smaller draw are the first k"),
    mutations=(_text, "substitutions like A12C, joined by ':', by ascending position, counted from 1 in the sequence"),
    n_mutations=(_i16, "substitutions"),
    score=(_f64, "measured; higher is fitter"),
)
ASSAYS = _schema(
    "rows of the source of one assay by what became of them; counts add up to the rows read",
    assay_id=(_text, "assay"),
    uniprot_id=(_text, "UniProt id of the protein"),
    category=(_text, "function class"),
    n_residues=(_i32, "residues of the wild type"),
    reason=(_text, "drawn, not_drawn, or why the row was left out"),
    n_rows=(_i64, "rows"),
)
FITNESS_KEYS = {
    "scorer": (
        _cat,
        "wt: wild-type marginals; mask: masked marginals; ar: log-likelihood ratio; ar_parity: the same by the "
        "family's own score; emb_zs: distance of the mean states; emb_ridge: ridge on them (supervised); "
        "blosum62: substitution matrix, no model",
    ),
    "lens": (_cat, "logit: the model's own head at every layer; none where nothing is read out"),
}
FITNESS_VAR = _schema(
    "scores of one variant at every layer; (n_blocks + 1) x 4 bytes and little else",
    **COMMON,
    **FITNESS_KEYS,
    assay_id=(_cat, "assay"),
    variant=(_i32, "as in VARIANTS"),
    scores=(pa.list_(_f32), "layers 0..n_blocks; nats, for emb_zs the cosine of both mean states less 1"),
)
FITNESS_GRAM = _schema(
    "inner products of the mean states of the variants of one assay at one layer, taken from the wild type's",
    **COMMON,
    assay_id=(_cat, "assay"),
    layer=(_i16, "0..n_blocks"),
    variants=(pa.list_(_i32), "as in VARIANTS, n of them"),
    gram=(pa.list_(_f32), "lower triangle with the diagonal, row by row, n (n + 1) / 2; squared activation units"),
)
FITNESS = _schema(
    "how well the scores of one layer rank measured variants, of one assay or over assays",
    **COMMON
    | {
        "direction": (_cat, "as in COMMON; both: mean over the reading directions"),
        "noise_t": (_f32, "0 clean; NaN for autoregressive models; -1 for mask, where it differs by variant"),
    },
    **FITNESS_KEYS,
    folds=(_cat, "of emb_ridge: random, modulo or contiguous; else none"),
    level=(
        _cat,
        "assay; uniprot: mean of its assays of a class; category: mean of its proteins; all: mean of the classes",
    ),
    assay_id=(_cat, "assay, or - beyond that level"),
    uniprot_id=(_cat, "UniProt id, or - beyond that level"),
    category=(_cat, "function class, or - for all"),
    layer=(_i16, "0..n_blocks; -1 for blosum62"),
    value=(_f64, "Spearman correlation with the measured score, or the mean of such; NaN where it is undefined"),
    **_interval("bootstrap"),
    resampled=(_cat, "variants: within assays, these proteins only; proteins: UniProt ids; none: no interval"),
    n_var=(_i64, "variants behind the value"),
    n_assay=(_i32, "assays with a defined correlation"),
    n_uniprot=(_i32, "UniProt ids among them"),
    n_nan=(_i32, "assays without one: all their scores are equal"),
    n_boot=(_i32, "resamples in which the value was defined"),
)

# Attribution and erasure (metrics E). A row of a layer whose attributions miss the difference of the ends by more than
# this, relative to the larger of that difference and the sum of their absolute values, is left out of corpus values.
COMPLETE = 0.01
ATTR_SEQ = _schema(
    "integrated gradients (metrics E1, E2) of one protein at one layer; F is the sum of the target over all reads",
    **COMMON,
    **PER_SEQUENCE,
    layer=(_i16, "1..n_blocks for gates and updates, 0..n_blocks for states"),
    object=(
        _cat,
        "gate, gate_attn, gate_mlp, gate_geom; layer (state), attn, mlp; see plm_depth.activations.attribution",
    ),
    target=(_cat, "what F sums: logp (nats) or prob of the true residue"),
    vocab=_VOCAB,
    value=(_f64, "attribution, summed over all tokens; of a gate also its block's share of f_end - f_base"),
    special=(_f64, "of it, at tokens that are no canonical residues"),
    l1=(_f64, "sum of the absolute attributions of all tokens"),
    by_position=(pa.list_(_f32), "attribution of each residue, n_residues values"),
    n_reads=(_i32, "reads that F sums over"),
    f_end=(_f64, "F of the clean run"),
    f_base=(_f64, "F at the other end of the way: all gates closed, or the object replaced by its mean"),
    completeness_err=(_f64, "how far the attributions are from adding up to f_end - f_base, see COMPLETE"),
    n_steps=(_i16, "points of the integral"),
)
ERASE_SEQ = _schema(
    "change of the output of one protein when the state of a residue, or of all before a point, is erased (metric E3)",
    **COMMON,
    **PER_SEQUENCE,
    layer=(_i16, "0..n_blocks, whose state is replaced by its mean"),
    pos=(_i32, "0-based position of the erased residue, -1: all visible residues before a point"),
    vocab=_VOCAB,
    quantity=(_cat, "l2 of the probabilities, or kl_fo: KL(clean || erased), nats"),
    n=(_i32, "reads at other positions"),
    sum=(_f64, "sum over these reads"),
    max=(_f64, "largest value"),
    floor=(_f64, "largest value over all reads when every state that enters block 1 is replaced by itself"),
)
ATTRIBUTION = _schema(
    "corpus value of attribution or erasure, with its cluster-bootstrap interval",
    **COMMON,
    object=(_cat, "as in ATTR_SEQ; erase_position or erase_prefix"),
    target=(_cat, "as in ATTR_SEQ; quantity of ERASE_SEQ for erasures"),
    vocab=(_cat, "as in the sequence tables"),
    quantity=(_cat, "see plm_depth.metrics.attribution"),
    layer=(_i16, "as in the sequence tables; -1 in statistics over layers"),
    value=(_f64, "corpus value"),
    **_interval("bootstrap; NaN for largest"),
    n_seq=(_i32, "proteins with a defined value"),
    **_RESAMPLED,
    n_rejected=(_i32, "rows of the sequence table left out for their completeness error; 0 for erasures"),
)
ATTRIBUTION_MAP = _schema(
    "attribution of one residue of the example protein at one layer, averaged over mask draws and, for the primary row "
    "of diffusion models, over noise levels",
    **COMMON,
    **PER_SEQUENCE,
    object=(_cat, "as in ATTR_SEQ"),
    target=(_cat, "as in ATTR_SEQ"),
    vocab=(_cat, "as in ATTR_SEQ"),
    layer=(_i16, "as in ATTR_SEQ"),
    position=(_i32, "0-based position of the residue"),
    value=(_f64, "attribution divided by the reads of the protein"),
    completeness_err=(_f64, "largest completeness error behind it"),
)

# Structures, reduced to the backbone and to what is read off it.
_xyz = pa.list_(pa.float32(), 3)
STRUCTURES = _schema(
    "one chain of one structure file",
    structure_id=(_text, "entry and chain, or accession, or file name; letters, digits, '.', '_', '-'"),
    sequence_id=(_text, "id of its sequence in BACKBONE and in the FASTA file of the structures: structure_id"),
    sequence_hash=(_text, "SHA-256 of the residues, hexadecimal"),
    sequence=(_text, "the whole sequence where the file states it, else the residues with coordinates; X: unknown"),
    source=(_cat, "pdb, alphafold or folder"),
    file=(_text, "name of the file"),
    sha256=(_text, "SHA-256 of the file as it came, hexadecimal"),
    release=(_text, "date of the last revision that the file states, empty if none"),
    chain=(_text, "chain by the author's id, as PDB files and papers print it"),
    method=(_cat, "experimental method in lower case, predicted, or unknown"),
    resolution=(_f32, "Angstrom, NaN where the file states none"),
    is_predicted=(_bool, "whether the B factors are pLDDT"),
    n_residues=(_i32, "residues of the sequence"),
    n_missing=(_i32, "residues among them without N, CA and C"),
    n_breaks=(_i32, "places where a residue with coordinates is not bonded to the one with coordinates before it"),
    n_modified=(_i32, "modified residues read as their parent (selenomethionine as M)"),
    n_unknown=(_i32, "residues read as X"),
    n_mismatched=(_i32, "residues whose coordinates are of another amino acid than the sequence states"),
    mean_plddt=(_f32, "mean over the residues with coordinates, NaN for experiments"),
    rsa_share=(_f32, "share of the residues with backbone that have all side-chain atoms; rsa is given from 0.9 on"),
)
BACKBONE = _schema(
    "one residue of the sequence of one structure; coordinates in Angstrom, NaN where missing",
    sequence_id=(_cat, "as in STRUCTURES"),
    sequence_hash=(_cat, "SHA-256 of the residues, hexadecimal"),
    position=(_i32, "0-based position in the sequence"),
    aa=(_cat, "amino acid of the sequence, X if unknown"),
    is_resolved=(_bool, "whether N, CA and C have coordinates"),
    after_break=(_bool, "whether the residue is resolved and not bonded to the one before it (true at the first)"),
    plddt=(_f32, "confidence of the prediction, 0 to 100, NaN for experiments and missing residues"),
    n=(_xyz, "backbone nitrogen"),
    ca=(_xyz, "alpha carbon"),
    c=(_xyz, "carbonyl carbon"),
    o=(_xyz, "carbonyl oxygen"),
    cb=(_xyz, "beta carbon as the file has it, NaN for glycine"),
    three_di=(_cat, "3Di state of Foldseek in upper case, - where the residue is not resolved"),
    ss8=(_cat, "DSSP: H alpha, G 3-10 and I pi helix, E strand, B bridge, T turn, S bend, C none; - unknown"),
    ss3=(_cat, "H (H, G, I), E (E, B), C (the rest); - unknown"),
    rsa=(_f32, "solvent-accessible area over the largest of its amino acid, 0 to about 1; NaN unknown"),
    hse_up=(_f32, "half-sphere exposure, a proxy for burial: CA atoms within 12 Angstrom on CB's side; NaN unknown"),
)

# A user's labels, and which layer serves them (choices).
LABELS = _schema(
    "one label of one protein, or of one of its residues, of a user's table",
    sequence_id=(_cat, "identifier of the row, or line_N"),
    position=(_i32, "0-based position of the residue; -1: a label of the whole protein"),
    label=(_cat, "column of the label; multi-label: name of the label"),
    value=(_f64, "the number; the code of the class; multi-label: 0 or 1"),
    text=(_cat, "the label as it stands in the table"),
    split=(_cat, "train, valid or test, or the name of a fold, as the user splits; empty: the workflow splits"),
    group=(_cat, "the user's cluster; empty: there is none"),
)
CHOICE = _schema(
    "score of a probe on one layer of one model, on a user's labels",
    choice=(_cat, "name of the question: a table and a label"),
    **{name: COMMON[name] for name in ("model_id", "family", "objective", "n_blocks")},
    kind=(_cat, "regression, classification or multi-label, for residues with residue- before it"),
    probe=(_cat, "linear: L2-penalised; knn: mean of the nearest training rows"),
    metric=(_cat, "spearman, pearson, r2; mcc, accuracy, macro_f1; macro_auprc"),
    side=(
        _cat,
        "valid: rows by which the layer is chosen; test: rows that score it; both unseen by the probe; nested: every "
        "part of the rows at the layer that other rows chose; nested_cut: the same of the layers from 1 on",
    ),
    layer=(_i16, "0..n_blocks: blocks passed; -1 on the nested sides"),
    value=(_f64, "the score; NaN where undefined"),
    **_interval("cluster bootstrap"),
    below_best=(_f64, "score of the best layer minus this one's"),
    below_lo=(_f64, "2.5th percentile of the same, paired resample by resample"),
    below_hi=(_f64, "97.5th percentile of the same"),
    over_last=(_f64, "score minus that of the last layer"),
    over_last_lo=(_f64, "2.5th percentile of the same, paired"),
    over_last_hi=(_f64, "97.5th percentile of the same, paired"),
    in_plateau=(_bool, "whether the score is at least the best minus tolerance times its size"),
    is_tied=(_bool, "whether the interval of below_best holds 0: these rows cannot tell the layer from the best"),
    share_within=(_f64, "share of resamples in which the layer is in the plateau of that resample"),
    share_chosen=(_f64, "share of resamples in which the layer is the shallowest of the plateau"),
    is_recommended=(
        _bool,
        "shallowest layer of the plateau; one row of each model, probe and metric on valid and on test",
    ),
    is_primary=(_bool, "whether this probe and metric decide"),
    chance=(_f64, "what a guess that ignores the features scores"),
    tolerance=(_f64, "of the plateau"),
    n_rows=(_i32, "labels behind the score"),
    n_cluster=(_i32, "clusters among them"),
    n_boot=(_i32, "resamples in which the score is defined"),
)
SAVINGS = _schema(
    "what a model costs when it ends after a layer",
    model_id=(_cat, "model"),
    n_blocks=(_i16, "blocks of the whole model"),
    layer=(_i16, "0..n_blocks: blocks that stay"),
    n_parameters=(_i64, "parameters, embedding and head included"),
    weight_bytes=(_i64, "bytes of the weights in the dtype of the study"),
    flops_per_token=(_f64, "operations of products in the blocks, for one token of a protein of n_tokens tokens"),
    n_tokens=(_i32, "tokens of that protein"),
)

# Key columns of the vector tables. A row is one token (moments), one read position (lens logits) or one anchor (stream)
# of one view of one protein under one null model. What is constant over a file (model, dtype, ...) is in its metadata.
MOMENT_KEYS = _schema(
    "inner products of stream and updates at one token",
    **VIEW_KEYS,
    position=(_i32, "0-based residue position; for specials -1 before the first residue, n_residues after the last"),
    pos_class=(_cat, "masked, unmasked or special"),
)
LENS_KEYS = _schema(
    "read-out of every layer at one read position",
    **VIEW_KEYS,
    position=(_i32, "0-based position of the residue that is predicted"),
    true_aa=(_i16, "index of the true residue in AMINO_ACIDS"),
    is_masked=(_bool, "whether the residue was hidden from the model (always true for autoregressive models)"),
)
STRUCTURE_KEYS = _schema(
    "read-out of the structure head of every layer at one residue, reduced to what metrics.lens makes of logits",
    **VIEW_KEYS,
    position=(_i32, "0-based position of the residue whose structure is read"),
    true_class=(_i16, "class of its structure, -1 where it is not known"),
    is_masked=(_bool, "whether the residue itself was hidden from the model"),
    is_shown=(_bool, "whether its structure was shown to the model: what is read is a copy"),
)
STREAM_KEYS = _schema(
    "residual stream at one anchor residue, or its mean over the residues of the protein",
    **VIEW_KEYS,
    position=(_i32, "0-based position of the anchor; -1 for the mean over all residues"),
)

NEAREST_PAIR = 6  # residues nearer along the chain are no pair
ATTENTION_KEYS = _schema(
    "attention maps of every head of a block at a pair of residues, symmetrised, less their average product; layers "
    "are blocks, and the pairs i < j of a protein stand together, by i, then j",
    **VIEW_KEYS,
    i=(_i32, "0-based position of the first residue"),
    j=(_i32, "position of the second one, at least NEAREST_PAIR further"),
)

# The numbers of a moments vector, in this order, float32. h is the stream entering the block (layer k - 1), mid the
# stream the MLP reads before its norm; state values belong to layer k. At layer 0 the block values are NaN.
MOMENTS = (
    "hh",  # |h_k|^2
    "sum_h",  # sum of the coordinates of h_k
    "max_h2",  # largest squared coordinate of h_k
    "aa",  # |a_k|^2
    "mm",  # |m_k|^2
    "gg",  # |g_k|^2, geometric attention update; NaN where the block has none
    "uu",  # |u_k|^2
    "ha",  # <h_{k-1}, a_k>
    "hu",  # <h_{k-1}, u_k>
    "am",  # <a_k, m_k>
    "mid_mid",  # |mid_k|^2; mid = h + a (+ g) in sequential blocks, h in parallel ones
    "mid_m",  # <mid_k, m_k>
    "mid_g",  # <h + a, g>; NaN where the block has none
    "ga_ga",  # |h + a|^2, the stream the geometric branch reads; NaN where the block has none
    "h_next",  # <h_{k-1}, h_k>
)


# ----------------------------------------------------------------------------------------------------------------
# Writing and reading


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; on success it is renamed to ``path``, on any error it is removed.

    Raises:
        OSError: besides what the caller raises: no room for the file, which is named.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp.{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in NO_ROOM and error.filename is None:  # Arrow does not say which file
            what = f"{path}: cannot be written ({os.strerror(error.errno)}); make room and run again"
            raise OSError(error.errno, what) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(folder: str | Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside ``folder``; on success it takes its place, on any error it is removed."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f"{folder.name}.tmp.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if folder.exists():
            shutil.rmtree(folder)  # a folder cannot be renamed onto one that holds files
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(text: str, path: str | Path) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def as_table(columns: Mapping[str, object], schema: pa.Schema) -> pa.Table:
    """Return an Arrow table of exactly the columns of ``schema``; a scalar is repeated over the rows.

    Raises:
        TableError: a column is missing, unknown, of another length, or cannot be cast without loss.
    """
    missing, unknown = set(schema.names) - set(columns), set(columns) - set(schema.names)
    if missing or unknown:
        raise TableError(f"columns missing: {sorted(missing)}, unknown: {sorted(unknown)}; expected {schema.names}")
    lengths = {len(v) for v in columns.values() if not np.isscalar(v)}
    if len(lengths) > 1:
        raise TableError(f"columns of different lengths: {sorted(lengths)}")
    n = lengths.pop() if lengths else 1
    arrays = []
    for field in schema:
        values = columns[field.name]
        if np.isscalar(values):
            values = pa.repeat(pa.scalar(values), n)
        try:
            array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
            if isinstance(array, pa.ChunkedArray):
                array = array.combine_chunks()
            if array.type != field.type:
                array = _cast(array, field.type)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise TableError(f"column {field.name!r} is not {field.type}: {error}") from error
        if array.null_count:
            raise TableError(f"column {field.name!r} holds {array.null_count} nulls; use NaN or -1 as its schema says")
        arrays.append(array)
    return pa.table(arrays, schema=schema)


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        if pa.types.is_dictionary(array.type):
            array = array.cast(array.type.value_type)
        encoded = array.cast(pa.string()).dictionary_encode()
        return pa.DictionaryArray.from_arrays(encoded.indices.cast(pa.int32()), encoded.dictionary)
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if pa.types.is_floating(array.type) and pa.types.is_floating(kind):
        return array.cast(kind, safe=False)  # rounding to float32 is meant
    return array.cast(kind)


def write_table(columns: Mapping[str, object] | pa.Table, schema: pa.Schema, path: str | Path, **metadata: str) -> int:
    """Write one ordinary table (zstd Parquet) whole or not at all; return its number of rows."""
    if isinstance(columns, pa.Table):
        columns = {name: columns.column(name) for name in columns.column_names}
    table = as_table(columns, schema)
    table = table.replace_schema_metadata({**(schema.metadata or {}), **{k: str(v) for k, v in metadata.items()}})
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
    return table.num_rows


class TableWriter:
    """Write one ordinary table (zstd Parquet) part by part; nothing stands under the final name until the end.

    For tables that are larger than what a stage wants to hold. Use as a context manager: an exception removes the
    temporary file. ``iterate_table`` reads the parts back.
    """

    def __init__(self, path: str | Path, schema: pa.Schema, **metadata: str):
        self.path = Path(path)
        self.schema = schema.with_metadata({**(schema.metadata or {}), **{k: str(v) for k, v in metadata.items()}})
        self.n_rows = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "TableWriter":
        temporary = self._stack.enter_context(replacing(self.path))
        self._writer = pq.ParquetWriter(
            temporary,
            self.schema,
            compression="zstd",
            # Counts and names repeat; a dictionary of floating sums would be built only to be thrown away.
            use_dictionary=[f.name for f in self.schema if not pa.types.is_float64(f.type)],
            write_page_checksum=True,
        )
        return self

    def append(self, columns: Mapping[str, object] | pa.Table) -> None:
        """Add rows, which ``iterate_table`` will give back together: columns as in ``as_table``."""
        if isinstance(columns, pa.Table):
            columns = {name: columns.column(name) for name in columns.column_names}
        table = as_table(columns, self.schema)
        if table.num_rows:
            self._writer.write_table(table, row_group_size=table.num_rows)
            self.n_rows += table.num_rows

    def note(self, **metadata: str) -> None:
        """Add metadata that is known only after rows were written; ``read_metadata`` gives it back."""
        self._writer.add_key_value_metadata({k: str(v) for k, v in metadata.items()})

    def __exit__(self, kind, value, trace) -> None:
        try:
            self._writer.close()
        except BaseException as error:
            self._stack.__exit__(type(error), error, error.__traceback__)
            raise
        self._stack.__exit__(kind, value, trace)


def read_table(path: str | Path, schema: pa.Schema) -> pa.Table:
    """Return one ordinary table, checked against its schema, dictionary columns as plain strings kept encoded.

    Raises:
        TableError: the file is missing, truncated, corrupt, or has other columns or types.
    """
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(path, error) from error
    _check_columns(path, table.schema, schema)
    return table


def _unreadable(path: str | Path, error: Exception) -> TableError:
    if not Path(path).exists():
        return TableError(f"{path}: not a readable Parquet file (no such file); run the stage that writes it first")
    return TableError(f"{path}: not a readable Parquet file ({error}); delete it and run again")


def iterate_table(
    path: str | Path,
    schema: pa.Schema,
    *,
    columns: Sequence[str] | None = None,
    parts: Sequence[int] | None = None,
) -> Iterator[pa.Table]:
    """Yield one ordinary table in parts (its row groups), in order, checked as by ``read_table``.

    Args:
        columns: the columns to read, all by default.
        parts: numbers of the parts to read, all by default.
    """
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        _check_columns(path, file.schema_arrow, schema)
        for part in range(file.num_row_groups) if parts is None else parts:
            yield file.read_row_group(part, columns=schema.names if columns is None else list(columns))
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(path, error) from error


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return what was written beside the columns of an ordinary table: the keywords of its writer.

    Raises:
        TableError: the file is missing, truncated or not a Parquet file.
    """
    try:
        metadata = pq.read_metadata(path).metadata or {}
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(path, error) from error
    return {k.decode(): v.decode() for k, v in metadata.items() if not k.startswith(b"ARROW:")}


def _check_columns(path: str | Path, found: pa.Schema, schema: pa.Schema) -> None:
    def plain(kind: pa.DataType) -> pa.DataType:
        return kind.value_type if pa.types.is_dictionary(kind) else kind

    try:
        names = found.names
    except UnicodeDecodeError as error:  # damaged bytes where a name stood
        raise _unreadable(path, error) from error
    for field in schema:
        if field.name not in names:
            raise TableError(
                f"{path}: no column {field.name!r}; it has {names}. Written by another version? Give the table "
                "of that kind, or run the stage that writes it again"
            )
        kind = found.field(field.name).type
        if plain(kind) != plain(field.type):
            raise TableError(f"{path}: column {field.name!r} is {kind}, expected {field.type}")


class VectorWriter:
    """Write a vector table batch by batch; nothing stands under the final name until ``close``.

    Args:
        path: the Parquet file.
        keys: schema of the key columns (MOMENT_KEYS, LENS_KEYS, STREAM_KEYS).
        layers: layer numbers, one vector column each.
        width: numbers per vector.
        dtype: numpy dtype of the stored numbers, e.g. "float16".
        metadata: what is constant over the file (JSON values).
        names: meaning of the ``width`` numbers, if they have names.

    Use as a context manager: an exception removes the temporary file.
    """

    def __init__(
        self,
        path: str | Path,
        keys: pa.Schema,
        layers: Sequence[int],
        width: int,
        dtype: str,
        metadata: Mapping[str, object] | None = None,
        names: Sequence[str] | None = None,
        rows_per_group: int = 512,
    ):
        self.path, self.keys, self.layers, self.width = Path(path), keys, list(layers), width
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.rows_per_group = rows_per_group
        binary = pa.binary(width * self.dtype.itemsize)
        fields = [
            pa.field(f"layer_{layer}", binary, nullable=False, metadata={"layer": str(layer)}) for layer in self.layers
        ]
        about = {
            "layers": self.layers,
            "width": width,
            "dtype": self.dtype.str,
            "names": list(names) if names else None,
            "constants": dict(metadata or {}),
        }
        self.schema = pa.schema(list(keys) + fields, metadata={**(keys.metadata or {}), "vectors": json.dumps(about)})
        self.n_rows = 0
        self._pending: list[pa.Table] = []
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "VectorWriter":
        temporary = self._stack.enter_context(replacing(self.path))
        self._writer = pq.ParquetWriter(
            temporary,
            self.schema,
            compression={name: "zstd" if name in self.keys.names else "none" for name in self.schema.names},
            use_dictionary=[f.name for f in self.keys if pa.types.is_dictionary(f.type)],
            write_statistics=list(self.keys.names),
            write_page_checksum=True,
        )
        return self

    def append(self, keys: Mapping[str, object], vectors: np.ndarray) -> None:
        """Add the rows of whole sequences: ``vectors`` is (n_layers, n_rows, width), of any float type.

        Raises:
            TableError: wrong shape, or a stored number would overflow the dtype or is infinite.
        """
        n = vectors.shape[1]
        if vectors.shape != (len(self.layers), n, self.width):
            raise TableError(f"vectors {vectors.shape}, expected ({len(self.layers)}, rows, {self.width})")
        if n == 0:
            return
        with np.errstate(over="ignore"):  # found just below
            stored = np.ascontiguousarray(vectors, dtype=self.dtype)
        if np.isinf(stored).any():
            raise TableError(
                f"{self.path}: a value is infinite or too large for {self.dtype.name}; "
                "store a wider dtype (cache.dtype)"
            )
        columns = as_table(keys, self.keys)
        if columns.num_rows != n:
            raise TableError(f"{columns.num_rows} key rows for {n} vectors")
        binary = self.schema.field(len(self.keys)).type
        arrays = [
            pa.FixedSizeBinaryArray.from_buffers(binary, n, [None, pa.py_buffer(stored[i])])
            for i in range(len(self.layers))
        ]
        self._pending.append(pa.table(list(columns.itercolumns()) + arrays, schema=self.schema))
        self.n_rows += n
        if sum(t.num_rows for t in self._pending) >= self.rows_per_group:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            table = pa.concat_tables(self._pending).unify_dictionaries().combine_chunks()
            self._writer.write_table(table, row_group_size=table.num_rows)
            self._pending = []

    def __exit__(self, kind, value, trace) -> None:
        try:
            if kind is None:
                self._flush()
            self._writer.close()
        except BaseException as error:
            self._stack.__exit__(type(error), error, error.__traceback__)
            raise
        self._stack.__exit__(kind, value, trace)


class VectorTable:
    """Read a vector table: keys as an Arrow table, one layer at a time as a numpy array.

    Attributes: layers, width, dtype, names, constants (what was constant over the file), n_rows.
    """

    def __init__(self, path: str | Path, keys: pa.Schema):
        self.path = Path(path)
        try:
            # Without pre-buffering: one column of a local file comes faster without the extra copy.
            self._file = pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False)
        except (OSError, pa.ArrowInvalid) as error:
            raise _unreadable(path, error) from error
        found = self._file.schema_arrow
        about = (found.metadata or {}).get(b"vectors")
        if about is None:
            raise TableError(f"{path}: not a vector table; expected one that activations.extract writes")
        _check_columns(path, found, keys)
        about = json.loads(about)
        self.keys_schema = keys
        self.layers, self.width, self.names = about["layers"], about["width"], about["names"]
        self.dtype, self.constants = np.dtype(about["dtype"]), about["constants"]
        self.n_rows = self._file.metadata.num_rows

    def keys(self) -> pa.Table:
        """Return the key columns, a row per vector."""
        return self._read(self.keys_schema.names)

    def layer(self, layer: int) -> np.ndarray:
        """Return the vectors of one layer, (n_rows, width), in the stored dtype, read-only."""
        if layer not in self.layers:
            raise TableError(f"{self.path}: no layer {layer}; it has {self.layers}")
        column = self._read([f"layer_{layer}"]).column(0)
        parts = [
            np.frombuffer(chunk.buffers()[1], dtype=self.dtype).reshape(-1, self.width)[
                chunk.offset : chunk.offset + len(chunk)
            ]
            for chunk in column.chunks
            if len(chunk)
        ]
        if not parts:
            return np.empty((0, self.width), self.dtype)
        vectors = parts[0] if len(parts) == 1 else np.concatenate(parts)
        vectors.flags.writeable = False
        return vectors

    def _read(self, columns: list[str]) -> pa.Table:
        try:
            return self._file.read(columns=columns)
        except (OSError, pa.ArrowInvalid) as error:
            raise TableError(f"{self.path}: corrupt ({error}); delete it and run again") from error
