"""Rows of each sample, replaced at that sample's own index."""

from optimize.kernels.scatter_rows.schema import scatter_rows as scatter_rows
