"""Bad inputs through the public API: refused before any compute, naming argument, expected, got and fix."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
import xarray as xr

import sciddiff as sd
from sciddiff import covariance as cov
from sciddiff import noise, operators, plot, solvers
from sciddiff.errors import InputError, MethodError
from sciddiff.operators import Identity, LinearOperator, Operator
from sciddiff.testing import check_noise, check_operator, check_prior

matplotlib.use("agg")

LAT = [10.0, 20.0, 30.0]
SPACE = sd.Space({"lat": LAT}, {"t": "K"})
SEEN = sd.Space({"station": ["a", "b"]}, {"y": "K"})
EYE = cov.white((3,))


class Silent(LinearOperator):
    """The first two values, but not to be called."""

    domain, codomain = SPACE, SEEN

    def apply(self, x):
        raise AssertionError("the operator was called before the input was refused")

    adjoint = apply


class Bent(Operator):
    """An operator that is not linear, not to be called."""

    domain, codomain = SPACE, SEEN
    apply = Silent.apply


class SilentPrior(sd.Prior):
    """A Gaussian prior whose denoiser is not to be called."""

    def __init__(self) -> None:
        inner = sd.GaussianPrior(SPACE, EYE)
        for name in ("space", "normalisation", "reference", "sigma_min", "sigma_max", "dtype", "device"):
            setattr(self, name, getattr(inner, name))

    def denoise(self, z, sigma):
        raise AssertionError("the denoiser was called before the input was refused")


PRIOR, SILENT, BENT, NOISE = SilentPrior(), Silent(), Bent(), noise.Gaussian(0.1)
POSTERIOR = PRIOR.given([1.0, 2.0], SILENT, NOISE)
SERIES = sd.Space({"time": pd.date_range("2000-01-01", periods=6, freq="MS")}, "t")
SERIES_PRIOR = sd.GaussianPrior(SERIES, cov.white((6,)))
KELVIN_PRIOR = sd.GaussianPrior(sd.Space(SERIES.coords, {"t": "K"}), cov.white((6,)))
PAIR_PRIOR = sd.GaussianPrior(sd.Space(SERIES.coords, ["t", "u"]), cov.white((2, 6)))
MONTHS = pd.Series(np.zeros(3), index=pd.date_range("2000-01-01", periods=3, freq="MS"))
DRAWS = sd.GaussianPrior(SPACE, EYE).sample(8, seed=0)
LABELLED = xr.DataArray([1.0, 2.0], dims="station", coords={"station": ["a", "b"]}, attrs={"units": "K"})


def in_units(units: str) -> xr.DataArray:
    return MONTHS.rename_axis("time").to_xarray().assign_attrs(units=units)


def given(
    y: Any = (1.0, 2.0), operator: Any = SILENT, law: Any = NOISE, **options: Any
) -> Callable[[], object]:
    return lambda: PRIOR.given(list(y) if isinstance(y, tuple) else y, operator, law, **options)


def sample(
    n: Any = 4, method: Any = None, seed: Any = 0, posterior: Any = POSTERIOR, **options: Any
) -> Callable[[], object]:
    return lambda: posterior.sample(n, method, seed=seed, **options)


def prior(*args: Any, **options: Any) -> Callable[[], object]:
    return lambda: sd.GaussianPrior(*args, **options)


def unconditional(n: Any = 4, seed: Any = 0, **options: Any) -> Callable[[], object]:
    return lambda: PRIOR.sample(n, seed=seed, **options)


def train(data: Any = None, space: Any = SPACE, seed: Any = 0, **options: Any) -> Callable[[], object]:
    data = np.random.default_rng(0).standard_normal((20, 3)) if data is None else data
    return lambda: sd.train(data, space, **{"network": "mlp", "steps": 2, "seed": seed, **options})


# what it is -> (the argument that the message has to name, the call)
CASES: dict[str, tuple[str, Callable[[], object]]] = {
    # the observation
    "y: NaN": ("y", given((1.0, math.nan))),
    "y: infinite": ("y", given((1.0, math.inf))),
    "y: infinite beside a mask": ("y", given((math.nan, math.inf), missing="mask")),
    "y: empty": ("y", given([])),
    "y: 0-d": ("y", given(1.0)),
    "y: too long": ("y", given((1.0, 2.0, 3.0))),
    "y: broadcastable, of length one": ("y", given([1.0])),
    "y: broadcastable, with a leading one": ("y", given([[1.0, 2.0]])),
    "y: a batch without a name": ("y", given(np.zeros((5, 2)))),
    "y: a string": ("y", given("ab")),
    "y: strings": ("y", given(np.array(["1", "2"]))),
    "y: objects": ("y", given(np.array([1.0, None], dtype=object))),
    "y: complex": ("y", given(np.array([1.0, 2.0j]))),
    "y: dates": ("y", given(np.array(["2000", "2001"], dtype="datetime64[Y]"))),
    "y: ragged": ("y", given([[1.0], [1.0, 2.0]])),
    "y: masked": ("y", given(np.ma.masked_array([1.0, 2.0], [False, True]))),
    "y: sparse": ("y", given(torch.zeros(2).to_sparse())),
    "y: None": ("y", given(None)),
    "y: a function": ("y", given(np.zeros)),
    "y: another dim": ("y", given(LABELLED.rename(station="place"))),
    "y: other labels": ("y", given(LABELLED.assign_coords(station=["a", "c"]))),
    "y: labels in another order": ("y", given(LABELLED[::-1])),
    "y: repeated labels": ("y", given(LABELLED.assign_coords(station=["a", "a"]))),
    "y: other units": ("y", given(LABELLED.assign_attrs(units="degC"))),
    "y: another variable": ("y", given(LABELLED.to_dataset(name="rain"))),
    "y: an empty batch": ("y", given(np.zeros((0, 2)), batch_dim="case")),
    "y: counts with a fraction": ("y", given((1.0, 2.5), law=noise.Poisson())),
    "y: negative counts": ("y", given((1.0, -2.0), law=noise.Poisson())),
    # the rest of an observation
    "operator: a function": ("operator", given(operator=lambda x: x)),
    "operator: a class": ("operator", given(operator=Silent)),
    "operator: a matrix": ("operator", given(operator=np.eye(2, 3))),
    "operator: of another space": ("operator", given(operator=Identity(sd.Space({"lat": 4}, "t")))),
    "operator: of other coords": (
        "operator",
        given(operator=Identity(sd.Space({"lat": [1.0, 2.0, 3.0]}, "t"))),
    ),
    "operator: of other units": ("operator", given(operator=Identity(sd.Space({"lat": LAT}, {"t": "degC"})))),
    "noise: a number": ("noise", given(law=0.1)),
    "noise: a class": ("noise", given(law=noise.Gaussian)),
    "noise: of another length": ("sd", given(law=noise.Gaussian([0.1, 0.1, 0.1]))),
    "noise: broadcastable": ("sd", given(law=noise.Gaussian([0.1]))),
    "noise: a covariance of another shape": ("covariance", given(law=noise.Gaussian(covariance=EYE))),
    "missing: unknown": ("missing", given(missing="drop")),
    "batch_dim: the dim of draws": ("batch_dim", given(np.zeros((5, 2)), batch_dim="sample")),
    "batch_dim: a dim of the states": ("batch_dim", given(np.zeros((5, 2)), batch_dim="lat")),
    "batch_dim: no name": ("batch_dim", given(np.zeros((5, 2)), batch_dim=0)),
    "batch_dim: not that of the first": (
        "batch_dim",
        lambda: POSTERIOR.given(np.zeros((5, 2)), SILENT, NOISE, batch_dim="case"),
    ),
    # noise
    "sd: zero": ("sd", lambda: noise.Gaussian(0)),
    "sd: negative": ("sd", lambda: noise.Gaussian(-0.1)),
    "sd: NaN": ("sd", lambda: noise.Gaussian([0.1, math.nan])),
    "sd: a string": ("sd", lambda: noise.Gaussian("0.1")),
    "sd: absent": ("sd", lambda: noise.Gaussian()),
    "sd: besides a covariance": ("sd", lambda: noise.Gaussian(0.1, covariance=EYE)),
    "covariance of noise: a matrix": ("covariance", lambda: noise.Gaussian(covariance=np.eye(2))),
    "covariance of noise: of low rank": (
        "covariance",
        lambda: noise.Gaussian(covariance=cov.diagonal([1.0, 0.0])),
    ),
    "scale: zero": ("scale", lambda: noise.Laplace(0.0)),
    "df: negative": ("df", lambda: noise.StudentT(-1, 0.1)),
    "exposure: zero": ("exposure", lambda: noise.Poisson(0)),
    # sampling
    "n: zero": ("n", sample(0)),
    "n: negative": ("n", sample(-3)),
    "n: a fraction": ("n", sample(2.0)),
    "n: a bool": ("n", sample(True)),
    "n: a string": ("n", sample("4")),
    "seed: None": ("seed", sample(seed=None)),
    "seed: a fraction": ("seed", sample(seed=0.0)),
    "seed: a bool": ("seed", sample(seed=True)),
    "seed: negative": ("seed", sample(seed=-1)),
    "seed: too large": ("seed", sample(seed=2**64)),
    "seed: a generator": ("seed", sample(seed=np.random.default_rng(0))),
    "method: a class": ("method", sample(method=sd.MMPS)),
    "method: a name": ("method", sample(method="mmps")),
    "method: a solver": ("method", sample(method=solvers.Heun())),
    "solver: a class": ("solver", sample(solver=solvers.Heun)),
    "solver: a name": ("solver", sample(solver="heun")),
    "solver: a method": ("solver", sample(solver=sd.MMPS())),
    "steps: one": ("steps", sample(steps=1)),
    "steps: a fraction": ("steps", sample(steps=10.0)),
    "steps: a bool": ("steps", sample(steps=True)),
    "chunk: zero": ("chunk", sample(chunk=0)),
    "chunk: a fraction": ("chunk", sample(chunk=1.5)),
    "progress: a word": ("progress", sample(progress="yes")),
    "method: linear, on an operator that is not": (
        "method",
        sample(method=sd.MMPS(), posterior=PRIOR.given([1.0, 2.0], BENT, NOISE)),
    ),
    "method: Gaussian, on counts": (
        "method",
        sample(method=sd.MMPS(), posterior=PRIOR.given([1.0, 2.0], SILENT, noise.Poisson())),
    ),
    "method: with gradients, on a black box": (
        "method",
        sample(
            method=sd.DPS(),
            posterior=PRIOR.given([1.0, 2.0], operators.black_box(Silent.apply, SPACE, SEEN), NOISE),
        ),
    ),
    "x: of another shape": ("x", lambda: POSTERIOR.log_likelihood(torch.zeros(2, 4))),
    "x: without a batch": ("x", lambda: POSTERIOR.log_likelihood(torch.zeros(3))),
    "cases: of another length": (
        "cases",
        lambda: POSTERIOR.log_likelihood(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long)),
    ),
    "cases: beyond those there are": (
        "cases",
        lambda: POSTERIOR.log_likelihood(torch.zeros(2, 3), torch.tensor([0, 1])),
    ),
    "n of the prior: zero": ("n", unconditional(0)),
    "seed of the prior: None": ("seed", unconditional(seed=None)),
    "steps of the prior: one": ("steps", unconditional(steps=1)),
    "chunk of the prior: zero": ("chunk", unconditional(chunk=0)),
    "solver of the prior: a class": ("solver", unconditional(solver=solvers.Euler)),
    # priors
    "space: an int": ("space", prior(3, EYE)),
    "space: a shape": ("space", prior((3,), EYE)),
    "covariance: a matrix": ("covariance", prior(SPACE, np.eye(3))),
    "covariance: a number": ("covariance", prior(SPACE, 1.0)),
    "covariance: of another shape": ("covariance", prior(SPACE, cov.white((4,)))),
    "covariance: zero": ("covariance", prior(SPACE, cov.diagonal(np.zeros(3)))),
    "mean: NaN": ("mean", prior(SPACE, EYE, [0.0, math.nan, 0.0])),
    "mean: a number": ("mean", prior(SPACE, EYE, 0.0)),
    "mean: broadcastable": ("mean", prior(SPACE, EYE, [0.0])),
    "mean: complex": ("mean", prior(SPACE, EYE, [0j, 0j, 0j])),
    "reference: a matrix": ("reference", prior(SPACE, EYE, reference=np.eye(3))),
    "reference: of another shape": ("reference", prior(SPACE, EYE, reference=cov.white((4,)))),
    "reference: without part of the prior": ("reference", prior(SPACE, EYE, reference=cov.centred((3,)))),
    "sigma_max: too small": ("sigma_max", prior(SPACE, EYE, sigma_max=4.9)),
    "sigma_max: NaN": ("sigma_max", prior(SPACE, EYE, sigma_max=math.nan)),
    "sigma_max: a string": ("sigma_max", prior(SPACE, EYE, sigma_max="80")),
    "sigma_min: zero": ("sigma_min", prior(SPACE, EYE, sigma_min=0.0)),
    "sigma_min: above sigma_max": ("sigma_min", prior(SPACE, EYE, sigma_min=100.0)),
    "dtype: of integers": ("dtype", prior(SPACE, EYE, dtype=torch.int64)),
    "dtype: complex": ("dtype", prior(SPACE, EYE, dtype=torch.complex64)),
    "dtype: of numpy": ("dtype", prior(SPACE, EYE, dtype=np.float64)),
    "data: one state": ("data", lambda: sd.GaussianPrior.fit(np.zeros((1, 3)), SPACE)),
    "data: NaN": ("data", lambda: sd.GaussianPrior.fit([[0.0, 1.0, math.nan]] * 3, SPACE)),
    "kind: unknown": ("kind", lambda: sd.GaussianPrior.fit(np.eye(3), SPACE, kind="full")),
    "shrinkage: beyond 1": ("shrinkage", lambda: sd.GaussianPrior.fit(np.eye(3), SPACE, shrinkage=2.0)),
    "weights: negative": (
        "weights",
        lambda: sd.GaussianMixturePrior(SPACE, [2.0, -1.0], np.zeros((2, 3)), 1.0),
    ),
    "means: too few": ("means", lambda: sd.GaussianMixturePrior(SPACE, [0.5, 0.5], np.zeros((1, 3)), 1.0)),
    "bandwidth: negative": ("bandwidth", lambda: sd.EmpiricalPrior(SPACE, np.eye(3), bandwidth=-1.0)),
    "predicts: unknown": (
        "predicts",
        lambda: sd.Prior.from_network(SILENT, SPACE, predicts="x1", path="vp", sigma_max=80.0),
    ),
    "path: unknown": (
        "path",
        lambda: sd.Prior.from_network(SILENT, SPACE, predicts="noise", path="vq", sigma_max=80.0),
    ),
    "file of a prior: missing": ("path", lambda: sd.load_prior("no_such_prior")),
    "relabel: another shape": ("space", lambda: PRIOR.relabel(sd.Space({"lat": 4}, "t"))),
    # spaces and covariances
    "coords: an int": ("coords", lambda: sd.Space(3)),
    "coords: repeated": ("coords", lambda: sd.Space({"x": [0.0, 0.0]})),
    "coords: NaN": ("coords", lambda: sd.Space({"x": [0.0, math.nan]})),
    "variables: repeated": ("variables", lambda: sd.Space({"x": 3}, ["a", "a"])),
    "edges: beyond the nodes": ("edges", lambda: sd.Space({"node": 2}, edges=[[0], [2]])),
    "matrix: asymmetric": ("matrix", lambda: cov.dense([[1.0, 0.5], [0.0, 1.0]])),
    "matrix: not positive": ("matrix", lambda: cov.dense([[1.0, 2.0], [2.0, 1.0]])),
    "matrix: singular precision": ("matrix", lambda: cov.precision(sp.csc_matrix((2, 2)))),
    "variances: negative": ("variances", lambda: cov.diagonal([1.0, -1.0])),
    "eigenvalues: negative": ("eigenvalues", lambda: cov.spectral((2,), [1.0, -1.0], "neumann")),
    # operators
    "observe: a state of another shape": ("x", lambda: Identity(SPACE).observe([1.0], NOISE, seed=0)),
    "observe: without a seed": ("seed", lambda: Identity(SPACE).observe([1.0, 2, 3], NOISE, seed=None)),
    "observe: noise of another shape": (
        "sd",
        lambda: Identity(SPACE).observe([1.0, 2, 3], noise.Gaussian([0.1]), seed=0),
    ),
    "observe: a number for noise": ("noise", lambda: Identity(SPACE).observe([1.0, 2, 3], 0.1, seed=0)),
    "call: without a batch": ("x", lambda: Identity(SPACE)(torch.zeros(3))),
    "chain: ends that do not meet": ("inner", lambda: Identity(SEEN) @ Identity(SPACE)),
    "matrix of an operator: of another shape": ("matrix", lambda: operators.Matrix(SPACE, SEEN, np.eye(3))),
    "black box: gradients": (
        "operator",
        lambda: operators.black_box(Silent.apply, SPACE, SEEN).vjp(torch.zeros(1, 3), torch.zeros(1, 2)),
    ),
    # methods and solvers
    "rtol: zero": ("rtol", lambda: sd.MMPS(rtol=0.0)),
    "covariance of MMPS: unknown": ("covariance", lambda: sd.MMPS(covariance="full")),
    "posterior: a prior": ("posterior", lambda: sd.methods_for(PRIOR)),
    "steps of a solver: one": ("steps", lambda: sample(solver=solvers.Heun(steps=1))()),
    # training, forecasts, results, plots
    "train: NaN": ("data", train(np.full((20, 3), math.nan))),
    "train: another shape": ("data", train(np.zeros((20, 4)))),
    "train: no space": ("space", train(space=(3,))),
    "train: no steps": ("steps", train(steps=0)),
    "train: no seed": ("seed", train(seed=None)),
    "train: unknown network": ("network", train(network="resnet")),
    "forecast: in the past": (
        "horizon",
        lambda: sd.forecast(SERIES_PRIOR, MONTHS, horizon=["2000-02-01"], seed=0),
    ),
    "forecast: one unsorted date": (
        "history",
        lambda: sd.forecast(SERIES_PRIOR, MONTHS.iloc[[0, 2, 1]], horizon=2, seed=0),
    ),
    "forecast: a duplicated time": (
        "history",
        lambda: sd.forecast(SERIES_PRIOR, pd.concat([MONTHS, MONTHS[-1:]]), horizon=2, seed=0),
    ),
    "forecast: a unit mismatch": (
        "history",
        lambda: sd.forecast(KELVIN_PRIOR, in_units("degC"), horizon=2, seed=0),
    ),
    "forecast: a covariate with a hole": (
        "covariates",
        lambda: sd.forecast(PAIR_PRIOR, MONTHS.rename("t"), horizon=2, covariates=MONTHS.rename("u"), seed=0),
    ),
    "forecast: errors of zero": (
        "obs_std",
        lambda: sd.forecast(SERIES_PRIOR, MONTHS, horizon=2, obs_std=0.0, seed=0),
    ),
    "forecast: noise twice": (
        "noise",
        lambda: sd.forecast(SERIES_PRIOR, MONTHS, horizon=2, obs_std=0.1, noise=NOISE, seed=0),
    ),
    "forecast: no context": (
        "context",
        lambda: sd.forecast(SERIES_PRIOR, MONTHS, horizon=2, context=0, seed=0),
    ),
    "impute: infinity": ("series", lambda: sd.impute(SERIES_PRIOR, MONTHS + np.inf, seed=0)),
    "forecast: nothing ahead": ("horizon", lambda: sd.forecast(SERIES_PRIOR, MONTHS, horizon=0, seed=0)),
    "forecast: no dates": ("history", lambda: sd.forecast(SERIES_PRIOR, [1.0, 2.0], horizon=2, seed=0)),
    "impute: unsorted dates": ("series", lambda: sd.impute(SERIES_PRIOR, MONTHS[::-1], seed=0)),
    "impute: no draws": ("samples", lambda: sd.impute(SERIES_PRIOR, MONTHS, samples=0, seed=0)),
    "save: an array": ("draws", lambda: sd.save(DRAWS["t"], "never.nc")),
    "load: no such file": ("path", lambda: sd.load("no_such_file.nc")),
    "to_arviz: no draws": ("draws", lambda: sd.to_arviz(DRAWS.mean("sample"))),
    "summary: a truth of other coords": (
        "truth",
        lambda: sd.summary(DRAWS, truth=DRAWS.isel(sample=0).assign_coords(lat=[1.0, 2, 3])),
    ),
    "plot: numbers without labels": ("draws", lambda: plot.fields(np.zeros((3, 3)))),
    "plot: no draws": ("draws", lambda: plot.fan(DRAWS.mean("sample"))),
    "plot: no history": ("history", lambda: plot.loss(3)),
    "problem: unknown": ("problem", lambda: sd.problem("no_such_problem")),
    # checks
    "check: a function": ("operator", lambda: check_operator(np.exp)),
    "check: a number": ("noise", lambda: check_noise(0.1, (3,))),
    "check: a space": ("prior", lambda: check_prior(SPACE)),
}


@pytest.mark.parametrize("name", list(CASES))
def test_is_refused_before_compute(name):
    argument, call = CASES[name]
    with pytest.raises(InputError) as caught:
        call()
    error = caught.value
    assert error.argument == argument
    for part in (f"`{argument}`", "expected ", "got ", "To fix it: "):
        assert part in str(error)
    # each part says something, and the fix is not what was expected over again
    expected = str(error).split("expected ", 1)[1].split(", got ")[0]
    assert len(expected) > 5 and len(error.fix) > 5 and error.got and error.fix != error.expected


def test_the_suite_is_as_large_as_promised():
    assert len(CASES) >= 60


def test_a_method_that_does_not_fit_names_those_that_do():
    posterior = PRIOR.given([1.0, 2.0], BENT, NOISE)
    with pytest.raises(MethodError) as caught:
        posterior.sample(4, sd.MMPS(), seed=0)
    assert "Bent" in caught.value.got and "EnsembleKalman" in caught.value.fix


def test_a_seed_has_to_be_given():
    with pytest.raises(TypeError, match="seed"):
        POSTERIOR.sample(4)
    with pytest.raises(TypeError, match="seed"):
        PRIOR.sample(4)
