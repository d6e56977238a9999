"""One adapter per family over the modules of a well-kept library: tokens, residual stream, updates, read-out."""
