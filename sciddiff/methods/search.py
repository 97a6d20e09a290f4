"""Search among candidates by the likelihood's values alone: for black boxes, and for noise of any kind.

A family of candidates is drawn for every draw, and one of them is kept. Keeping the best is what is
published: the more candidates there are, the nearer the result is to a maximum of the likelihood, and the
further from a draw. Keeping one with probability ``w_j / sum w``, ``w_j = p(y | A(x_j))``, is importance
resampling: ``x_j ~ p`` gives ``p(x | y) ~ p(x) w(x)`` as the candidates grow, with a bias of ``-E_p[w^2 (f -
E[f | y])] / (k E_p[w]^2)`` in the mean of any f.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

import numpy as np
import torch

from sciddiff.covariance import Covariance
from sciddiff.errors import DivergenceError, InputError, SciddiffError
from sciddiff.methods.base import Method, Rows, Run, integrate, unconditional
from sciddiff.methods.pigdm import around, missing_gaussian
from sciddiff.operators.blackbox import BlackBox
from sciddiff.posterior import chunks
from sciddiff.priors.base import Prior
from sciddiff.random import Streams
from sciddiff.solvers import DPMSolver, Karras, Solver
from sciddiff.solvers.base import checked

if TYPE_CHECKING:
    from sciddiff.posterior import Posterior

__all__ = ["SCG", "BestOfN", "Judge", "NoiseSearch", "families", "picked", "possible", "spread"]


@final
@dataclass(frozen=True)
class BestOfN(Method):
    """As many draws of the prior for every draw of the posterior, of which one is kept; for any operator and noise.

    With ``choice="weighted"`` each is kept with probability ``~ p(y | A(x))``: draws of the posterior as the
    candidates grow, whose bias falls as one over their number. The number that is needed grows with what the
    data say, as ``exp`` of the information in nats: this is for few data or loose ones, and a reference for
    other methods there. On a Gaussian vector (8 values, 4 data with errors of 0.3 of the prior's sd; 300
    draws of three problems) 1024 candidates had means 0.06 posterior standard deviations off (rms), as exact
    draws have. ``choice="best"`` is best-of-N as published: a maximum, not a draw.

    Args:
        candidates: draws of the prior for each draw.
        choice: "weighted" or "best".

    Raises:
        InputError: on settings out of range.
        DivergenceError: if ``y`` is impossible under all candidates of a draw, or an operator that may not fail does.

    The result records ``log_evidence``, the log of an unbiased estimate of ``p(y)`` where the prior's draws
    are exact; ``ess``, the mean effective number of candidates of a draw; and ``failed_members``, simulations
    that failed.

    Example:
        >>> import sciddiff as sd
        >>> space = sd.Space({"i": 1})
        >>> peak = sd.operators.black_box(abs, space, sd.Space({"j": 1}, "y"))
        >>> posterior = sd.GaussianPrior(space, sd.covariance.white((1,))).given([1.0], peak, sd.noise.Laplace(0.5))
        >>> bool(posterior.sample(4, method=BestOfN(), seed=0).attrs["ess"] > 10)
        True
    """

    takes: ClassVar[frozenset[str]] = frozenset({"solver", "steps"})
    reference: ClassVar[str] = (
        "@article{rubin1987calculation, title={Comment: A Noniterative Sampling/Importance Resampling Alternative to the "
        "Data Augmentation Algorithm}, author={Rubin, Donald B.}, journal={Journal of the American Statistical "
        "Association}, volume={82}, number={398}, pages={543--546}, year={1987}}"
    )
    candidates: int = 64
    choice: str = "weighted"

    def __post_init__(self) -> None:
        check_family(self.candidates, self.choice)

    def draw(self, run: Run) -> torch.Tensor:
        """Draw the candidates of every draw from the prior, and keep one."""
        judge, out, logs, of = Judge(run), [], [], []
        for rows in families(run, self.candidates, "best of n"):
            z = _prior_draws(run, _Family(rows.streams, self.candidates))
            z = z.reshape(len(rows.cases), self.candidates, *z.shape[1:])
            log = judge(z, rows.cases)
            out.append(take(z, kept(log, rows, self.choice)))
            logs.append(log)
            of.append(rows.cases)
        log, cases = torch.cat(logs), torch.cat(of)
        evidence = [
            float(log[cases == c].flatten().logsumexp(0)) - math.log(log[cases == c].numel())
            for c in range(run.posterior.cases)
        ]
        run.notes["log_evidence"] = evidence[0] if len(evidence) == 1 else evidence
        run.notes["ess"] = float(effective(log).mean())
        return torch.cat(out)


@final
@dataclass(frozen=True)
class NoiseSearch(Method):
    """Search over the noise that a deterministic solver starts from (Ma et al. 2025, arXiv 2501.09732).

    Every iteration solves the probability flow from some noises around the present one, and keeps one of them
    by ``p(y | A(z0))``. The first family is of independent noise. With ``choice="best"`` the best neighbour
    becomes the present one: the paper's zero-order search, with the likelihood as its verifier, or its random
    search for radius 1. That is a climb towards a maximum, not a draw.

    With ``choice="weighted"`` the neighbours are made around a hidden centre, itself a neighbour of the
    present noise, ``u = a n + radius e``, ``n_j = a u + radius e_j``, ``a^2 + radius^2 = 1``. Given u the
    present noise and its neighbours are exchangeable under the prior, so that keeping one of them all with
    probability ``~ p(y | A(z0))`` is a Gibbs step (Tjelmeland 2004): it leaves the posterior under the
    solver's prior as it is, and draws tend to it with the iterations, whatever the number of neighbours. Data
    that are many or precise ask for a smaller radius and more iterations.

    In the setting of `BestOfN` 32 iterations of 8 neighbours had means 0.06 posterior standard deviations off
    (rms) and standard deviations 0.97 to 1.11 of the exact ones; with "best" and radius 0.2 these were 0.48,
    and 0.43 to 1.07. On an Ornstein-Uhlenbeck series (64 times, 16 observed with errors of 0.1) the same
    number of iterations was too few by far: means 1.0 off, standard deviations up to 4.5 times too large
    (0.74 and 2.9 with radius 0.2).

    Args:
        candidates: noises of an iteration.
        iterations: after the first family.
        radius: how far neighbours are, from 0 to 1, where they are independent.
        choice: "weighted" or "best".
        steps: of the solver; ``Posterior.sample(steps=...)`` goes before.

    Raises:
        InputError: on settings out of range.
        DivergenceError: if a draw becomes non-finite, ``y`` is impossible under all of a family, or an operator that may not
            fail does.

    Example:
        >>> NoiseSearch(candidates=4, iterations=100, radius=0.3).choice
        'weighted'
    """

    takes: ClassVar[frozenset[str]] = frozenset({"steps"})
    reference: ClassVar[str] = (
        "@article{ma2025inference, title={Inference-Time Scaling for Diffusion Models beyond Scaling Denoising Steps}, "
        "author={Ma, Nanye and Tong, Shangyuan and Jia, Haolin and Hu, Hexiang and Su, Yu-Chuan and Zhang, Mingda and "
        "Yang, Xuan and Li, Yandong and Jaakkola, Tommi and Jia, Xuhui and Xie, Saining}, "
        "journal={arXiv preprint arXiv:2501.09732}, year={2025}}"
    )
    candidates: int = 8
    iterations: int = 16
    radius: float = 0.5
    choice: str = "weighted"
    steps: int = 16

    def __post_init__(self) -> None:
        check_family(self.candidates, self.choice)
        whole("iterations", self.iterations, 0)
        whole("steps", self.steps, 2)
        number = isinstance(self.radius, (int, float)) and not isinstance(self.radius, bool)
        if not (number and 0 < self.radius <= 1):
            raise InputError("radius", expected="a number from 0 to 1", got=repr(self.radius), fix="0.5")

    def draw(self, run: Run) -> torch.Tensor:
        """Walk every row through noises."""
        judge, out, ends = Judge(run), [], []
        solver = run.record(DPMSolver(steps=run.steps or self.steps))
        for rows in families(run, self.candidates + 1, "noise search"):

            def settled(
                white: torch.Tensor, held: list[torch.Tensor], rows: Rows = rows
            ) -> list[torch.Tensor]:
                z0 = _solved(run, solver, white)
                family = [white, z0, judge(z0, rows.cases)]
                if held:
                    family = [torch.cat([one, new], 1) for one, new in zip(held, family, strict=True)]
                one = kept(family[2], rows, self.choice)
                return [take(values, one)[:, None] for values in family]

            held = settled(self._white(run, rows, self.candidates), [])
            for _ in run.bar(range(self.iterations)):
                held = settled(self._neighbours(run, rows, held[0]), held)
            out.append(held[1][:, 0])
            ends.append(held[2][:, 0])
        run.notes["log_likelihood"] = float(torch.cat(ends).mean())
        return torch.cat(out)

    def _white(self, run: Run, rows: Rows, k: int) -> torch.Tensor:
        shape = run.prior.reference.white_shape
        return rows.streams.normal((k, *shape), dtype=run.prior.dtype, device=run.prior.device)

    def _neighbours(self, run: Run, rows: Rows, now: torch.Tensor) -> torch.Tensor:
        """Around the present noise, or around a hidden centre beside it."""
        keep, fresh = math.sqrt(1 - self.radius**2), self._white(run, rows, self.candidates + 1)
        centre = now if self.choice == "best" else keep * now + self.radius * fresh[:, :1]
        return keep * centre + self.radius * fresh[:, 1:]


@final
@dataclass(frozen=True)
class SCG(Method):
    """Stochastic control guidance (Huang et al. 2024, arXiv 2402.14285), for any operator and noise.

    ``choice="best"`` is as published: every ancestral step is tried a few times, ``z_j``, and the one whose
    ``D(z_j)`` has the largest likelihood is kept; one forward a candidate. The noise's sd does not matter
    beyond the order of the candidates, and more of them do not make it a posterior.

    ``choice="weighted"`` draws the step given ``y``: candidates ``x_j ~ N(D, V)`` of the clean state, one of
    them kept with probability ``~ p(y | A(x_j))``, and the step to it, ``r z + (1 - r) x_j + t sqrt(1 - r)
    n``; one forward a step, and one simulation a candidate. Where ``N(D, V)`` is ``p(z0 | z)``, as for
    Gaussian priors, this is ``p(z_t | z_s, y)`` as the candidates grow, in any number of steps. They should
    be many beside what the data say of ``N(D, V)``: with few, the one that fits best is kept at every step.

    In the setting of `BestOfN` "weighted" with 256 candidates and 16 steps had means 0.06 posterior standard
    deviations off (rms) and standard deviations 0.95 to 1.09 of the exact ones; "best", with 64 candidates
    and 64 steps, 1.4 and 0.30 to 0.86. On the series of `NoiseSearch`, whose 16 data say far more than 256
    candidates can tell apart, these were 0.82 and 1.0 to 3.6, and 0.28 and 0.07 to 0.92.

    Args:
        candidates: of every step.
        choice: "weighted" or "best".
        covariance: ``V``: "gaussian", that of the Gaussian fitted to the prior; "unit", of data of variance one; None
            for the first of them that there is. For "weighted".
        free: the share of the steps, the first ones, in which nothing is chosen. For "best"; 0.25 in the authors' code.
        steps: number of noise levels above 0; ``Posterior.sample(steps=...)`` goes before.

    Raises:
        InputError: on settings out of range.
        DivergenceError: if a draw becomes non-finite, ``y`` is impossible under all candidates of a step, or an operator that
            may not fail does.

    Example:
        >>> SCG(candidates=512, choice="best", free=0.25, steps=1000).candidates
        512
    """

    takes: ClassVar[frozenset[str]] = frozenset({"steps"})
    reference: ClassVar[str] = (
        "@inproceedings{huang2024symbolic, title={Symbolic Music Generation with Non-Differentiable Rule Guided Diffusion}, "
        "author={Huang, Yujia and Ghatare, Adishree and Liu, Yuanzhe and Hu, Ziniu and Zhang, Qinsheng and "
        "Sastry, Chandramouli Shama and Gururani, Siddharth and Oore, Sageev and Yue, Yisong}, booktitle={ICML}, year={2024}}"
    )
    candidates: int = 64
    choice: str = "weighted"
    covariance: str | None = None
    free: float = 0.0
    steps: int = 16

    def __post_init__(self) -> None:
        check_family(self.candidates, self.choice)
        whole("steps", self.steps, 2)
        check_spread(self.covariance)
        number = isinstance(self.free, (int, float)) and not isinstance(self.free, bool)
        if not (number and 0 <= self.free < 1):
            raise InputError(
                "free", expected="a share of the steps, below 1", got=repr(self.free), fix="0.25"
            )

    def misfit(self, posterior: Posterior) -> str | None:
        """Why the method does not fit, None if it does."""
        return super().misfit(posterior) or missing_gaussian(self.covariance or "", posterior)

    def draw(self, run: Run) -> torch.Tensor:
        """Step every row from noise to data."""
        prior, steps = run.prior, run.steps or self.steps
        sigmas, judge, out = Karras().sigmas(steps, prior.sigma_min, prior.sigma_max), Judge(run), []
        run.notes["steps"] = steps
        for rows in families(run, self.candidates, "stochastic control"):
            walk = self._tried if self.choice == "best" else self._drawn
            out.append(walk(run, judge, rows, sigmas))
        if judge.shares:
            run.notes["ess"] = judge.ess()
        return torch.cat(out)

    def _tried(self, run: Run, judge: Judge, rows: Rows, sigmas: list[float]) -> torch.Tensor:
        """Keep the step whose denoised state fits best."""
        prior = run.prior
        z = _start(prior, rows, sigmas[0])
        d = run.denoise(z, sigmas[0])
        for i in run.bar(range(len(sigmas) - 2)):
            s, t = sigmas[i], sigmas[i + 1]
            k = 1 if i < self.free * (len(sigmas) - 1) else self.candidates
            r = (t / s) ** 2
            noise = noises(prior.reference, prior, rows, k)
            tried = torch.lerp(d, z, r)[:, None] + t * math.sqrt(1 - r) * noise
            ahead = in_pieces(run, tried, t)
            if k == 1:
                z, d = tried[:, 0], ahead[:, 0]
            else:
                best = kept(judge(ahead, rows.cases), rows, "best")
                z, d = take(tried, best), take(ahead, best)
            checked(z, i, s)
        return checked(d, len(sigmas) - 2, sigmas[-2])

    def _drawn(self, run: Run, judge: Judge, rows: Rows, sigmas: list[float]) -> torch.Tensor:
        """Draw the clean state given the data, and the step given that."""
        prior, around_d = run.prior, spread(run.prior, self.covariance)
        z = _start(prior, rows, sigmas[0])
        for i in run.bar(range(len(sigmas) - 1)):
            s, t = sigmas[i], sigmas[i + 1]
            # above the highest level nothing is known of z: D is the prior's mean there
            d = run.denoise(torch.zeros_like(z) if i == 0 else z, s)
            tried = d[:, None] + noises(around_d(s), prior, rows, self.candidates)
            log = judge(tried, rows.cases, record=True)
            x0 = take(tried, kept(log, rows, "weighted"))
            if i == 0:
                z = z + x0
            z = torch.lerp(x0, z, (t / s) ** 2)
            if t > 0:
                z = z + t * math.sqrt(1 - (t / s) ** 2) * prior.noise(rows.streams)
            checked(z, i, s)
        return z


@final
class Judge:
    """The likelihood of candidates; those whose simulation failed have none.

    Args:
        run: the run, whose operator calls are counted and whose result records failures.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.shares: list[torch.Tensor] = []
        operators = [o.operator for o in run.posterior.observations]
        self.forgiving = any(isinstance(a, BlackBox) and a.on_error != "raise" for a in operators)

    def __call__(self, z0: torch.Tensor, cases: torch.Tensor, *, record: bool = False) -> torch.Tensor:
        """``log p(y | A(m + S z0))`` of ``(rows, k, *shape)``, ``(rows, k)`` in float64; -inf of what failed."""
        each = cases.repeat_interleave(z0.shape[1])
        means = self._predicted(z0)
        log = torch.stack(
            [o.log_prob(g, each) for o, g in zip(self.run.posterior.observations, means, strict=True)]
        )
        log = self._failing(log.sum(0).double(), -math.inf).reshape(z0.shape[:2])
        if record:
            self.shares.append(effective(log) / log.shape[1])
        return log

    def alone(self, z0: torch.Tensor, cases: torch.Tensor) -> torch.Tensor:
        """The same of one candidate a row, ``(rows, *shape)``, all of which may fail at once, ``(rows,)``."""
        try:
            return self(z0[:, None], cases)[:, 0]
        except (InputError, DivergenceError):
            raise
        except SciddiffError:
            # a black box takes it for a mistake where every member of a call fails, and here a call may be one member
            if not self.forgiving:
                raise
        return self._failing(z0.new_full((len(z0),), math.nan, dtype=torch.float64), -math.inf)

    def squares(self, z0: torch.Tensor, cases: torch.Tensor) -> torch.Tensor:
        """``|y - A(m + S z0)|^2`` over what was observed, ``(rows, k)`` in float64; inf of what failed.

        For noise whose mean is ``A(x)``: the methods that take squares have refused all other.
        """
        each = cases.repeat_interleave(z0.shape[1])
        pairs = zip(self.run.posterior.observations, self._predicted(z0), strict=True)
        total = torch.stack([o.residual(g, each).double().flatten(1).square().sum(1) for o, g in pairs])
        return self._failing(total.sum(0), math.inf).reshape(z0.shape[:2])

    def ess(self) -> float:
        """The least mean effective share of the candidates, of all levels that were recorded."""
        return min(float(share.mean()) for share in self.shares)

    def _predicted(self, z0: torch.Tensor) -> list[torch.Tensor]:
        x, out = self.run.prior.normalisation.physical(z0.flatten(0, 1)), []
        self.run.cost.operator_calls += len(x)
        for o in self.run.posterior.observations:
            # a black box goes through its members one by one, and judges its failures by all of them
            whole = len(x) if isinstance(o.operator, BlackBox) else None
            parts = chunks(len(x), self.run.prior.space.size, whole)
            out.append(torch.cat([o.operator.apply(x[p.start : p.stop]) for p in parts]))
        return out

    def _failing(self, values: torch.Tensor, worst: float) -> torch.Tensor:
        """The values, ``worst`` where they are NaN, if the operators may fail."""
        failed = int(values.isnan().sum())
        if failed == 0:
            return values
        if not self.forgiving:
            raise DivergenceError(
                f"{type(self.run.method).__name__}: the likelihood of {failed} of {len(values)} candidates is NaN. Check the "
                'operator on draws of the prior, or make it with black_box(..., on_error="nan") to go on without them.'
            )
        self.run.notes["failed_members"] = self.run.notes.get("failed_members", 0) + failed
        return torch.where(values.isnan(), worst, values)


