"""Do the tests see a mistake: faults planted one at a time in a copy of the package, and the tests run on it.

Every fault is a replacement of text that has to occur exactly once, so that the list cannot go stale unseen. The
tests that should see it are run with ``-x`` on the mutated copy, and the one that failed is run again on an unmutated
copy, where it has to pass. A fault that no test sees is a test that is missing. The exit status is 1 if fewer than 95 %
are seen, 2 if a fault does not apply or breaks the import, or a test fails without it.

    python benchmarks/planted_bugs.py [--only TEXT ...] [--workers 1]
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import shlex
import shutil
import sys
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import scipy.stats  # noqa: F401 - here and below, so that every process has them from the start
import torch
import xarray  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("sciddiff", "tests", "pyproject.toml", "problems", "datasets")
LEAST = 0.95


@dataclass(frozen=True)
class Fault:
    """A mistake: in ``file``, ``old`` becomes ``new``; ``tests`` are pytest's arguments."""

    what: str
    file: str
    old: str
    new: str
    tests: str


EXACT = "tests/calibration/test_mmps_exact.py"
PLANTED = "tests/calibration/test_planted.py"
GUIDED = f"{PLANTED} tests/methods/test_guided.py"
SPLIT = "tests/methods/test_splitting.py tests/calibration/test_splitting_exact.py"
PARTICLES = "tests/methods/test_particles.py"
KALMAN = "tests/methods/test_kalman.py tests/methods/test_ensemble.py"
VI = "tests/calibration/test_variational_exact.py"
FAULTS = [
    # schedules, paths and solvers
    Fault(
        "Karras: rho halved",
        "solvers/schedules.py",
        "(sigma_max ** (1 / self.rho) * (1 - u) + sigma_min ** (1 / self.rho) * u) ** self.rho",
        "(sigma_max ** (2 / self.rho) * (1 - u) + sigma_min ** (2 / self.rho) * u) ** (self.rho / 2)",
        "tests/solvers/test_schedules.py sciddiff/solvers/schedules.py",
    ),
    Fault(
        "exponential schedule: a factor of two in the exponent",
        "solvers/schedules.py",
        "sigma_max ** (1 - u) * sigma_min**u)",
        "sigma_max ** (1 - u) * sigma_min ** (2 * u))",
        "tests/solvers/test_schedules.py sciddiff/solvers/schedules.py",
    ),
    Fault(
        "VP path: B(t) without its half",
        "priors/paths.py",
        "return torch.exp(-0.5 * _integral(self, t))\n\n    def sigma(self, t: Tensor) -> Tensor:\n"
        '        """``sqrt(1 - exp(-B))``."""',
        "return torch.exp(-_integral(self, t))\n\n    def sigma(self, t: Tensor) -> Tensor:\n"
        '        """``sqrt(1 - exp(-B))``."""',
        "tests/priors/test_paths.py",
    ),
    Fault(
        "solvers: the last step, to 0, dropped",
        "solvers/base.py",
        "for i in progress(range(len(sigmas) - 1)):",
        "for i in progress(range(len(sigmas) - 2)):",
        "tests/solvers/test_solvers.py -k 'counted or gaussian_prior'",
    ),
    Fault(
        "ancestral step: sd of the fresh noise, t/s not squared",
        "solvers/stochastic.py",
        "up = self.eta * t * math.sqrt(1 - (t / s) ** 2)",
        "up = self.eta * t * math.sqrt(1 - t / s)",
        "tests/solvers/test_solvers.py tests/solvers/test_orders.py",
    ),
    Fault(
        "ancestral step: the mean keeps too much of x",
        "solvers/stochastic.py",
        "x = torch.lerp(denoise(x, s), x, down / s)",
        "x = torch.lerp(denoise(x, s), x, t / s)",
        "tests/solvers/test_solvers.py tests/solvers/test_orders.py",
    ),
    Fault(
        "predictor-corrector: a factor of two in the Langevin noise",
        "solvers/stochastic.py",
        "t * math.sqrt(-math.expm1(-2 * theta))",
        "t * math.sqrt(-math.expm1(-theta))",
        "tests/solvers/test_solvers.py tests/solvers/test_orders.py",
    ),
    Fault(
        "Heun: the slope counted twice",
        "solvers/ode.py",
        "alpha=0.5 * (1 - s / t)",
        "alpha=1 - s / t",
        "tests/solvers/test_orders.py tests/solvers/test_solvers.py",
    ),
    Fault(
        "DPM-Solver++: extrapolated twice as far",
        "solvers/ode.py",
        "1 + h / (2 * span)",
        "1 + h / span",
        "tests/solvers/test_orders.py tests/solvers/test_solvers.py",
    ),
    Fault(
        "Moments: variance for sd in the fresh noise",
        "solvers/moments.py",
        "alpha=t * math.sqrt(1 - r)",
        "alpha=t * (1 - r)",
        EXACT,
    ),
    Fault(
        "probability flow: a wrong scale of its state",
        "solvers/flow.py",
        "return w / c**2 - self.project(d) / c",
        "return w / c - self.project(d) / c",
        "tests/solvers/test_likelihood.py",
    ),
    Fault(
        "log density: the trace not counted",
        "solvers/likelihood.py",
        "flow.rank / c**2 - tr]",
        "flow.rank / c**2]",
        "tests/solvers/test_likelihood.py",
    ),
    Fault(
        "log density: the volume of the units forgotten",
        "solvers/likelihood.py",
        "return covariance.rank * math.log(first)",
        "return 0.0",
        "tests/solvers/test_likelihood.py",
    ),
    # the seam of all methods
    Fault(
        "sampling starts without E[z0 | y]",
        "methods/base.py",
        "z = z + denoise(z, sigmas[0])",
        "z = z + 0 * denoise(z, sigmas[0])",
        EXACT,
    ),
    Fault(
        "Tweedie: C missing in the covariance",
        "methods/base.py",
        "return sigma**2 * run.prior.reference.apply(jw)",
        "return sigma**2 * jw",
        f"{EXACT} -k krylov_solves",
    ),
    Fault(
        "Tweedie: sigma^2 missing in the covariance",
        "methods/base.py",
        "return sigma**2 * run.prior.reference.apply(jw)",
        "return run.prior.reference.apply(jw)",
        f"{EXACT} -k krylov_solves",
    ),
    Fault(
        "Tweedie: sigma for sigma^2",
        "methods/base.py",
        "return sigma**2 * run.prior.reference.apply(jw)",
        "return sigma * run.prior.reference.apply(jw)",
        f"{EXACT} -k krylov_solves",
    ),
    Fault(
        "likelihood gradient: the normalisation's scale missing",
        "methods/base.py",
        "return prior.normalisation.scale.to(gradient) * gradient",
        "return gradient",
        "tests/methods/test_guidance.py tests/calibration/test_variational_exact.py",
    ),
    Fault(
        "likelihood gradient: the mask ignored",
        "methods/base.py",
        "o.noise.score(o.y[cases], mean.detach(), None if o.mask is None else o.mask[cases])",
        "o.noise.score(o.y[cases], mean.detach(), None)",
        "tests/methods/test_guidance.py -k missing_values",
    ),
    Fault(
        "likelihood gradient: one norm over the batch",
        "methods/base.py",
        "for s in scores], 1).norm(dim=1)",
        "for s in scores], 1).norm().expand(len(z0))",
        "tests/methods/test_guidance.py tests/methods/test_conformance.py",
    ),
    Fault(
        "likelihood gradient: sign",
        "methods/base.py",
        "return prior.normalisation.scale.to(gradient) * gradient",
        "return -prior.normalisation.scale.to(gradient) * gradient",
        "tests/methods/test_guidance.py tests/calibration/test_variational_exact.py",
    ),
    Fault(
        "rows: every case sees the first observation",
        "methods/base.py",
        "index = [i % cases for i in part]",
        "index = [0 for i in part]",
        PLANTED,
    ),
    Fault(
        "rows: the draws' streams shared between cases",
        "methods/base.py",
        'Streams(self.seed, [i // cases for i in part], index, purpose="posterior")',
        'Streams(self.seed, [i // cases for i in part], None, purpose="posterior")',
        PLANTED,
    ),
    Fault(
        "sample: the seed ignored",
        "methods/base.py",
        'Streams(self.seed, [i // cases for i in part], index, purpose="posterior")',
        'Streams(0, [i // cases for i in part], index, purpose="posterior")',
        PLANTED,
    ),
    Fault(
        "linear observation: scale missing in the adjoint",
        "posterior.py",
        "return self.prior.normalisation.scale.to(v) * total",
        "return total",
        EXACT,
    ),
    Fault(
        "linear observation: the mask ignored",
        "posterior.py",
        "r = self.target[cases] - self.apply(z)\n        return r if self.mask is None else torch.where(self.mask[cases], r, 0.0)",
        "r = self.target[cases] - self.apply(z)\n        return r",
        f"{EXACT} -k missing_values",
    ),
    Fault(
        "linear observation: the prior's mean not taken off",
        "posterior.py",
        "[(o.y - o.operator.apply(mean)).flatten(1) for o in self.observations], 1",
        "[(o.y - 0 * o.operator.apply(mean)).flatten(1) for o in self.observations], 1",
        EXACT,
    ),
    Fault(
        "posterior: only the last of several observations counts",
        "posterior.py",
        "for o in self.observations]).sum(0)",
        "for o in self.observations])[-1]",
        PLANTED,
    ),
    # methods
    Fault(
        "MMPS: sign of the gain",
        "methods/mmps.py",
        "return d + self.gain(sigma, self.linear.residual(d, cases), cases)",
        "return d - self.gain(sigma, self.linear.residual(d, cases), cases)",
        EXACT,
    ),
    Fault(
        "MMPS: noise sd for its variance",
        "methods/mmps.py",
        "half @ half.T + self.linear.noise_matrix.double()",
        "half @ half.T + self.linear.noise_matrix.double() ** 0.5",
        EXACT,
    ),
    Fault(
        "MMPS: draws without the noise of their data",
        "methods/mmps.py",
        "linear.residual(z0, cases) - linear.noise_draw(streams)",
        "linear.residual(z0, cases)",
        EXACT,
    ),
    Fault(
        "MMPS guarded: the two halves not halved",
        "methods/mmps.py",
        "return 0.5 * sigma**2 * (reference.apply(jw) + jv)",
        "return sigma**2 * (reference.apply(jw) + jv)",
        f"{EXACT} -k krylov_solves",
    ),
    Fault(
        "MMPS unit: variance of the guess doubled",
        "priors/spread.py",
        "sigma**2 * variance / (variance + sigma**2)",
        "2 * sigma**2 * variance / (variance + sigma**2)",
        PLANTED,
    ),
    Fault(
        "MMPS scalar: sigma for sigma^2",
        "methods/mmps.py",
        "multiple(reference, method.gamma * sigma**2)",
        "multiple(reference, method.gamma * sigma)",
        "tests/methods/test_mmps.py -k scalar",
    ),
    Fault(
        "DPS: t/s not squared",
        "methods/guidance.py",
        "keep = (t / s) ** 2",
        "keep = t / s",
        "tests/methods/test_guidance.py tests/calibration/test_guidance_bias.py",
    ),
    Fault(
        "DPS: no fresh noise",
        "methods/guidance.py",
        "z = z + t * math.sqrt(1 - keep) * prior.noise(rows.streams)",
        "z = z + 0 * prior.noise(rows.streams)",
        "tests/methods/test_guidance.py tests/calibration/test_guidance_bias.py",
    ),
    Fault(
        "DPS: the step's coordinate taken at one end only",
        "methods/guidance.py",
        "return math.sqrt((1 + s**2) * (1 + t**2)) if",
        "return math.sqrt(1 + s**2) if",
        "tests/methods/test_guidance.py tests/calibration/test_guidance_bias.py",
    ),
    Fault(
        "DPS: one norm over the batch",
        "methods/guidance.py",
        "length = v.flatten(1).norm(dim=1)",
        "length = v.flatten(1).norm().expand(len(v))",
        "tests/methods/test_guidance.py tests/methods/test_conformance.py",
    ),
    Fault(
        "LGD: a factor of two in the gradient",
        "methods/guidance.py",
        "return run.prior.normalisation.scale.to(total) * total",
        "return 2 * run.prior.normalisation.scale.to(total) * total",
        GUIDED,
    ),
    Fault(
        "PiGDM: fitted covariance in place of the pulled-back one",
        "methods/pigdm.py",
        "d, covariance = tweedie(run, z, sigma, once=True)",
        "d, covariance = run.denoise(z, sigma), inside(sigma).apply",
        GUIDED,
    ),
    Fault(
        "local Gaussian: the Jacobian of the noise's mean squared",
        "methods/linearised.py",
        "return (self.slope * self.o.operator.apply(w)).flatten(1)",
        "return (self.slope**2 * self.o.operator.apply(w)).flatten(1)",
        GUIDED,
    ),
    Fault(
        "local Gaussian: sd for variance of the noise",
        "methods/linearised.py",
        "self.variance = torch.where(self.seen, variance, 1.0)\n\n    def place",
        "self.variance = torch.where(self.seen, variance.sqrt(), 1.0)\n\n    def place",
        GUIDED,
    ),
    Fault(
        "Kalman: data not perturbed",
        "methods/analysis.py",
        "return self.seen.y + math.sqrt(self.times) * self.error - self.g_mean - self.g_off",
        "return self.seen.y - self.g_mean - self.g_off",
        KALMAN,
    ),
    Fault(
        "Kalman: data counted at every one of several analyses",
        "methods/kalman.py",
        "z = self.move(forecast, self.iterations, alive, z)",
        "z = self.move(forecast, 1, alive, z)",
        KALMAN,
    ),
    Fault(
        "square-root analysis: the inverse in place of its root",
        "methods/analysis.py",
        "shrink = torch.rsqrt(1 + s**2) - 1",
        "shrink = 1 / (1 + s**2) - 1",
        KALMAN,
    ),
    Fault(
        "Gaspari-Cohn: twice the radius",
        "methods/analysis.py",
        "r = 2 * np.asarray(distance, dtype=np.float64)",
        "r = np.asarray(distance, dtype=np.float64)",
        KALMAN,
    ),
    Fault(
        "tempered inversion: R times the step in place of over it",
        "methods/kalman.py",
        "self.move(forecast, 1 / step, alive, z)",
        "self.move(forecast, step, alive, z)",
        KALMAN,
    ),
    Fault(
        "Kalman diffusion: no fresh noise",
        "methods/enkg.py",
        "z = z + t * math.sqrt(1 - r) * prior.noise(noises)",
        "z = z + 0 * prior.noise(noises)",
        KALMAN,
    ),
    Fault(
        "GaussianVI: the prior's score without 1/sigma^2",
        "methods/variational.py",
        "self.run.denoise(z, self.sigma) - z) / self.sigma**2",
        "self.run.denoise(z, self.sigma) - z) / self.sigma",
        VI,
    ),
    Fault(
        "GaussianVI: variance for its root in the draws",
        "methods/variational.py",
        "root = power(self.covariance, 0.5) - torch.eye",
        "root = power(self.covariance, 1.0) - torch.eye",
        VI,
    ),
    Fault(
        "REDDiff: the prior's pull without 1/sigma^2",
        "methods/reddiff.py",
        "return away / sigma**2 - likelihood_gradient",
        "return away / sigma - likelihood_gradient",
        "tests/methods/test_reddiff.py",
    ),
    Fault(
        "split Gibbs: coupling rho for rho^2",
        "methods/likelihood_steps.py",
        "return lambda sigma: multiple(reference, sigma**2)",
        "return lambda sigma: multiple(reference, sigma)",
        SPLIT,
    ),
    Fault(
        "likelihood step: no noise in its data",
        "methods/likelihood_steps.py",
        "e = self.tempering * linear.noise_draw(rows.streams)",
        "e = 0 * linear.noise_draw(rows.streams)",
        SPLIT,
    ),
    Fault(
        "likelihood step: tempering not squared",
        "methods/likelihood_steps.py",
        "noise = self.tempering**2 * self.linear.noise_matrix.double()",
        "noise = self.tempering * self.linear.noise_matrix.double()",
        SPLIT,
    ),
    Fault(
        "Hamiltonian step: the kicks' energy not counted",
        "methods/likelihood_steps.py",
        "taken = uniform[:, 1].log() < there - level - heat",
        "taken = uniform[:, 1].log() < there - level",
        SPLIT,
    ),
    Fault(
        "DAPS: noise of the wrong level",
        "methods/splitting.py",
        "x = z + sigmas[i + 1] * prior.noise(rows.streams)",
        "x = z + sigmas[i] * prior.noise(rows.streams)",
        SPLIT,
    ),
    Fault(
        "DiffPIR: sigma for sigma^2 beside the data",
        "methods/transitions.py",
        "multiple(reference, sigma**2 / self.lam)",
        "multiple(reference, sigma / self.lam)",
        "tests/methods/test_transitions.py",
    ),
    Fault(
        "DDRM: the datum's noise added to the level's and not taken off",
        "methods/transitions.py",
        "spread = (t**2 - (self.eta_b * tau) ** 2).clamp(min=0).sqrt()",
        "spread = (t**2 + (self.eta_b * tau) ** 2).clamp(min=0).sqrt()",
        "tests/methods/test_transitions.py",
    ),
    Fault(
        "DDNM: wrong level of the fresh noise",
        "methods/transitions.py",
        "width = t * math.sqrt(1 - r)",
        "width = s * math.sqrt(1 - r)",
        "tests/methods/test_transitions.py",
    ),
    Fault(
        "RePaint: going up without the difference of squares",
        "methods/transitions.py",
        "z = z + math.sqrt(t**2 - s**2) * prior.noise(rows.streams)",
        "z = z + (t - s) * prior.noise(rows.streams)",
        f"{PLANTED} tests/methods/test_transitions.py",
    ),
    Fault(
        "modes: C for its root",
        "methods/transitions.py",
        "half = self.reference.sqrt_adjoint(self.linear.matrix()).flatten(1).double()",
        "half = self.reference.apply(self.linear.matrix()).flatten(1).double()",
        "tests/methods/test_transitions.py",
    ),
    Fault(
        "particles: the weights dropped",
        "methods/particles.py",
        "self.log_weights = self.log_weights + gain.cpu()",
        "self.log_weights = self.log_weights + 0 * gain.cpu()",
        PARTICLES,
    ),
    Fault(
        "particles: weights kept when resampled",
        "methods/particles.py",
        "self.log_weights = torch.zeros_like(self.log_weights)",
        "self.log_weights = 1 * self.log_weights",
        PARTICLES,
    ),
    Fault(
        "particles: looks not resampled with their states",
        "methods/particles.py",
        "z, look = z[rows], look.take(rows)",
        "z, look = z[rows], look",
        PARTICLES,
    ),
    Fault(
        "particles: the final likelihood left out",
        "methods/particles.py",
        "if t > 0 else twist.observed.log_prob(fresh)",
        "if t > 0 else 0 * twist.observed.log_prob(fresh)",
        PARTICLES,
    ),
    Fault(
        "particles: evidence without the number of particles",
        "methods/particles.py",
        "float(self.log_weights.logsumexp(0)) - math.log(self.size)",
        "float(self.log_weights.logsumexp(0))",
        PARTICLES,
    ),
    Fault(
        "TDS: the proposal's density without its half",
        "methods/twists.py",
        "gain = 0.5 * (normals.square().sum(1) - (step / root).square().sum(1))",
        "gain = normals.square().sum(1) - (step / root).square().sum(1)",
        PARTICLES,
    ),
    Fault(
        "MCGDiff: t for t^2 in the twist",
        "methods/twists.py",
        "level, both = self._factor(data, t**2), self._factor(data, t**2 + v)",
        "level, both = self._factor(data, t), self._factor(data, t + v)",
        PARTICLES,
    ),
    Fault(
        "twist: no noise in the data of Matheron's rule",
        "methods/twists.py",
        "g = _solve(b.factor, b.residual - _times(b.directions, u) - noise)",
        "g = _solve(b.factor, b.residual - _times(b.directions, u))",
        PARTICLES,
    ),
    Fault(
        "twist: log determinant counted twice",
        "methods/twists.py",
        "return -0.5 * white.square().sum(1) - factor.diagonal(dim1=1, dim2=2).log().sum(1)",
        "return -0.5 * white.square().sum(1) - 2 * factor.diagonal(dim1=1, dim2=2).log().sum(1)",
        PARTICLES,
    ),
    Fault(
        "MixtureVI: the prior's density left out of the weights",
        "methods/variational.py",
        "return log_p + log_l + 0.5 * (energy",
        "return 0 * log_p + log_l + 0.5 * (energy",
        "tests/methods/test_mixture_vi.py",
    ),
    Fault(
        "MixtureVI: log determinant without its half",
        "methods/mixture_vi.py",
        "torch.linalg.slogdet(cov).logabsdet - (u**2).sum(-1)",
        "2 * torch.linalg.slogdet(cov).logabsdet - (u**2).sum(-1)",
        "tests/methods/test_mixture_vi.py",
    ),
    Fault(
        "annealed paths: the ends counted twice in the weights",
        "methods/annealed.py",
        "ends = 0.5 * ((u[0] ** 2).sum(1) - (u[-1] ** 2).sum(1))",
        "ends = (u[0] ** 2).sum(1) - (u[-1] ** 2).sum(1)",
        "tests/methods/test_annealed.py",
    ),
    Fault(
        "search: variance for sd of the fresh noise",
        "methods/search.py",
        "z = z + t * math.sqrt(1 - (t / s) ** 2) * prior.noise(rows.streams)",
        "z = z + t * (1 - (t / s) ** 2) * prior.noise(rows.streams)",
        PLANTED,
    ),
    Fault(
        "noise search: neighbours that are too short",
        "methods/search.py",
        "keep, fresh = math.sqrt(1 - self.radius**2), self._white",
        "keep, fresh = 1 - self.radius, self._white",
        "tests/calibration/test_search_exact.py tests/methods/test_search.py",
    ),
    Fault(
        "tree: variance for sd of the fresh noise",
        "methods/tree.py",
        "t * math.sqrt(1 - r) * prior.reference.sqrt(outer)",
        "t * (1 - r) * prior.reference.sqrt(outer)",
        PLANTED,
    ),
    # priors and covariances
    Fault(
        "covariance: eigenvalues for their roots",
        "covariance/kinds.py",
        "return self.basis.synthesis(self.eigenvalues.to(z).sqrt() * z)",
        "return self.basis.synthesis(self.eigenvalues.to(z) * z)",
        "tests/test_covariance.py",
    ),
    Fault(
        "covariance: the root of a sparse precision transposed",
        "covariance/kinds.py",
        "return self._rows(z, self._colour, self._whiten)",
        "return self._rows(z, self._whiten, self._colour)",
        "tests/test_covariance.py",
    ),
    Fault(
        "Gaussian denoising covariance: sigma for sigma^2",
        "covariance/pairs.py",
        "return _Scaled(self, sigma**2 * _ratio(",
        "return _Scaled(self, sigma * _ratio(",
        "tests/test_covariance.py",
    ),
    Fault(
        "Gaussian denoiser on a graph: the size of C forgotten",
        "covariance/pairs.py",
        "self.prior.matrix + eye / (variance * self.variance)",
        "self.prior.matrix + eye / variance",
        "tests/test_covariance.py",
    ),
    Fault(
        "mixture: weights forgotten in the responsibilities",
        "priors/mixture.py",
        "return density + self.weights[members].to(offset).log()",
        "return density",
        "tests/priors/test_mixture.py",
    ),
    Fault(
        "empirical prior: a factor of two in the weights",
        "priors/empirical.py",
        "(self._whiten(z) @ points.T - 0.5 * points.square().sum(1)) / total.to(points)",
        "(2 * self._whiten(z) @ points.T - points.square().sum(1)) / total.to(points)",
        "tests/priors/test_empirical.py",
    ),
    Fault(
        "networks: score for C score",
        "priors/neural.py",
        "out = self.reference.apply(out)",
        "out = 1 * out",
        "tests/priors/test_neural.py tests/priors/test_paths.py",
    ),
    Fault(
        "training: the weight of a level not squared",
        "training/objective.py",
        "preconditioning.c_out(sigma) ** -2",
        "preconditioning.c_out(sigma) ** -1",
        "tests/training/test_trainer.py",
    ),
    # noises
    Fault(
        "Gaussian log-likelihood: its half missing",
        "noise/gaussian.py",
        "-0.5 * ((y - mean) / sd) ** 2",
        "-(((y - mean) / sd) ** 2)",
        "tests/test_noise.py",
    ),
    Fault(
        "Gaussian noise: sd for variance",
        "noise/gaussian.py",
        "white(shape, float(self.sd) ** 2)",
        "white(shape, float(self.sd))",
        "tests/test_noise.py",
    ),
    Fault(
        "noises: missing values counted",
        "noise/base.py",
        "return (terms if mask is None else torch.where(mask, terms, 0.0)).flatten(1).sum(1)",
        "return terms.flatten(1).sum(1)",
        "tests/test_noise.py",
    ),
    Fault(
        "Poisson: exposure missing in the likelihood",
        "noise/poisson.py",
        "rate = scale * mean",
        "rate = 1 * mean",
        "tests/test_noise.py",
    ),
    Fault(
        "Poisson: exposure missing in the draws",
        "noise/poisson.py",
        "rate = mean * scale",
        "rate = mean * 1",
        "tests/test_noise.py",
    ),
    Fault(
        "Laplace: a factor of two in the scale",
        "noise/heavy.py",
        "return -(y - mean).abs() / scale",
        "return -(y - mean).abs() / (2 * scale)",
        "tests/test_noise.py",
    ),
    Fault(
        "Student's t: (df + 1)/2 without its half",
        "noise/heavy.py",
        "0.5 * (self.df + 1) * torch.log1p",
        "(self.df + 1) * torch.log1p",
        "tests/test_noise.py",
    ),
    Fault(
        "events: the blur's sd squared",
        "noise/events.py",
        "u = sign * (m - self.threshold.to(m)) / s\n",
        "u = sign * (m - self.threshold.to(m)) / s**2\n",
        "tests/methods/test_events.py",
    ),
    # operators
    Fault(
        "blur: the adjoint not flipped",
        "operators/imaging.py",
        "flipped = self.kernel.flip(tuple(range(self.kernel.ndim))).to(y)",
        "flipped = self.kernel.to(y)",
        "tests/operators/test_operator_contract.py tests/operators/test_imaging.py",
    ),
    Fault(
        "block means: the adjoint scaled",
        "operators/imaging.py",
        "return y / math.prod(self.factors)",
        "return y",
        "tests/operators/test_operator_contract.py tests/operators/test_imaging.py",
    ),
    Fault(
        "sampling: the adjoint without its weights",
        "operators/sampling.py",
        "terms = terms * self.weight.to(y)",
        "terms = terms * 1.0",
        "tests/operators/test_operator_contract.py tests/operators/test_sampling.py",
    ),
    # randomness and diagnostics
    Fault(
        "streams: the case ignored",
        "random.py",
        "counter=[0, 0, case, tag]",
        "counter=[0, 0, 0, tag]",
        "tests/test_random.py",
    ),
    Fault(
        "streams: one key for all purposes",
        "random.py",
        "counter=[0, 0, case, tag]",
        "counter=[0, 0, case, 0]",
        "tests/test_random.py",
    ),
    Fault(
        "streams: the seed ignored",
        "random.py",
        "key=np.array([key, draw]",
        "key=np.array([0, draw]",
        "tests/test_random.py",
    ),
    Fault(
        "ranks: one too high",
        "diagnostics/ranks.py",
        "return np.where(np.isnan(y), np.nan, (x < y[..., None]).sum(axis=-1))",
        "return np.where(np.isnan(y), np.nan, (x < y[..., None]).sum(axis=-1) + 1)",
        "tests/diagnostics/test_scores.py",
    ),
    Fault(
        "coverage: the edge of the interval a rank too wide",
        "diagnostics/ranks.py",
        "outer, inner = depth + 1, np.maximum(depth - 1, 0)",
        "outer, inner = depth, np.maximum(depth - 2, 0)",
        "tests/diagnostics/test_scores.py",
    ),
    Fault(
        "CRPS: M^2 for M (M - 1)",
        "diagnostics/scores.py",
        "weight = (2.0 * np.arange(1, m + 1) - m - 1) / (m * (m - 1))",
        "weight = (2.0 * np.arange(1, m + 1) - m - 1) / (m * m)",
        "tests/diagnostics/test_scores.py",
    ),
    Fault(
        "W2: the mean's shift squared twice",
        "diagnostics/distances.py",
        "return float(torch.hypot(torch.linalg.vector_norm(shift), bures))",
        "return float(torch.hypot(torch.linalg.vector_norm(shift) ** 2, bures))",
        "tests/diagnostics/test_distances.py",
    ),
    Fault(
        "SBC: ties all below",
        "diagnostics/calibration.py",
        "return np.asarray(below + np.floor(u * (equal + 1)), dtype=np.int64)",
        "return np.asarray(below + 0 * np.floor(u * (equal + 1)), dtype=np.int64)",
        "tests/diagnostics/test_calibration.py",
    ),
    Fault(
        "SBC: a one-sided statistic",
        "diagnostics/calibration.py",
        "out: Array = 2 * np.minimum(stats.binom.cdf(k, n, z), stats.binom.sf(k - 1, n, z))",
        "out: Array = 2 * stats.binom.cdf(k, n, z)",
        "tests/diagnostics/test_calibration.py",
    ),
    Fault(
        "TARP: references in other units than the draws",
        "diagnostics/calibration.py",
        "np.linalg.norm((pool.values - points) / pool.scale, axis=-1)",
        "np.linalg.norm(pool.values / pool.scale - points, axis=-1)",
        "tests/diagnostics/test_calibration.py",
    ),
    # series and data assimilation
    Fault(
        "filters: the ensembles' inflation halved in its effect",
        "assimilation/filters.py",
        "torch.lerp(x.mean(1, keepdim=True), x, factor)",
        "torch.lerp(x.mean(1, keepdim=True), x, 1 + (factor - 1) / 2)",
        "tests/assimilation/test_filters.py",
    ),
    Fault(
        "models: twice the model noise in forecasts",
        "assimilation/base.py",
        "x + covariance.sqrt(streams.normal(shape, dtype=x.dtype, device=x.device))",
        "x + 2 * covariance.sqrt(streams.normal(shape, dtype=x.dtype, device=x.device))",
        "tests/assimilation/test_filters.py",
    ),
    Fault(
        "FFBS: half of the transition's exponent",
        "assimilation/particles.py",
        "bias = (ensemble.log_weights - 0.5 * mean.square().sum(2))[:, None]",
        "bias = (ensemble.log_weights - 0.25 * mean.square().sum(2))[:, None]",
        "tests/assimilation/test_filters.py",
    ),
    Fault(
        "events: the error of a share doubled",
        "assimilation/events.py",
        "error = math.sqrt(p * (1 - p) / n) if 0 < hits < n else 1 / n",
        "error = 2 * math.sqrt(p * (1 - p) / n) if 0 < hits < n else 1 / n",
        "tests/assimilation/test_events.py",
    ),
    Fault(
        "splitting: moves that forget twice as slowly, and do not keep the law",
        "assimilation/events.py",
        "proposal = math.sqrt(1 - beta**2) * state + beta * fresh",
        "proposal = math.sqrt(1 - beta**2 / 2) * state + beta * fresh",
        "tests/assimilation/test_events.py",
    ),
    Fault(
        "Ornstein-Uhlenbeck: the memory halved",
        "covariance/markov.py",
        "torch.exp(-steps)",
        "torch.exp(-2 * steps)",
        "tests/test_covariance.py -k uhlenbeck",
    ),
    Fault(
        "rk4: the first stage twice",
        "physics/integrators.py",
        "x + dt / 6 * (k1 + 2 * (k2 + k3) + k4)",
        "x + dt / 6 * (2 * k1 + 2 * (k2 + k3))",
        "tests/physics",
    ),
]


