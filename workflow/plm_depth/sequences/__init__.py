"""Download, parse, filter, sample, cluster and shard protein sequences. No torch."""

# Formats of assays, and of each the keys that it needs and those that it may have; words only, to check a config by.
ASSAY_FORMATS = {
    "proteingym": (frozenset({"reference", "variants"}), frozenset({"ids"})),
    "table": (
        frozenset({"assay_id", "uniprot_id", "category", "variants", "wildtypes", "wildtype"}),
        frozenset({"mutant", "score"}),
    ),
}
ASSAY_FILES = ("reference", "variants", "wildtypes")  # the keys among them that name files


class SourceError(ValueError):
    """Input that a stage of this room cannot use; the text says what was expected, what came, where, and the mend."""
