"""Dynamic thresholding of a clean estimate in pixel space."""

from optimize.kernels.dynamic_threshold.schema import dynamic_threshold as dynamic_threshold
