"""The arithmetic of one denoising step as one pass over memory."""

from optimize.kernels.solver_step.schema import solver_step as solver_step
