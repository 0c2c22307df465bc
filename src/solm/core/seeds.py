"""Seeds of runs that draw from several generators."""

MOST_SEED = (1 << 32) - 1
"""The largest seed of a run. Every part of it derives seeds of its own from this one, of at most 64 bits."""
