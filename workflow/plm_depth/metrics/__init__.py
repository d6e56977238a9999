"""Formulas, per-sequence tables and corpus statistics; numpy only, no model.

    moments ----> contributions ----+
    lens logits --> lens ----------+--> profile, summary

Per-sequence tables keep ``n``, ``sum`` and ``sumsq`` in float64, so that every corpus number is derived and any
sharding merges exactly.

``contributions`` (table CONTRIB_SEQ), quantities by name, after Csordas, Manning and Potts 2025 (arXiv 2505.13898):

    states, layers 0..n_blocks      norm_h       |h_k|
                                    var_h        population variance of the coordinates of h_k
                                    massive      share of |h_k|^2 in its largest coordinate
    blocks, layers 1..n_blocks      norm_a, norm_m, norm_g, norm_u      |a_k|, |m_k|, |g_k|, |u_k|
                                    norm_hhat    length of the stream that the MLP reads
                                    rel_a, rel_u                        |a_k|, |u_k| / |h_{k-1}|
                                    rel_m        |m_k| / norm_hhat
                                    rel_g        |g_k| / |h_{k-1} + a_k|
                                    cos_a, cos_u                        cosines of a_k, u_k with h_{k-1}
                                    cos_m        cosine of m_k with the stream that the MLP reads
                                    cos_io       cosine of h_{k-1} with h_k
                                    cos_am       cosine of a_k with m_k

norm_g and rel_g stand only where a block has a geometric attention branch.

``lens`` (LENS_SEQ), p_k the read-out of layer k, p_n that of the last layer, layers 0..n_blocks, once over the
canonical residues (vocab aa20) and once over all real tokens (full):

    kl_lf, kl_fl, js     KL(p_k || p_n), KL(p_n || p_k), Jensen-Shannon divergence; nats
    ov1, ov5             shared part of the 1 and 5 most probable tokens
    entropy, nll         of p_k, and of the true residue under it; nats
    p_true, rank_true, acc1      of the true residue; rank from 1
    settled_0.1, settled_0.5     1 where kl_lf stays at or below that many nats from this layer on
    settled_top1         1 where the most probable token is the final one from this layer on
    settle_0.1, settle_0.5, settle_top1      the first such layer (rows of layer -1)

The mean of ``settled_x`` over positions is the distribution function of ``settle_x``. ``rank_hist`` counts ranks 1..20;
of all real tokens a residue may rank lower, and such positions are in ``n`` only.

``profile`` (PROFILE) holds corpus values and intervals of all of these, and the overlaps less what chance gives,
(O - k/V) / (1 - k/V) for k of V tokens, as ``ov1_cc`` and ``ov5_cc``.

``summary`` (SUMMARY) holds, over residues and the aa20 lens, on relative depth, as ``stat`` (``profile``; ``param``):

    depth_score (rel_u | norm_u)         centre of mass of a block profile, (block - 1/2) / n_blocks
    kl_depth (kl_0 | kl_max; fraction)   first layer from which kl_lf stays at or below that fraction of its value at
                                         layer 0, or of its largest value, / n_blocks
    kl_depth_first (the same)            first layer at or below it, even if a later one rises again
    overlap_depth (ov5_cc; threshold)    first layer from which the overlap stays at or above the threshold
    cosine_depth (cos)                   (block - 1/2) / n_blocks of the last block where the mean of cos_a, cos_m and
                                         cos_u turns from below zero to zero or above
    kl_area (kl_lf)                      integral of kl_lf / kl_lf of layer 0 over relative depth, trapezoid
    overlap_area (ov5 | ov5_cc)          integral of the overlap
    settling (kl_lf; nats | top1)        median settling layer / n_blocks, every protein counting once
    growth_beta, growth_gamma (var_h)    exponents of ln v = c + beta ln k and of ln v = c + gamma k, layers k >= 2
    growth_delta_aicc (var_h)            AICc of the power law less that of the exponential; below zero: power law

Further tables of this schema stand beside it, by other stages: ``metrics.ablation`` writes what is left of the
prediction when blocks go (retention_depth, removable_fraction, exit_area; n80, participation, depth_score of losses).
"""
