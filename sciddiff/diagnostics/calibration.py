"""Do draws follow the posterior: tests over many simulated cases, each with a p-value that means what it says.

A case is a truth drawn from the prior, an observation of it, and L draws given that observation. If the draws
are exact, truth and draws are exchangeable given y, and so is any number f(x, y) computed from each of them:

    ``rank = #{l : f(x_l, y) < f(truth, y)}``   is uniform on 0, 1, .. L.

What a test can see is decided by f. A marginal (`sbc`, `coverage_test`) does not see how coordinates go
together; without y in it no f tells the posterior from the prior. So `sbc` also ranks projections, products
and quantities of the caller's, the log-likelihood first of all; `tarp` ranks distances to reference points;
`c2st` needs no truth but exact draws to compare with.

Shared by all: labels are checked as in `sciddiff.diagnostics.scores`; nothing is broadcast; ``nan="omit"``
leaves out the coordinates that are NaN in any case. The cases have to be independent. Each result holds the
overall ``p_value``, and a p-value below 0.01, say, is a fault found; a large one shows nothing for what
the test is blind to, which its docstring tells.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sciddiff.diagnostics.labels import AnyLabelled, Array, Nan, check_draws, check_same, paired, variables
from sciddiff.diagnostics.ranks import check_levels, membership
from sciddiff.errors import InputError, MissingDependencyError
from sciddiff.random import Streams, check_seed

if TYPE_CHECKING:
    import xarray as xr

    from sciddiff.posterior import Posterior

__all__ = [
    "c2st",
    "coverage_test",
    "hits_p_value",
    "log_likelihood",
    "sbc",
    "tarp",
    "uniformity_band",
    "uniformity_p_value",
]

Quantity = Callable[[Any], "xr.DataArray"]


def sbc(
    draws: AnyLabelled,
    truth: AnyLabelled,
    *,
    quantities: Mapping[str, Quantity] | None = None,
    marginals: int = 32,
    projections: int = 8,
    products: int = 8,
    seed: int = 0,
    sample_dim: str = "sample",
    case_dim: str = "case",
    nan: Nan = "raise",
) -> xr.Dataset:
    """Simulation-based calibration: is the truth's rank uniform, for many quantities of the state.

    The quantities are coordinates (``marginals``), unit combinations of all coordinates over their sd
    (``projections``), products of two coordinates less their mean in that case (``products``), and
    ``quantities``. Pairs for products are drawn so that near ones, in the flattened order, are as likely as
    far ones. Ties are broken at random.

    Blind to: anything that leaves all ranked quantities' laws alone. Without a quantity that holds y
    (the log-likelihood) draws of the prior pass; marginals and projections hardly see a wrong correlation
    that the products see; a random projection of a large field sees little of any one point.

    Args:
        draws: Dataset or DataArray with ``sample_dim`` (L draws) and ``case_dim`` (N cases).
        truth: the same without ``sample_dim``.
        quantities: functions of the state, by name; each is called with the draws and with the truth and
            returns a DataArray with dims ``(sample_dim, case_dim)`` and ``(case_dim,)``.
        marginals: at most so many coordinates, chosen at random.
        projections: number of projections; 0 for one coordinate in all.
        products: at most so many products.
        seed: int in [0, 2**64); chooses the quantities and breaks ties.
        sample_dim: the dim of the draws.
        case_dim: the dim of the cases.
        nan: "raise" or "omit", see the module.

    Returns:
        Dataset: ``rank (quantity, case)``, ``p_quantity (quantity)`` of `uniformity_p_value`, the overall
        ``p_value`` (Bonferroni: the smallest times their number), and the coordinates ``quantity`` and ``kind``.

    Raises:
        InputError: labels that differ, NaN under ``nan="raise"``, infinite values, no case dim, fewer than 2
            cases, nothing to rank, a quantity with other dims or not finite.

    Source: Talts et al. (2018), "Validating Bayesian inference algorithms with simulation-based calibration",
    theorem 1; Modrak et al. (2023), "Simulation-based calibration checking for Bayesian computation: the
    choice of test quantities shapes sensitivity", for quantities that hold the data.

    Example:
        >>> import numpy as np, xarray as xr
        >>> x = np.random.default_rng(0).normal(size=(20, 200, 2))
        >>> draws = xr.DataArray(x[1:], dims=("sample", "case", "x"))
        >>> exact = sbc(draws, xr.DataArray(x[0], dims=("case", "x")))
        >>> wide = sbc(2 * draws, xr.DataArray(x[0], dims=("case", "x")))
        >>> bool(exact.p_value > 0.01), bool(wide.p_value < 1e-6)
        (True, True)
    """
    import xarray as xr

    counts = {"marginals": marginals, "projections": projections, "products": products}
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or count < 0:
            raise InputError(name, expected="an int, 0 or more", got=repr(count), fix=f"pass {name}=8")
    pool = _pooled(draws, truth, sample_dim=sample_dim, case_dim=case_dim, nan=nan)
    generator = Streams(check_seed(seed), [0], purpose="sbc quantities").numpy()[0]
    values, kinds = _marginals(pool, marginals, generator)
    for more, kind in (
        (_projections(pool, projections, generator), "projection"),
        (_products(pool, products, generator), "product"),
    ):
        values |= more
        kinds |= dict.fromkeys(more, kind)
    for name, function in (quantities or {}).items():
        values[name] = _called(name, function, draws, truth, sample_dim, case_dim)
        kinds[name] = name
    if not values:
        raise InputError("quantities", expected="something to rank", got="none", fix="leave marginals=32")
    ranks = np.stack([_ranks(v, seed, f"sbc ties {name}") for name, v in values.items()])
    p = np.array([uniformity_p_value(r, pool.draws) for r in ranks])
    out = xr.Dataset(
        {
            "rank": (("quantity", case_dim), ranks),
            "p_quantity": ("quantity", p),
            "p_value": ((), min(1.0, float(p.min()) * len(p))),
        },
        coords={"quantity": list(values), "kind": ("quantity", [kinds[q] for q in values]), **pool.labels},
    )
    out.attrs = _attrs(pool, f"ranks of {len(p)} quantities, exact ECDF band test each, Bonferroni")
    return out


def log_likelihood(posterior: Posterior) -> Quantity:
    """``log p(y | A(x))`` of a posterior of many cases, as a quantity for `sbc`; it sees draws of the prior.

    Args:
        posterior: made with ``batch_dim``, which is the case dim of draws and truth.

    Returns:
        A function of labelled states with that dim and any other leading ones.

    Raises:
        InputError: the posterior has one case.

    Source: Modrak et al. (2023), as for `sbc`: the joint likelihood is the quantity to add first.

    Example:
        >>> import numpy as np, sciddiff as sd
        >>> space = sd.Space({"x": 2})
        >>> prior = sd.GaussianPrior(space, sd.covariance.white((2,)))
        >>> operator = sd.operators.Points.at_indices(space, [[0]])
        >>> truth = prior.sample(40, seed=0).rename(sample="case")
        >>> y = truth["u"].values[:, :1] + 0.5 * np.random.default_rng(0).normal(size=(40, 1))
        >>> posterior = prior.given(y, operator, sd.noise.Gaussian(0.5), batch_dim="case")
        >>> draws = posterior.sample(19, seed=0)
        >>> result = sbc(draws, truth, quantities={"log-likelihood": log_likelihood(posterior)})
        >>> bool(result.p_value > 0.01)
        True
    """
    if posterior.batch is None:
        raise InputError(
            "posterior",
            expected="a posterior of many cases",
            got="one of a single case",
            fix="condition on many simulated observations: prior.given(y, ..., batch_dim='case')",
        )
    space, case_dim = posterior.prior.space, posterior.batch[0]

    def evaluate(x: Any) -> xr.DataArray:
        import xarray as xr

        lead = [*(d for d in x.dims if d not in space.sizes and d != case_dim), case_dim]
        sizes = [x.sizes[d] for d in lead]
        rows = x.drop_vars(lead, errors="ignore").stack(row=lead, create_index=False)
        z = space.tensor(rows, argument="x", batch_dim="row", dtype=posterior.prior.dtype)
        cases = torch.arange(len(z)) % posterior.cases
        parts = [
            posterior.log_likelihood(a.to(posterior.prior.device), b.to(posterior.prior.device))
            for a, b in zip(*(v.split(max(1, 2**21 // space.size)) for v in (z, cases)), strict=True)
        ]
        return xr.DataArray(torch.cat(parts).numpy(force=True).reshape(sizes), dims=lead)

    return evaluate


def tarp(
    draws: AnyLabelled,
    truth: AnyLabelled,
    *,
    references: AnyLabelled | None = None,
    seed: int = 0,
    sample_dim: str = "sample",
    case_dim: str = "case",
    nan: Nan = "raise",
) -> xr.Dataset:
    """Tests of accuracy with random points: does a ball around any reference hold its share of the truth.

    In every case the draws and the truth are ranked by their distance to a reference point; the distance is
    Euclidean after every coordinate is divided by its sd over draws, truths and cases.

    Blind to: with random references, draws of the prior (see the paper's section 3); give references that
    depend on the observation, such as a least-squares estimate, to see those. In many dimensions all points
    are nearly as far, so that only the size of the error and the side of the reference count.

    Args:
        draws: Dataset or DataArray with ``sample_dim`` (L draws) and ``case_dim`` (N cases).
        truth: the same without ``sample_dim``.
        references: a point for every case, labelled as ``truth``; any function of the observation, never of
            truth or draws. None draws them uniformly in the box that holds all draws and truths.
        seed: int in [0, 2**64); places the references and breaks ties.
        sample_dim: the dim of the draws.
        case_dim: the dim of the cases.
        nan: "raise" or "omit", see the module.

    Returns:
        Dataset: ``rank (case)``; ``coverage (level)``, the share of cases whose truth lies in the ball that holds
        the share ``level`` of the draws, with expectation ``level`` at every level; ``p_value``.

    Raises:
        InputError: as `sbc`; references labelled unlike the truth.

    Source: Lemos, Coogan, Hezaveh and Perreault-Levasseur (2023), "Sampling-based accuracy testing of posterior
    estimators for general inference", algorithm 2; the p-value is that of `uniformity_p_value`.

    Example:
        >>> import numpy as np, xarray as xr
        >>> x = np.random.default_rng(0).normal(size=(20, 200, 2))
        >>> draws, truth = xr.DataArray(x[1:], dims=("sample", "case", "x")), xr.DataArray(x[0], dims=("case", "x"))
        >>> bool(tarp(draws, truth).p_value > 0.01), bool(tarp(draws / 2, truth).p_value < 1e-6)
        (True, True)
    """
    import xarray as xr

    pool = _pooled(draws, truth, sample_dim=sample_dim, case_dim=case_dim, nan=nan)
    check_seed(seed)
    if references is None:
        generator = Streams(seed, [0], purpose="tarp references").numpy()[0]
        low, high = pool.values.min(axis=(0, 1)), pool.values.max(axis=(0, 1))
        points = low + (high - low) * generator.random(pool.values.shape[1:])
    else:
        check_same(truth, references, "`truth`", argument="references")
        # the same points as in the pool: what is NaN in the draws is left out of the references too
        one = references.expand_dims({sample_dim: 1})
        full = _pooled(one, truth, sample_dim=sample_dim, case_dim=case_dim, nan=nan, seen=pool.seen)
        points = full.values[0]
    distance = np.linalg.norm((pool.values - points) / pool.scale, axis=-1)
    rank = _ranks(distance, seed, "tarp ties")
    within = np.cumsum(np.bincount(rank, minlength=pool.draws + 1)) / len(rank)
    out = xr.Dataset(
        {
            "rank": (case_dim, rank),
            "coverage": ("level", np.concatenate([[0.0], within])),
            "p_value": ((), uniformity_p_value(rank, pool.draws)),
        },
        coords={"level": np.arange(pool.draws + 2) / (pool.draws + 1), **pool.labels},
    )
    kind = "random references" if references is None else "given references"
    out.attrs = _attrs(pool, f"rank of the distance to {kind}, exact ECDF band test")
    return out


def coverage_test(
    draws: AnyLabelled,
    truth: AnyLabelled,
    levels: Sequence[float] = (0.5, 0.9),
    *,
    marginals: int = 32,
    seed: int = 0,
    sample_dim: str = "sample",
    case_dim: str = "case",
    nan: Nan = "raise",
) -> xr.Dataset:
    """Do central intervals of the draws hold their share of the truth: an exact binomial test over the cases.

    Intervals are those of `sciddiff.diagnostics.coverage`, with the coin of the level between two ranks tossed
    and not averaged, so that hits are Bernoulli with probability ``level`` for exact draws.

    Blind to: whatever leaves central intervals right; all that `sbc` of marginals does not see, and a shift
    that pushes as many truths into an interval as out of it. Weaker than `sbc` on the same cases.

    Args:
        draws: Dataset or DataArray with ``sample_dim`` (L draws) and ``case_dim`` (N cases).
        truth: the same without ``sample_dim``.
        levels: levels of the central intervals, in (0, 1).
        marginals: at most so many coordinates, chosen at random.
        seed: int in [0, 2**64); chooses the coordinates, tosses the coin and breaks ties.
        sample_dim: the dim of the draws.
        case_dim: the dim of the cases.
        nan: "raise" or "omit", see the module.

    Returns:
        Dataset: ``share (level, quantity)``, ``p_quantity (level, quantity)`` two-sided, and the overall
        ``p_value`` (Bonferroni).

    Raises:
        InputError: as `sbc`; levels outside (0, 1).

    Source: Clopper and Pearson (1934), for the doubled one-sided binomial tail.

    Example:
        >>> import numpy as np, xarray as xr
        >>> x = np.random.default_rng(0).normal(size=(20, 200, 2))
        >>> draws, truth = xr.DataArray(x[1:], dims=("sample", "case", "x")), xr.DataArray(x[0], dims=("case", "x"))
        >>> bool(coverage_test(draws, truth).p_value > 0.01), bool(coverage_test(draws / 2, truth).p_value < 1e-6)
        (True, True)
    """
    import xarray as xr
    from scipy import stats

    check_levels(levels)
    pool = _pooled(draws, truth, sample_dim=sample_dim, case_dim=case_dim, nan=nan)
    generator = Streams(check_seed(seed), [0], purpose="coverage test").numpy()[0]
    values, _ = _marginals(pool, marginals, generator)
    ranks = np.stack([_ranks(v, seed, f"coverage ties {name}") for name, v in values.items()])
    coin = generator.random(ranks.shape)
    hits = np.stack([(coin < membership(pool.draws, p)[ranks]).sum(axis=1) for p in levels])
    n, level = ranks.shape[1], np.asarray(levels)[:, None]
    tails = np.minimum(stats.binom.cdf(hits, n, level), stats.binom.sf(hits - 1, n, level))
    p = np.minimum(1.0, 2 * tails)
    out = xr.Dataset(
        {
            "share": (("level", "quantity"), hits / n),
            "p_quantity": (("level", "quantity"), p),
            "p_value": ((), min(1.0, float(p.min()) * p.size)),
        },
        coords={"level": list(levels), "quantity": list(values)},
    )
    out.attrs = _attrs(pool, f"hits of central intervals, {p.size} binomial tests, Bonferroni")
    return out


def c2st(
    draws: AnyLabelled,
    reference: AnyLabelled,
    *,
    folds: int = 5,
    seed: int = 0,
    sample_dim: str = "sample",
) -> xr.Dataset:
    """Classifier two-sample test: how often a network tells draws from exact draws; 0.5 is perfect.

    ``accuracy`` is the figure of sbibm: the mean over ``folds`` folds of the held-out accuracy of an MLP with
    two layers of 10 d units on z-scored points. Those folds share their points, so it has no simple law; the
    ``p_value`` is from one more network, trained on half of each set and tested on the other half, where
    hits are hypergeometric given what it says.

    Blind to: what the network does not learn from so few points. Look at the accuracy at the number of draws
    that you compare at, and never across numbers.

    Args:
        draws: Dataset or DataArray with ``sample_dim``, at least 20 draws, independent of one another.
        reference: exact draws, labelled as ``draws``, as many.
        folds: number of folds, at least 2.
        seed: int in [0, 2**64); shuffles, and starts the networks.
        sample_dim: the dim of the draws; all others are features (select one case first).

    Returns:
        Dataset: ``accuracy``, ``accuracy_fold (fold)``, ``p_value`` (one-sided).

    Raises:
        InputError: labels that differ, NaN or infinite values, other numbers of draws.
        MissingDependencyError: scikit-learn is not installed.

    Source: Lopez-Paz and Oquab (2017), "Revisiting classifier two-sample tests", section 3; Lueckmann et al.
    (2021), "Benchmarking simulation-based inference", appendix, for the network and the folds.

    Example:
        >>> import numpy as np, xarray as xr
        >>> rng = np.random.default_rng(0)
        >>> a, b = (xr.DataArray(rng.normal(size=(100, 1)), dims=("sample", "x")) for _ in range(2))
        >>> bool(c2st(a + 4.0, b).accuracy > 0.9)
        True
    """
    import xarray as xr

    x, y = _two_sets(draws, reference, sample_dim)
    n = len(x)
    if isinstance(folds, bool) or not isinstance(folds, (int, np.integer)) or not 2 <= folds <= n:
        raise InputError("folds", expected=f"an int from 2 to {n}", got=repr(folds), fix="pass 5")
    points, label = np.concatenate([x, y]), np.repeat([0, 1], n)
    sd = points.std(axis=0)
    points = (points - points.mean(axis=0)) / np.where(sd > 0, sd, 1.0)
    generators = Streams(check_seed(seed), range(folds + 1), purpose="c2st").numpy()
    order = generators[folds].permutation(2 * n)
    accuracy = []
    for generator, test in zip(generators, np.array_split(order, folds), strict=False):
        train = np.setdiff1d(order, test)
        accuracy.append(float((_classified(points, label, train, test, generator) == label[test]).mean()))
    # half of each set, so that the numbers of both kinds in the test half are fixed
    half = np.concatenate([generators[folds].permutation(n)[: n // 2] + s for s in (0, n)])
    test = np.setdiff1d(np.arange(2 * n), half)
    said = _classified(points, label, half, test, generators[folds])
    p = hits_p_value(label[test], said)
    out = xr.Dataset(
        {"accuracy": float(np.mean(accuracy)), "accuracy_fold": ("fold", accuracy), "p_value": p}
    )
    out.attrs = {
        "draws": n,
        "tested": f"held-out accuracy of an MLP, {folds} folds; p-value of a split in halves",
    }
    return out


def hits_p_value(label: Array, said: Array) -> float:
    """Exact one-sided p-value of the hits of a classifier on points that it was not trained on.

    If it knows nothing, the labels are a random arrangement of so many ones, whatever it says: the ones that
    it finds are hypergeometric (Fisher's exact test).

    Args:
        label: 0 or 1, ``(n,)``.
        said: 0 or 1, ``(n,)``.

    Example:
        >>> round(hits_p_value(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1])), 6)  # one arrangement of six
        0.166667
    """
    from scipy import stats

    right = int((label.astype(bool) & said.astype(bool)).sum())
    return float(stats.hypergeom.sf(right - 1, len(label), int(said.sum()), int(label.sum())))


def uniformity_p_value(ranks: Array, draws: int) -> float:
    """Exact p-value of the hypothesis that independent ranks are uniform on 0, 1, .. ``draws``.

    The statistic is how far out the distribution function of the ranks gets, at the worst of at most 100
    thresholds: ``g = min_i 2 min(P(B_i <= c_i), P(B_i >= c_i))`` with ``c_i`` the count below threshold i and
    ``B_i ~ Binomial(N, i / (draws + 1))``. Its law is computed and not simulated: uniform counts are those of a
    Poisson process given their total, whose path stays in a band with a probability found by one
    convolution a threshold. Where rounding would leave no digit, the union bound (larger) is returned.

    Args:
        ranks: whole numbers from 0 to ``draws``, ``(N,)``.
        draws: number of draws that the truth was ranked among.

    Returns:
        The p-value; ``P(p <= a) <= a`` for every a, with near equality from some 50 cases on.

    Raises:
        InputError: ranks that are not whole numbers from 0 to ``draws``.

    Source: Sailynoja, Burkner and Vehtari (2022), "Graphical test for discrete uniformity and its applications
    in goodness-of-fit evaluation and multiple sample comparison", sections 2.2 and 2.3 (the statistic); Moscovich
    and Nadler (2017), "Fast calculation of boundary crossing probabilities for Poisson processes" (its law).

    Example:
        >>> uniformity_p_value(np.arange(20).repeat(5), 19)
        1.0
        >>> uniformity_p_value(np.zeros(30, dtype=int), 19) < 1e-12
        True
    """
    ranks = np.asarray(ranks)
    if (
        ranks.ndim != 1
        or ranks.size == 0
        or ranks.dtype.kind not in "iu"
        or not (ranks.min() >= 0 and ranks.max() <= draws)
    ):
        raise InputError(
            "ranks", expected=f"whole numbers (N,) from 0 to {draws}", got=ranks, fix="rank the truth"
        )
    cuts = _thresholds(draws)
    count = np.searchsorted(np.sort(ranks), cuts, side="left")
    g = float(_tails(ranks.size, draws)[np.arange(len(cuts)), count].min())
    # rounded, so that thresholds that mirror each other share an entry of the cache
    return _crossing(ranks.size, draws, float(f"{g:.10e}"))


def uniformity_band(cases: int, draws: int, level: float = 0.95) -> tuple[Array, Array, Array]:
    """The band that holds the whole distribution function of uniform ranks with a chance of at least ``level``.

    Args:
        cases: number of ranks.
        draws: number of draws that the truth was ranked among.
        level: the chance, in (0, 1).

    Returns:
        Where, ``i / (draws + 1)`` for at most 100 i; and the least and the largest number of ranks below i there.

    Raises:
        InputError: a level outside (0, 1).

    Source: as `uniformity_p_value`: ranks lie in the band unless their p-value is below ``1 - level``.

    Example:
        >>> where, low, high = uniformity_band(100, 3, 0.95)
        >>> where.tolist(), low.tolist(), high.tolist()
        ([0.25, 0.5, 0.75], [15, 39, 65], [35, 61, 85])
    """
    check_levels([level])
    tails = _tails(cases, draws)
    # how far out counts can get, and of those the farthest that is still likely enough
    reached = np.unique(tails[tails < 1])
    first, last = 0, len(reached)
    while first < last:
        middle = (first + last) // 2
        likely = _crossing(cases, draws, float(f"{reached[middle]:.10e}")) > 1 - level
        first, last = (first, middle) if likely else (middle + 1, last)
    inside = tails >= (reached[first] * (1 - 1e-9) if first < len(reached) else 1.0)
    z = _thresholds(draws) / (draws + 1)
    return z, inside.argmax(axis=1), cases - inside[:, ::-1].argmax(axis=1)


def _thresholds(draws: int) -> Array:
    """At most 100 ranks from 1 to ``draws`` to count below."""
    return np.unique(np.linspace(1, draws, min(draws, 100)).round().astype(np.int64))


@lru_cache(maxsize=4)
def _tails(n: int, draws: int) -> Array:
    """How far out it is to have k of n ranks below each threshold, ``(thresholds, n + 1)``; 1 or more is not."""
    from scipy import stats

    k, z = np.arange(n + 1), _thresholds(draws)[:, None] / (draws + 1)
    out: Array = 2 * np.minimum(stats.binom.cdf(k, n, z), stats.binom.sf(k - 1, n, z))
    return out


@lru_cache(maxsize=4096)
def _crossing(n: int, draws: int, g: float) -> float:
    """Chance that n uniform ranks get as far out as ``g`` at any threshold."""
    from scipy.special import gammaln, xlogy

    def poisson(k: Array, mean: float) -> Array:
        return np.asarray(np.exp(xlogy(k, mean) - mean - gammaln(k + 1)))

    inside = np.array([1.0])
    low, before = 0, 0.0
    for share, tails in zip(_thresholds(draws) / (draws + 1), _tails(n, draws), strict=True):
        # strictly less far out than g; the margin is that of the rounding of g
        kept = np.flatnonzero(tails > g * (1 + 1e-9))
        if not kept.size:
            return 1.0
        step = poisson(np.arange(kept[-1] - low + 1), n * (share - before))
        inside = np.convolve(inside, step)[kept[0] - low : kept[-1] - low + 1]
        low, before = int(kept[0]), float(share)
    last = poisson(n - np.arange(low, low + len(inside)), n * (1 - before))
    p = 1.0 - float(inside @ last / poisson(np.array(n), n))
    bound = min(1.0, g * len(_thresholds(draws)))
    return bound if p < 1e-9 else min(p, bound)


@dataclass(frozen=True)
class _Pool:
    """Draws and truth as one array: ``values (L + 1, cases, d)`` with the truth last, names of coordinates."""

    values: Array
    names: list[str]
    seen: list[Array]
    labels: dict[Hashable, Any]

    @property
    def draws(self) -> int:
        return int(self.values.shape[0]) - 1

    @property
    def scale(self) -> Array:
        """The sd of each coordinate over draws, truths and cases; a function that does not know which is which."""
        sd = self.values.std(axis=(0, 1))
        out: Array = np.where(sd > 0, sd, 1.0)
        return out


def _pooled(
    draws: AnyLabelled,
    truth: AnyLabelled,
    *,
    sample_dim: str,
    case_dim: str,
    nan: Nan,
    seen: list[Array] | None = None,
) -> _Pool:
    """Draws and truth, checked and flattened; without the coordinates that are NaN, or with those ``seen``."""
    pairs = paired(draws, truth, sample_dim=sample_dim, nan=nan)
    parts, names, kept = [], [], []
    for i, ((name, _), (x, y)) in enumerate(zip(variables(draws), pairs, strict=True)):
        if case_dim not in y.dims or y.sizes[case_dim] < 2:
            raise InputError(
                "draws",
                expected=f"a dim {case_dim!r} of at least 2 cases in variable {name!r}",
                got=f"sizes {dict(x.sizes)}",
                fix="condition on many simulated observations: prior.given(y, ..., batch_dim='case')",
            )
        event = [d for d in y.dims if d != case_dim]
        shape = [y.sizes[d] for d in event]
        side = [v.transpose(*lead, case_dim, *event).values for v, lead in ((x, [sample_dim]), (y, []))]
        values = np.concatenate([side[0], side[1][None]]).reshape(
            x.sizes[sample_dim] + 1, y.sizes[case_dim], -1
        )
        usable = ~np.isnan(values).any(axis=(0, 1)) if seen is None else seen[i]
        parts.append(values[:, :, usable])
        kept.append(usable)
        index = np.array(
            [f"{name}[{','.join(map(str, k))}]" if event else str(name) for k in np.ndindex(*shape)]
        )
        names += index[usable].tolist()
    if len({p.shape[:2] for p in parts}) > 1 or not names:
        raise InputError(
            "draws",
            expected="variables of one number of cases, with a coordinate that is never NaN",
            got=f"sizes {dict(draws.sizes)}",
            fix="drop the variables and cases that are no draws",
        )
    labels: dict[Hashable, Any] = {case_dim: draws[case_dim].values} if case_dim in draws.coords else {}
    return _Pool(np.concatenate(parts, axis=-1), names, kept, labels)


def _marginals(
    pool: _Pool, count: int, generator: np.random.Generator
) -> tuple[dict[str, Array], dict[str, str]]:
    """Values ``(L + 1, cases)`` of some coordinates, by name, and their kind."""
    chosen = np.sort(generator.permutation(len(pool.names))[:count])
    values = {pool.names[i]: pool.values[:, :, i] for i in chosen}
    return values, dict.fromkeys(values, "marginal")


def _projections(pool: _Pool, count: int, generator: np.random.Generator) -> dict[str, Array]:
    """Values of unit combinations of the coordinates over their sd."""
    d = len(pool.names)
    u = generator.normal(size=(d, count if d > 1 else 0))
    u /= np.linalg.norm(u, axis=0) if u.size else 1.0
    projected = np.einsum("lnd,dk->kln", pool.values / pool.scale, u)
    return {f"projection {k}": v for k, v in enumerate(projected)}


def _products(pool: _Pool, count: int, generator: np.random.Generator) -> dict[str, Array]:
    """Values of products of two coordinates less their mean in the pool of each case.

    That mean is over draws and truth alike, which keeps them exchangeable, and takes away the part that is the
    same for all of them.
    """
    d, pairs = len(pool.names), set[tuple[int, int]]()
    while len(pairs) < min(count, d * (d - 1) // 2):
        gap = min(d - 1, int(np.exp(generator.uniform(0.0, np.log(d)))))
        first = int(generator.integers(d - gap))
        pairs.add((first, first + gap))
    out = {}
    for i, j in sorted(pairs):
        one, other = (v - v.mean(axis=0) for v in (pool.values[:, :, i], pool.values[:, :, j]))
        out[f"{pool.names[i]} * {pool.names[j]}"] = one * other
    return out


def _called(
    name: str, function: Quantity, draws: AnyLabelled, truth: AnyLabelled, sample_dim: str, case_dim: str
) -> Array:
    """Values of the caller's quantity, checked."""
    import xarray as xr

    sides = []
    for fields, dims in ((draws, (sample_dim, case_dim)), (truth, (case_dim,))):
        value = function(fields)
        if not isinstance(value, xr.DataArray) or set(value.dims) != set(dims):
            raise InputError(
                "quantities",
                expected=f"a DataArray with dims {dims} from {name!r}",
                got=f"dims {value.dims}" if isinstance(value, xr.DataArray) else type(value).__name__,
                fix="reduce over the dims of the state and keep the others",
            )
        if not bool(np.isfinite(value.values).all()):
            raise InputError(
                "quantities", expected="finite values", got=f"others from {name!r}", fix="look at it"
            )
        sides.append(value.transpose(*dims).values.astype(np.float64))
    return np.concatenate([sides[0], sides[1][None]])


