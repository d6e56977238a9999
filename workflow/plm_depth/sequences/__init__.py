"""Download, parse, filter, sample, cluster and shard protein sequences. No torch."""


class SourceError(ValueError):
    """Input that a stage of this room cannot use; the text says what was expected, what came, where, and the mend."""