def planted(fault: Fault | None, folder: Path) -> Path:
    """A copy of the repository's code and tests in a folder, with the fault in it.

    Raises:
        LookupError: the text to replace does not occur exactly once.
    """
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(
                source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.h5", "*.nc")
            )
        else:
            shutil.copy2(source, folder / name)
    if fault is not None:
        place = folder / "sciddiff" / fault.file
        text = place.read_text(encoding="utf-8")
        if text.count(fault.old) != 1:
            raise LookupError(f"{fault.what}: its text occurs {text.count(fault.old)} times in {fault.file}")
        place.write_text(text.replace(fault.old, fault.new), encoding="utf-8")
    return folder


def tried(tests: list[str], folder: Path) -> tuple[int, list[str]]:
    """Run tests in a copy: pytest's exit status, and the tests that failed or the last line that was printed.

    For a process of its own: what is imported here is the copy.
    """
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    printed = io.StringIO()
    options = "-q -n 0 -p no:cacheprovider --no-header --tb=no".split()
    with redirect_stdout(printed), redirect_stderr(printed):
        status = pytest.main([*options, "-m", "not slow", *tests])
    import sciddiff

    assert sciddiff.__file__ is not None and sciddiff.__file__.startswith(str(folder)), sciddiff.__file__
    lines = [line for line in printed.getvalue().splitlines() if line.strip()] or ["nothing printed"]
    failed = [line.removeprefix("FAILED ").split(" - ")[0] for line in lines if line.startswith("FAILED ")]
    return int(status), failed or lines[-1:]


