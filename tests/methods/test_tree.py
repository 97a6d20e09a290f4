"""Trees of partial denoisings: their values, their walks and their bookkeeping."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

import sciddiff as sd
from sciddiff.errors import DivergenceError, InputError
from sciddiff.methods.base import Run
from sciddiff.methods.search import Judge, families
from sciddiff.methods.tree import TreeSampling, _Trees
from sciddiff.testing import check_method
from sciddiff.testing.exact import gaussian, mixture

pytestmark = pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")

BIASED = {"mean": "few rollouts", "covariance": "few rollouts"}
SPACE = sd.Space({"i": 2})


def posterior(**settings) -> sd.Posterior:
    operator = sd.operators.black_box(
        settings.pop("function", lambda x: x[:1] * x[1:]), SPACE, sd.Space({"j": 1}, "y"), **settings
    )
    prior = sd.GaussianPrior(SPACE, sd.covariance.dense([[1.0, 0.4], [0.4, 0.5]]))
    return prior.given([0.8], operator, sd.noise.Laplace(0.5))


def grown(method: TreeSampling, given: sd.Posterior, n: int = 1) -> tuple[_Trees, Run]:
    run = Run(given, method, n, seed=0, solver=None, steps=None, chunk=None, progress=False)
    (rows,) = families(run, method.rollouts, "tree")
    with torch.no_grad():
        trees, judge = _Trees(run, method, rows, method.steps), Judge(run)
        for i in range(method.rollouts):
            trees.grow(i, judge)
    return trees, run


@pytest.mark.parametrize("choice", ["weighted", "best"])
def test_it_keeps_the_contract_of_methods(choice):
    check_method(TreeSampling(8, steps=3, choice=choice), draws=30, expected_failures=BIASED)


@pytest.mark.parametrize("kind", ["series", "grid", "graph"])
def test_single_precision_stays_single_and_close_on_every_kind_of_space(kind):
    problem = gaussian(kind, 0).posterior
    seen = problem.observations[0]
    single = sd.posterior.Posterior(problem.prior.to(dtype=torch.float32), ())
    single = single.given(seen.y[0].float(), seen.operator, seen.noise)
    x, y = (
        next(iter(p.sample(2, TreeSampling(6, steps=4), seed=0).data_vars.values()))
        for p in (problem, single)
    )
    assert y.dtype == np.float32 and x.dtype == np.float64
    np.testing.assert_allclose(y, x, atol=2e-2 * float(np.abs(x).max()))


def test_a_value_is_the_log_mean_exp_of_the_children_and_every_node_has_one_parent():
    method = TreeSampling(40, steps=4, lam=0.5)
    trees, run = grown(method, posterior(), n=3)
    for row in range(3):
        for depth in range(4):
            present = [0] if depth == 0 else torch.nonzero(trees.parents[row, depth] >= 0)[:, 0].tolist()
            for node in present:
                own = torch.nonzero(trees.parents[row, depth + 1] == node)[:, 0]
                assert 1 <= len(own) <= math.ceil(float(trees.visits[row, depth, node]) ** method.power)
                expected = trees.values[row, depth + 1, own].logsumexp(0) - math.log(len(own))
                assert float(trees.values[row, depth, node]) == pytest.approx(float(expected))
        assert int(trees.visits[row, 0, 0]) == 40
    leaves = torch.nonzero(trees.parents[:, -1] >= 0)
    x = run.prior.normalisation.physical(trees.z[leaves[:, 0], leaves[:, 1], -1])
    like = run.posterior.log_likelihood(x)
    torch.testing.assert_close(trees.values[leaves[:, 0], -1, leaves[:, 1]], 0.5 * like)
    # every forward made a node: the start twice, for its mean and itself, and no leaf
    inner = int((trees.parents[:, 1:-1] >= 0).sum())
    assert run.cost.forwards == inner + 3 + 1
    assert run.cost.operator_calls == len(leaves)


def test_a_walk_comes_to_a_leaf_with_the_product_of_its_choices():
    trees, _ = grown(TreeSampling(12, steps=3), posterior())
    share = torch.zeros(12, dtype=torch.float64)

    def go(depth: int, node: int, p: float) -> None:
        if depth == 3:
            share[node] += p
            return
        own = torch.nonzero(trees.parents[0, depth + 1] == node)[:, 0]
        for child, q in zip(own.tolist(), trees.values[0, depth + 1, own].softmax(0).tolist(), strict=True):
            go(depth + 1, child, p * q)

    go(0, 0, 1.0)
    found = torch.zeros_like(share)
    for _ in range(2000):
        (same,) = torch.nonzero((trees.z[0, :, -1] == trees.leaf()[0]).all(1))[0]
        found[same] += 1
    common = share > 5 / 2000
    expected = 2000 * share[common] / share[common].sum()
    seen = found[common] * 2000 / found[common].sum()
    assert stats.chisquare(seen.numpy(), expected.numpy()).pvalue > 1e-4
    assert bool((found[share == 0] == 0).all())


def test_the_greedy_tree_returns_its_best_leaf_and_more_rollouts_find_better_ones():
    given, found = posterior(), []
    for rollouts in (2, 8, 32):
        trees, run = grown(TreeSampling(rollouts, steps=3, choice="best"), given, n=20)
        like = given.log_likelihood(run.prior.normalisation.physical(trees.leaf()))
        torch.testing.assert_close(like, trees.values[:, -1].amax(1))
        found.append(float(like.mean()))
    assert found[0] < found[1] < found[2]


def test_a_mixture_is_walked_down_the_plain_chain():
    problem = mixture(0, data=1, d=2)
    draws = problem.posterior.sample(6, TreeSampling(24, steps=8), seed=0)
    like = problem.posterior.log_likelihood(torch.as_tensor(next(iter(draws.data_vars.values())).values))
    prior = problem.posterior.prior.sample(200, seed=0)
    plain = problem.posterior.log_likelihood(torch.as_tensor(next(iter(prior.data_vars.values())).values))
    assert float(like.median()) > float(plain.quantile(0.75))


@pytest.mark.parametrize("chunk", [None, 1])
def test_failed_simulations_are_never_drawn_and_are_counted_even_alone(chunk):
    def fragile(x: np.ndarray) -> np.ndarray:
        if x[0] > 0.3:
            raise ArithmeticError("no convergence")
        return x[:1] * x[1:]

    given = posterior(function=fragile, on_error="nan")
    draws = given.sample(5, TreeSampling(16, steps=3), seed=0, chunk=chunk)
    x = next(iter(draws.data_vars.values())).values
    assert (x[:, 0] <= 0.3).all() and draws.attrs["failed_members"] > 0


def test_data_that_no_leaf_can_make_are_refused():
    nothing = sd.operators.from_torch(lambda x: 0.0 * x[:, :1], SPACE, sd.Space({"j": 1}, "y"))
    given = sd.GaussianPrior(SPACE, sd.covariance.white((2,))).given([3.0], nothing, sd.noise.Poisson())
    for choice in ("weighted", "best"):
        with pytest.raises(DivergenceError, match="finite likelihood"):
            given.sample(2, TreeSampling(8, steps=3, choice=choice), seed=0)


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"rollouts": 0}, "rollouts"),
        ({"steps": 1}, "steps"),
        ({"choice": "worst"}, "choice"),
        ({"lam": 0.0}, "lam"),
        ({"power": 1.5}, "lam"),
        ({"width": 0.5}, "lam"),
        ({"lam": "a"}, "lam"),
        ({"width": True}, "lam"),
    ],
)
def test_bad_settings_are_refused(settings, argument):
    with pytest.raises(InputError) as wrong:
        TreeSampling(**settings)
    assert wrong.value.argument == argument


def test_every_case_has_an_evidence_of_its_own_and_only_of_posterior_trees():
    method, given = TreeSampling(64, steps=2), problem_of([1.5])
    one, other = (p.sample(200, method, seed=0).attrs["log_evidence"] for p in (given, problem_of([-3.0])))
    both = problem_of(np.array([[1.5], [-3.0]])).sample(200, method, seed=0).attrs["log_evidence"]
    exact = [stats.norm.logpdf(y, scale=math.sqrt(1.25)) for y in (1.5, -3.0)]
    assert isinstance(one, float) and len(both) == 2
    # the logs of the two differ by 2.7; trees of 64 leaves put the log of their mean within a tenth or so
    np.testing.assert_allclose(both, exact, atol=0.4)
    np.testing.assert_allclose([one, other], exact, atol=0.4)
    for biased in (TreeSampling(8, steps=2, lam=2.0), TreeSampling(8, steps=2, choice="best")):
        assert "log_evidence" not in given.sample(2, biased, seed=0).attrs


def problem_of(y) -> sd.Posterior:
    space = sd.Space({"i": 1})
    prior = sd.GaussianPrior(space, sd.covariance.white((1,)))
    operator = sd.operators.Matrix(space, sd.Space({"j": 1}, "y"), np.eye(1))
    return prior.given(y, operator, sd.noise.Gaussian(0.5), batch_dim=None if np.ndim(y) == 1 else "case")