def families(run: Run, each: int, purpose: str) -> Iterable[Rows]:
    """The rows of the result in chunks that leave room for ``each`` candidates a row."""
    cases = run.posterior.cases
    for part in chunks(run.n * cases, run.prior.space.size * each, run.chunk):
        of, draws = [i % cases for i in part], [i // cases for i in part]
        index = torch.tensor(of, dtype=torch.long, device=run.prior.device)
        yield Rows(index, Streams(run.seed, draws, of, purpose=purpose))


@final
class _Family(Streams):
    """k rows for every stream, which serves them one after the other."""

    def __init__(self, streams: Streams, k: int) -> None:
        self.streams, self.k = streams, k

    def __len__(self) -> int:
        return len(self.streams) * self.k

    def normal(
        self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """Standard normals ``(rows, *shape)``."""
        return self.streams.normal((self.k, *shape), dtype=dtype, device=device).flatten(0, 1)

    def uniform(
        self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> torch.Tensor:
        """Uniforms on [0, 1), ``(rows, *shape)``."""
        return self.streams.uniform((self.k, *shape), dtype=dtype, device=device).flatten(0, 1)

    def numpy(self) -> list[np.random.Generator]:
        """The rows' generators, each k times."""
        return [generator for generator in self.streams.numpy() for _ in range(self.k)]


def picked(log: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """One candidate of each row with probability ``~ exp(log)``, by uniforms ``(rows,)``; the best where u is 1.

    Raises:
        DivergenceError: if a row has no candidate that is possible.

    Example:
        >>> picked(torch.tensor([[0.0, -torch.inf, 0.0]]), torch.tensor([0.7])).tolist()
        [2]
    """
    possible(log)
    steps = log.double().softmax(1).cumsum(1)
    places = u[:, None].to(steps).contiguous()
    index = torch.searchsorted(steps / steps[:, -1:], places, right=True)
    return index[:, 0].clamp(max=log.shape[1] - 1)


def kept(log: torch.Tensor, rows: Rows, choice: str) -> torch.Tensor:
    """Which candidate of each row is kept, ``(rows,)``."""
    if choice == "best":
        possible(log)
        return log.argmax(1)
    u = rows.streams.uniform((1,), dtype=torch.float64, device=log.device)[:, 0]
    return picked(log, u)


def take(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """One candidate of each row, ``(rows, ...)`` of ``(rows, k, ...)``."""
    return values[torch.arange(len(values), device=values.device), index]


def effective(log: torch.Tensor) -> torch.Tensor:
    """The effective number of candidates ``1 / sum p^2`` of each row."""
    return 1 / log.softmax(1).square().sum(1)


def noises(covariance: Covariance, prior: Prior, rows: Rows, k: int) -> torch.Tensor:
    """``(rows, k, *shape)`` draws of ``N(0, covariance)``."""
    white = rows.streams.normal((k, *covariance.white_shape), dtype=prior.dtype, device=prior.device)
    return covariance.sqrt(white.flatten(0, 1)).reshape(len(white), k, *prior.space.shape)


def in_pieces(run: Run, z: torch.Tensor, sigma: float) -> torch.Tensor:
    """``D`` of ``(rows, k, *shape)``, some at a time."""
    every = z.flatten(0, 1)
    parts = chunks(len(every), run.prior.space.size, None)
    return torch.cat([run.denoise(every[p.start : p.stop], sigma) for p in parts]).reshape(z.shape)


def spread(prior: Prior, choice: str | None) -> Callable[[float], Covariance]:
    """The covariance of ``z0`` around ``D`` at a level: "gaussian", "unit", or the first that there is."""
    if choice is None:
        choice = "unit" if prior.gaussian_covariance(prior.sigma_max) is None else "gaussian"
    return around(prior, choice)


def check_spread(choice: str | None) -> None:
    """Raise `InputError` unless there is such a covariance."""
    if choice not in (None, "unit", "gaussian"):
        raise InputError(
            "covariance", expected="'unit', 'gaussian' or None", got=repr(choice), fix="leave it out"
        )


def check_family(candidates: object, choice: str) -> None:
    """Raise `InputError` unless there are two candidates or more, and a way to choose."""
    whole("candidates", candidates, 2)
    if choice not in ("weighted", "best"):
        raise InputError("choice", expected="'weighted' or 'best'", got=repr(choice), fix="leave it out")


def whole(name: str, value: object, least: int) -> None:
    """Raise `InputError` unless ``value`` is an int of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(name, expected=f"an int of at least {least}", got=repr(value), fix="leave it out")


def possible(log: torch.Tensor) -> None:
    """Raise `DivergenceError` if a row has no candidate of finite likelihood."""
    lost = int((~torch.isfinite(log.amax(1))).sum())
    if lost:
        raise DivergenceError(
            f"{lost} of {len(log)} draws have no candidate of finite likelihood. Take more candidates, or check the "
            "noise and the operator on draws of the prior."
        )


def _start(prior: Prior, rows: Rows, sigma: float) -> torch.Tensor:
    return sigma * prior.noise(rows.streams)


def _prior_draws(run: Run, streams: Streams) -> torch.Tensor:
    """Draws of the prior: exact where it can and no solver was asked for, else by the solver."""
    z = None if run.asked else run.prior.draw(streams)
    if z is not None:
        return z
    solver = run.record((run.solver or DPMSolver()).with_steps(run.steps))
    return integrate(
        run.prior, unconditional(run.prior, run.denoise, streams), streams, solver, None, run.bar
    )


def _solved(run: Run, solver: Solver, white: torch.Tensor) -> torch.Tensor:
    """The probability flow from white noise ``(rows, k, *white_shape)`` down to 0, ``(rows, k, *shape)``."""
    prior = run.prior
    sigmas = solver.schedule.sigmas(solver.steps, prior.sigma_min, prior.sigma_max)
    z = sigmas[0] * prior.reference.sqrt(white.flatten(0, 1))
    z = z + run.denoise(torch.zeros_like(z[:1]), sigmas[0])

    def none() -> torch.Tensor:
        raise AssertionError("the solver is deterministic")

    out = solver.integrate(run.denoise, z, sigmas, none, iter)
    return out.reshape(*white.shape[:2], *out.shape[1:])
