"""Download, parse, filter, sample, cluster and shard protein sequences. No torch."""