def judged(fault: Fault) -> tuple[str, str, float]:
    """Whether a fault is seen: "seen", "MISSED" or "broken", by which test, and the seconds."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        status, said = tried(["-x", *shlex.split(fault.tests)], planted(fault, Path(folder)))
    return {0: "MISSED", 1: "seen"}.get(status, "broken"), said[0], time.perf_counter() - start


def unmutated(tests: list[str]) -> list[str]:
    """Which of some tests fail without any fault."""
    with tempfile.TemporaryDirectory() as folder:
        status, said = tried(tests, planted(None, Path(folder)))
    return said if status else []


def main() -> int:
    """Plant and try all faults, and print which are seen."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="*", default=[""], help="faults with such a text in their name or file"
    )
    parser.add_argument("--workers", type=int, default=1, help="faults at a time, one thread each")
    asked = parser.parse_args()
    faults = [f for f in FAULTS if any(text in f"{f.what} {f.file}" for text in asked.only)]
    for fault in faults:
        count = (ROOT / "sciddiff" / fault.file).read_text(encoding="utf-8").count(fault.old)
        if count != 1:
            print(f"STALE: {fault.what}: its text occurs {count} times in {fault.file}")
            return 2
    torch.set_num_threads(1)
    sys.dont_write_bytecode = True
    found, by = [], []
    # every fault in a process of its own, that has torch and not yet the package
    with multiprocessing.get_context("fork").Pool(asked.workers, maxtasksperchild=1) as pool:
        for fault, (verdict, said, seconds) in zip(
            faults, pool.imap(judged, faults, chunksize=1), strict=True
        ):
            found.append(verdict)
            by += [said] if verdict == "seen" else []
            print(f"{verdict:7s} {seconds:4.0f} s  {fault.what}\n{'':16s}{said[:150]}", flush=True)
        wrong = pool.apply(unmutated, (list(dict.fromkeys(by)),)) if by else []
    for test in wrong:
        print(f"fails without any fault: {test}")
    seen = found.count("seen")
    print(f"{seen} of {len(faults)} faults seen, {100 * seen / len(faults):.0f} %")
    if "broken" in found or wrong:
        return 2
    return 0 if seen >= LEAST * len(faults) else 1


if __name__ == "__main__":
    sys.exit(main())
