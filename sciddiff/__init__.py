"""Inverse problems with diffusion priors, with samplers proven against exact posteriors."""