def _ranks(pool: Array, seed: int, purpose: str) -> Array:
    """Rank of the last row ``(cases,)`` of ``(L + 1, cases)`` among the others, ties broken at random."""
    below, equal = ((op(pool[:-1], pool[-1])).sum(axis=0) for op in (np.less, np.equal))
    u = Streams(seed, [0], purpose=purpose).numpy()[0].random(below.shape)
    return np.asarray(below + np.floor(u * (equal + 1)), dtype=np.int64)


def _attrs(pool: _Pool, tested: str) -> dict[str, Any]:
    """What the result says of itself."""
    return {"draws": pool.draws, "cases": int(pool.values.shape[1]), "tested": tested}


def _two_sets(draws: AnyLabelled, reference: AnyLabelled, sample_dim: str) -> tuple[Array, Array]:
    """Both sets as ``(n, d)``, checked."""
    check_draws(draws, sample_dim, minimum=20)
    # two sets of points: their labels along the sample dim say nothing
    sides = [
        s.drop_vars(sample_dim, errors="ignore") if hasattr(s, "drop_vars") else s for s in (draws, reference)
    ]
    check_same(sides[0], sides[1], "`draws`", argument="reference")
    sets = []
    for name, side in (("draws", draws), ("reference", reference)):
        columns = []
        for _, v in variables(side):
            columns.append(v.transpose(sample_dim, ...).values.reshape(v.sizes[sample_dim], -1))
        points = np.concatenate(columns, axis=1).astype(np.float64)
        if not bool(np.isfinite(points).all()):
            raise InputError(
                name, expected="finite values", got="NaN or infinite ones", fix="drop those points"
            )
        sets.append(points)
    return sets[0], sets[1]


def _classified(
    points: Array, label: Array, train: Array, test: Array, generator: np.random.Generator
) -> Array:
    """What a network trained on some points says of others, 0 or 1."""
    import warnings

    try:
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier
    except ImportError as error:
        raise MissingDependencyError("scikit-learn", "data", "c2st") from error
    width = 10 * points.shape[1]
    net = MLPClassifier(
        hidden_layer_sizes=(width, width), max_iter=1000, random_state=int(generator.integers(2**31))
    )
    with warnings.catch_warnings():
        # an unconverged network is a valid classifier: the test is as exact, and weaker
        warnings.simplefilter("ignore", ConvergenceWarning)
        said: Array = net.fit(points[train], label[train]).predict(points[test])
    return said
