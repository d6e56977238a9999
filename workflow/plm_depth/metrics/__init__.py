"""Formulas from arrays to arrays, per-sequence tables and corpus statistics. No torch."""
