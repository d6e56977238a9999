"""Small checkpoints of every family trained from scratch, written in the family's official layout."""
