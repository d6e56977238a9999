"""Counter-based random numbers: every choice is keyed by what it is for, never by order, batch or shard."""

import hashlib

import numpy as np


def key_of(*parts: object) -> int:
    """Return the 128-bit integer that the given parts (seed, purpose, sequence_id, draw, ...) hash to.

    Parts are joined by a unit separator, so ("a", "bc") and ("ab", "c") differ.
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "big")


def generator(*parts: object) -> np.random.Generator:
    """Return a Philox generator keyed by the given parts; equal parts give equal numbers on every machine."""
    return np.random.Generator(np.random.Philox(key=key_of(*parts)))
