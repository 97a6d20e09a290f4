"""Which diagnostic sees which fault: predicted first, then tried on draws that are wrong in a known way.

The posteriors are known and draws are made with numpy alone. Correlated Gaussian: ``x ~ N(0, I)`` in the plane,
``y_1 = x_1 + x_2 + 0.3 n_1``, ``y_2 = x_1 - x_2 + 1.5 n_2``, so the posterior is correlated by -0.88 and by much
narrower than the prior. Two modes: ``x_1 = +-3 + 0.5 n``, unseen, and ``x_2 ~ N(0, 1)`` seen with noise.
"""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from sciddiff.diagnostics.calibration import c2st, coverage_test, sbc, tarp

H = np.array([[1.0, 1.0], [1.0, -1.0]])
NOISE = np.array([0.3, 1.5])
COV = np.linalg.inv(np.eye(2) + H.T @ np.diag(NOISE**-2) @ H)
GAIN = COV @ H.T @ np.diag(NOISE**-2)
# turns the sign of the correlation and leaves the variances alone
FLIP = np.diag([1.0, -1.0])


def gaussian(fault: str, cases: int, draws: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Truth ``(cases, 2)``, y, draws with a fault and exact ones ``(draws, cases, 2)``."""
    truth = rng.normal(size=(cases, 2))
    y = truth @ H.T + NOISE * rng.normal(size=(cases, 2))
    mean, root = y @ GAIN.T, np.linalg.cholesky(COV)
    off, exact = (rng.normal(size=(draws, cases, 2)) @ root.T for _ in range(2))
    sd = np.sqrt(np.diag(COV))
    x = {
        "exact": mean + off,
        "shift": mean + off + sd,
        "half spread": mean + off / 2,
        "double spread": mean + off * 2,
        "flipped correlation": mean + off @ FLIP,
        "prior only": rng.normal(size=off.shape),
        "permuted": np.roll(mean, 1, axis=0) + off,
    }[fault]
    return truth, y, x, mean + exact


def two_modes(fault: str, cases: int, draws: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """The same; the fault keeps one mode a case, picked by a coin."""

    def law(*shape: int) -> np.ndarray:
        return np.where(rng.random(shape) < 0.5, 3.0, -3.0) + 0.5 * rng.normal(size=shape)

    truth = np.stack([law(cases), rng.normal(size=cases)], axis=-1)
    noise = 0.5
    y2 = truth[:, 1] + noise * rng.normal(size=cases)
    gain = 1 / (1 + noise**2)
    sets = []
    for _ in range(2):
        second = gain * y2 + np.sqrt(1 - gain) * rng.normal(size=(draws, cases))
        sets.append(np.stack([law(draws, cases), second], axis=-1))
    if fault == "dropped mode":
        kept = np.where(rng.random(cases) < 0.5, 1.0, -1.0)
        sets[0][..., 0] = kept * np.abs(sets[0][..., 0])
    return truth, np.stack([0 * y2, y2], axis=-1), sets[0], sets[1]


def labelled(*arrays: np.ndarray) -> list[xr.DataArray]:
    return [xr.DataArray(a, dims=("sample", "case", "x")[-a.ndim :], name="u") for a in arrays]


def p_values(fault: str, seed: int, cases: int = 300, draws: int = 99) -> dict[str, float]:
    """The overall p-value of every diagnostic on draws with a fault."""
    rng = np.random.default_rng(seed)
    mixed = fault in ("dropped mode", "exact, two modes")
    truth, y, x = labelled(*(two_modes if mixed else gaussian)(fault, cases, draws, rng)[:3])
    if mixed:

        def likelihood(u: xr.DataArray) -> xr.DataArray:
            return -((y.isel(x=1) - u.isel(x=1)) ** 2)
    else:
        matrix = xr.DataArray(H / NOISE[:, None], dims=("datum", "x"))
        data = xr.DataArray(y.values / NOISE, dims=("case", "datum"))

        def likelihood(u: xr.DataArray) -> xr.DataArray:
            return -((data - xr.dot(u, matrix, dim="x")) ** 2).sum("datum")

    ranked = sbc(x, truth, quantities={"log-likelihood": likelihood}, seed=seed)
    by_kind = ranked["p_quantity"].groupby("kind")
    out = {f"SBC {k}": min(1.0, float(p.min()) * p.size) for k, p in by_kind}
    # the back-projection of the data, a function of y alone
    estimate = truth.copy(data=y.values if mixed else y.values @ H)
    out["TARP random"] = float(tarp(x, truth, seed=seed).p_value)
    out["TARP given y"] = float(tarp(x, truth, references=estimate, seed=seed).p_value)
    covered = coverage_test(x, truth, levels=(0.5, 0.9), seed=seed)
    for level in (0.5, 0.9):
        p = covered["p_quantity"].sel(level=level)
        out[f"coverage {level}"] = min(1.0, float(p.min()) * p.size)
    # one case, many draws: every draw of a set has to be independent of the others
    one = (two_modes if mixed else gaussian)(fault, 2, 300, rng)
    a, b = labelled(one[2][:, 0], one[3][:, 0])
    pair = [v.rename(case="sample") for v in (a, b)]
    out["C2ST"] = float(c2st(*pair, folds=2, seed=seed).p_value)
    return out


DIAGNOSTICS = [
    "SBC marginal",
    "SBC log-likelihood",
    "SBC projection",
    "SBC product",
    "TARP random",
    "TARP given y",
    "coverage 0.5",
    "coverage 0.9",
    "C2ST",
]

# S: sees it. -: blind, for what it ranks has the same law under the fault, given all that it looks at.
PREDICTED = {
    #                      marg  ll   proj  prod  TARP  TARPy c50  c90  C2ST
    "exact":               "-     -    -     -     -     -     -    -    -",
    "exact, two modes":    "-     -    -     -     -     -     -    -    -",
    "shift":               "S     S    S     S     S     S     S    S    S",
    "half spread":         "S     S    S     S     S     S     S    S    S",
    "double spread":       "S     S    S     S     S     S     S    S    S",
    # the marginals are right, and only they: every other quantity mixes coordinates
    "flipped correlation": "-     S    S     S     S     S     -    -    S",
    # its mode holds half of the truths; the likelihood does not depend on the coordinate with the modes, and a
    # reference half-way between two modes is as far from the one as from the other
    "dropped mode":        "S     -    S     S     S     -     S    S    S",
    # truth and draws are independent draws of one law: only what holds y can tell
    "prior only":          "-     S    -     -     -     S     -    -    S",
    "permuted":            "S     S    S     S     S     S     S    S    S",
}  # fmt: skip


@pytest.mark.parametrize("seed", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in (1, 2, 3))])
@pytest.mark.parametrize("fault", PREDICTED)
def test_every_diagnostic_sees_what_it_can_and_nothing_else(fault, seed):
    p = p_values(fault, seed)
    found = dict(zip(DIAGNOSTICS, ("S" if p[d] < 1e-4 else "-" for d in DIAGNOSTICS), strict=True))
    assert found == dict(zip(DIAGNOSTICS, PREDICTED[fault].split(), strict=True)), p


def test_every_fault_is_seen_by_one_diagnostic_at_least():
    assert all("S" in row for fault, row in PREDICTED.items() if not fault.startswith("exact"))


def test_few_exact_runs_are_accused():
    false_alarms(100)


@pytest.mark.slow
def test_of_1000_exact_runs_each_diagnostic_accuses_its_level():
    false_alarms(1000)


def false_alarms(runs: int, cases: int = 80, draws: int = 19) -> None:
    """Hold the share of exact runs with a p-value up to a level to its 99.9 % binomial band."""
    each, overall = {}, {}
    for seed in range(runs):
        truth, y, x, _ = labelled(*gaussian("exact", cases, draws, np.random.default_rng(seed)))

        def likelihood(u: xr.DataArray, y: np.ndarray = y.values) -> xr.DataArray:
            residual = (y - u.values @ H.T) / NOISE
            return xr.DataArray(-(residual**2).sum(-1), dims=u.dims[:-1])

        ranked = sbc(
            x, truth, quantities={"log-likelihood": likelihood}, projections=1, products=1, seed=seed
        )
        given = tarp(x, truth, references=truth.copy(data=y.values @ H), seed=seed)
        covered = coverage_test(x, truth, levels=(0.5,), marginals=1, seed=seed)
        ps = dict(zip(ranked["quantity"].values, ranked["p_quantity"].values, strict=True))
        ps |= {"TARP": float(tarp(x, truth, seed=seed).p_value), "TARP given y": float(given.p_value)}
        for name, p in ps.items():
            each.setdefault(name, []).append(p)
        for name, p in {"SBC": float(ranked.p_value), "coverage": float(covered.p_value)}.items():
            overall.setdefault(name, []).append(p)
    for level in (0.01, 0.05, 0.2):
        low, high = stats.binom.interval(0.999, runs, level)
        for name, p in each.items():
            alarms = (np.array(p) <= level).sum()
            assert low <= alarms <= high, f"{name}: {alarms} of {runs} at level {level}"
        for name, p in overall.items():  # Bonferroni and whole numbers of hits can only lower these
            alarms = (np.array(p) <= level).sum()
            assert alarms <= high, f"{name}: {alarms} of {runs} at level {level}"
