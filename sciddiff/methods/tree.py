"""Diffusion tree sampling: a tree of partial denoisings for every draw, that grows where the data are met.

A chain ``prod p(z_t | z_s)`` stands for the prior; its leaves are clean states. With ``v = log p(y | A(z0))``
at a leaf and the soft Bellman backup ``v(z_s) = log mean_c exp(v(c))`` over the children ``c ~ p(. | z_s)``,
``exp(v(z_s))`` tends to ``p(y | z_s)``, and a walk from the root that takes a child with probability ``~
exp(v(c))`` to a draw of the posterior.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from sciddiff.errors import InputError
from sciddiff.methods.base import Method, Rows, Run
from sciddiff.methods.kalman import are_numbers
from sciddiff.methods.search import Judge, families, picked, possible, take, whole
from sciddiff.solvers import Karras
from sciddiff.solvers.base import checked

__all__ = ["TreeSampling"]


@final
@dataclass(frozen=True)
class TreeSampling(Method):
    """Diffusion tree sampling (Jain et al. 2025, arXiv 2506.20701), for any operator and noise.

    Every draw owns a tree. A rollout walks down from the root, to a child with probability ``~ exp(v)``,
    until a node has fewer than ``width * visits^power`` children; there it makes a new child and goes on to a
    leaf by itself, is judged there, and the values of its way are backed up. The draw is the leaf of one more
    walk. What is learned at the low levels serves the choice at the high ones; more rollouts go on where
    fewer ended. Trees of different draws grow side by side.

    The law of a draw tends to the posterior under the chain as rollouts grow. It does so slowly: nodes whose
    first leaves were poor are not seen again, and the values of the others are means of few children, the
    fewer the more levels share the rollouts. For ``N(0, 1)``, ``y = 1.5`` with errors of 0.5 and 3 levels the
    mean was 0.08 posterior standard deviations off with 32 rollouts and 0.03 with 128 (+- 0.03), the standard
    deviation 7 and 9 % too large; with 5 levels 0.24 and 0.15 off, 18 and 14 %. `BestOfN` with as many
    candidates is nearer where data are loose, and `NoiseSearch` where they are precise.

    Where the prior knows its covariance the chain is exact in any number of steps; elsewhere it is the plain
    ancestral one, whose spread is too small in few steps. Data tell next to nothing of the highest level, and
    so a tree has one state there, and one leaf below each state at the lowest.

    Args:
        rollouts: leaves that are simulated, at most, for each draw.
        steps: number of noise levels above 0; ``Posterior.sample(steps=...)`` goes before.
        choice: "weighted" draws (DTS); "best" walks to the child of largest value, and returns the best leaf (DTS*).
        lam: power of the likelihood; 1 for the posterior.
        width, power: how many children a node may have by its visits.

    Raises:
        InputError: on settings out of range.
        DivergenceError: if a state becomes non-finite, ``y`` is impossible under all leaves of a tree, or an operator that may
            not fail does.

    With "weighted" and ``lam=1`` the result records ``log_evidence``, the log of the mean over the trees of their
    estimates of ``p(y)``, of every case.

    Example:
        >>> TreeSampling(rollouts=256, steps=4).lam
        1.0
    """

    takes: ClassVar[frozenset[str]] = frozenset({"steps"})
    reference: ClassVar[str] = (
        "@article{jain2025diffusion, title={Diffusion Tree Sampling: Scalable Inference-Time Alignment of Diffusion Models}, "
        "author={Jain, Vineet and Sareen, Kusha and Pedramfar, Mohammad and Ravanbakhsh, Siamak}, "
        "journal={arXiv preprint arXiv:2506.20701}, year={2025}}"
    )
    rollouts: int = 64
    steps: int = 4
    choice: str = "weighted"
    lam: float = 1.0
    width: float = 1.0
    power: float = 0.7

    def __post_init__(self) -> None:
        whole("rollouts", self.rollouts, 1)
        whole("steps", self.steps, 2)
        if self.choice not in ("weighted", "best"):
            raise InputError(
                "choice", expected="'weighted' or 'best'", got=repr(self.choice), fix="leave it out"
            )
        numbers = are_numbers(self.lam, self.width, self.power)
        if not (numbers and 0 < self.lam < math.inf and 1 <= self.width < math.inf and 0 < self.power <= 1):
            raise InputError(
                "lam",
                expected="lam > 0, width >= 1 and 0 < power <= 1",
                got=repr(self),
                fix="leave them at their defaults",
            )

    def draw(self, run: Run) -> torch.Tensor:
        """Grow the trees of some rows side by side, and walk down each."""
        steps = run.steps or self.steps
        judge, out, values, of = Judge(run), [], [], []
        run.notes["steps"] = steps
        for rows in families(run, self.rollouts * 2 * (steps + 1), "tree"):
            trees = _Trees(run, self, rows, steps)
            for i in run.bar(range(self.rollouts)):
                trees.grow(i, judge)
            out.append(trees.leaf())
            values.append(trees.values[:, 0, 0])
            of.append(rows.cases)
        if self.choice == "weighted" and self.lam == 1:
            value, case = torch.cat(values), torch.cat(of)
            each = [value[case == c] for c in range(run.posterior.cases)]
            evidence = [float(v.logsumexp(0)) - math.log(len(v)) for v in each]
            run.notes["log_evidence"] = evidence[0] if len(evidence) == 1 else evidence
        return torch.cat(out)


@final
class _Trees:
    """The trees of some rows. Rollout i makes at most one node a depth, which has the number i there.

    States at ``sigmas[l]`` have depth l: the root, of number 0, is noise and has depth 0, leaves have depth
    ``steps``.
    """

    def __init__(self, run: Run, method: TreeSampling, rows: Rows, steps: int) -> None:
        self.run, self.method, self.rows, self.depth, prior = run, method, rows, steps, run.prior
        self.sigmas = Karras().sigmas(steps, prior.sigma_min, prior.sigma_max)
        n, many = len(rows.streams), method.rollouts
        self.every = torch.arange(n, device=prior.device)
        blank = torch.zeros((1, *prior.space.shape), dtype=prior.dtype, device=prior.device)
        self.z = blank.new_zeros((n, many, steps + 1, *prior.space.shape))
        self.d = torch.zeros_like(self.z)
        self.values = self.every.new_full((n, steps + 1, many), -math.inf, dtype=torch.float64)
        self.visits = torch.zeros_like(self.values)
        # of a node that there is not, -1
        self.parents = self.every.new_full((n, steps + 1, many), -1)
        # data tell next to nothing of the highest level, so that one state of it serves a tree
        start = run.denoise(blank, self.sigmas[0]) + self.sigmas[0] * prior.noise(rows.streams)
        self.z[:, 0, 0], self.d[:, 0, 0] = start, run.denoise(start, self.sigmas[0])

    def grow(self, i: int, judge: Judge) -> None:
        """One rollout of every tree: walk, branch off, go on to a leaf, and back up."""
        noise, u = self._noise(), self._uniform()
        now, alone = torch.zeros_like(self.every), torch.zeros_like(self.every, dtype=torch.bool)
        way = [now]
        for at in range(self.depth):
            self.visits[self.every, at, now] += 1
            alone = alone | self._open(at, now)
            new, on = torch.nonzero(alone)[:, 0], torch.nonzero(~alone)[:, 0]
            following = torch.full_like(now, i)
            if len(new):
                self._extend(new, at, now[new], i, noise[0][new, at], noise[1][new, at])
            if len(on):
                following[on] = self._child(on, at, now[on], u[on, at])
            now = following
            way.append(now)
        fresh = torch.nonzero(alone)[:, 0]
        if len(fresh):
            log = judge.alone(self.z[fresh, i, -1], self.rows.cases[fresh])
            self.values[fresh, -1, i] = self.method.lam * log
        for at in reversed(range(self.depth)):
            below = self._children(self.every, at, way[at])
            self.values[self.every, at, way[at]] = below.logsumexp(1) - self._count(at, way[at]).log()

    def leaf(self) -> torch.Tensor:
        """The leaf that one more walk comes to, or the best, ``(rows, *shape)``."""
        if self.method.choice == "best":
            possible(self.values[:, -1])
            return take(self.z[:, :, -1], self.values[:, -1].argmax(1))
        now, u = torch.zeros_like(self.every), self._uniform()
        for at in range(self.depth):
            now = picked(self._children(self.every, at, now), u[:, at])
        return self.z[self.every, now, -1]

    def _open(self, at: int, now: torch.Tensor) -> torch.Tensor:
        """Whether a node may have one more child; the last step, from the lowest level, has none to choose."""
        count = self._count(at, now)
        if at == self.depth - 1:
            return count < 1
        allowed: torch.Tensor = self.method.width * self.visits[self.every, at, now] ** self.method.power
        return count < allowed

    def _extend(
        self, rows: torch.Tensor, at: int, now: torch.Tensor, i: int, inner: torch.Tensor, outer: torch.Tensor
    ) -> None:
        """A child with the number i, by a step of the chain."""
        prior, z, d = self.run.prior, self.z[rows, now, at], self.d[rows, now, at]
        s, t = self.sigmas[at], self.sigmas[at + 1]
        known, r = prior.covariance(s), (t / s) ** 2
        x0 = d if known is None else d + known.sqrt(inner)
        z = torch.lerp(x0, z, r) + t * math.sqrt(1 - r) * prior.reference.sqrt(outer)
        self.z[rows, i, at + 1], self.parents[rows, at + 1, i] = checked(z, at, s), now
        if t > 0:
            self.d[rows, i, at + 1] = self.run.denoise(z, t)

    def _child(self, rows: torch.Tensor, at: int, now: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        """The child that the walk goes to; any where none is possible yet."""
        log = self._children(rows, at, now)
        if self.method.choice == "best":
            return log.argmax(1)
        lost = ~torch.isfinite(log.amax(1, keepdim=True))
        there = torch.where(self.parents[rows, at + 1] == now[:, None], 0.0, -math.inf)
        return picked(torch.where(lost, there, log), u)

    def _children(self, rows: torch.Tensor, at: int, now: torch.Tensor) -> torch.Tensor:
        """The values of the children of a node of every row, ``(rows, rollouts)``, -inf elsewhere."""
        own = self.parents[rows, at + 1] == now[:, None]
        return torch.where(own, self.values[rows, at + 1], -math.inf)

    def _count(self, at: int, now: torch.Tensor) -> torch.Tensor:
        return (self.parents[:, at + 1] == now[:, None]).sum(1).double()

    def _noise(self) -> list[torch.Tensor]:
        """White noise of the clean state and of the step, ``(rows, depth, *white_shape)``."""
        prior = self.run.prior
        known = prior.covariance(self.sigmas[0])
        shapes = [() if known is None else known.white_shape, prior.reference.white_shape]
        return [
            self.rows.streams.normal((self.depth, *shape), dtype=prior.dtype, device=prior.device)
            for shape in shapes
        ]

    def _uniform(self) -> torch.Tensor:
        return self.rows.streams.uniform((self.depth,), dtype=torch.float64, device=self.every.device)
