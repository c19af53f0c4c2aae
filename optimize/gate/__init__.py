"""Perf gates: is a bundle slower, larger or worse than the one before it."""
