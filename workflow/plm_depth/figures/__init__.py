"""One figure per module; reads metric tables only and never makes a new number."""
