"""A year ahead of El Niño: real sea-surface temperatures, two priors over windows, and what forecasters use.

A state is a window of 24 months. Twelve months seen and twelve to come, or a gap in the middle: it is one
posterior, and only the mask differs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.linalg
import torch

import sciddiff as sd
from sciddiff.bench.catalog import dataset, module
from sciddiff.bench.problem import Figure, Metric, Problem, Result
from sciddiff.diagnostics import coverage, crps
from sciddiff.operators import Identity

if TYPE_CHECKING:
    import xarray as xr

    from sciddiff.priors import NeuralPrior, Prior

TITLE = "El Niño: fill gaps and look a year ahead in sea-surface temperature"
SUMMARY = (
    "Monthly sea-surface temperatures off Peru, 1950 to 2010, are forecast up to twelve months ahead from every month "
    "of 1995 to 2010, and gaps of six months in them are filled, by one prior over windows of 24 months that knows nothing "
    "of the task. The same prior is asked for the probability of a warm spell in the year ahead, for forecasts from histories "
    "with months missing, and two years ahead. Two priors are compared, a fitted Gaussian and a network on top of it, with "
    "climatology, persistence, an autoregression and SARIMAX. All choices were made on 1985 to 1994."
)
HERE = Path(__file__).parent
baselines = module(__file__, "baselines")
tasks = module(__file__, "tasks")
WINDOW, HORIZON, GAP = 24, 12, slice(9, 15)
TRAIN_END, ORIGINS = "1994-12", ("1995-01", "2010-12")
LEADS = (1, 3, 6, 12)
SAMPLES = 400
NOISE_SD = 0.01
# weight of the windows' own second moment against what the training AR(3) implies; chosen on 1985-1994, see choose.py
MIX = 0.5
SHOWN = "1997-04"
COLOURS = {
    "climatology": "0.6",
    "persistence": "#CC79A7",
    "AR(3)": "#E69F00",
    "SARIMAX": "#009E73",
    "fitted Gaussian": "#0072B2",
    "network": "#D55E00",
}


def space() -> sd.Space:
    """A window that starts in January; `sd.forecast` and `sd.impute` move its labels."""
    return sd.Space({"time": pd.date_range("1993-01", periods=WINDOW, freq="MS").values}, {"sst": "degC"})


def anomalies(sst: xr.DataArray, train_end: str = TRAIN_END) -> tuple[np.ndarray, np.ndarray]:
    """The series less the training mean of each calendar month, and those twelve means."""
    season = baselines.normals(sst, train_end)[0]
    return sst.values - season[sst["time"].dt.month.values - 1], season


def windows(sst: xr.DataArray, train_end: str = TRAIN_END) -> np.ndarray:
    """All training windows of anomalies, overlapping, ``(windows, 24)``."""
    seen = int((sst["time"] <= np.datetime64(train_end, "M")).sum())
    return np.lib.stride_tricks.sliding_window_view(anomalies(sst, train_end)[0][:seen], WINDOW).copy()


def gaussian(sst: xr.DataArray, train_end: str = TRAIN_END, mix: float = MIX) -> sd.GaussianPrior:
    """The Gaussian over windows of anomalies: the sample covariance, shrunk towards that of an AR(3)."""
    w = windows(sst, train_end)
    series = np.concatenate([w[:, 0], w[-1, 1:]])
    lagged = np.lib.stride_tricks.sliding_window_view(series, 4)[:, ::-1]
    phi = np.linalg.lstsq(lagged[:, 1:], lagged[:, 0], rcond=None)[0]
    variance = np.mean((lagged[:, 0] - lagged[:, 1:] @ phi) ** 2)
    companion = np.vstack([phi, np.eye(2, 3)])
    stationary = scipy.linalg.solve_discrete_lyapunov(companion, np.diag([variance, 0.0, 0.0]))
    lags = list(stationary[0])
    while len(lags) < WINDOW:
        lags.append(float(phi @ lags[:-4:-1]))
    matrix = mix * w.T @ w / len(w) + (1 - mix) * scipy.linalg.toeplitz(lags)
    return sd.GaussianPrior(space(), sd.covariance.dense(matrix))


def in_degrees(prior: Prior, season: np.ndarray) -> Prior:
    """The prior over temperatures, from that over anomalies."""
    moved = prior.relabel(space(), torch.from_numpy(np.resize(season, WINDOW)))
    moved.season = torch.from_numpy(season)
    return moved


def of_anomalies(prior: Prior) -> Prior:
    """The prior over anomalies, which is the same for windows that start in any month."""
    return prior.relabel(space(), torch.zeros(WINDOW, dtype=torch.float64))


def train(out: Path, *, seed: int = 0) -> NeuralPrior:
    """Train the network on top of the Gaussian and keep the prior in ``out``.

    Half of every batch are draws of the Gaussian and half of the rest run backwards in time: 517 overlapping windows
    are few, and without them the network is 4 to 9 % worse than the Gaussian on 1985-1994.
    """
    sst = dataset("elnino").load()["sst"]
    base = gaussian(sst)
    half = base.law.apply(torch.eye(WINDOW, dtype=torch.float64)) * base.normalisation.scale**2
    factor = np.linalg.cholesky(half.numpy())

    def augment(x: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
        """Windows forwards or backwards, or draws of the Gaussian."""
        choice = torch.from_numpy(generator.random((len(x), 1)))
        drawn = torch.from_numpy(generator.standard_normal(tuple(x.shape)) @ factor.T)
        return torch.where(choice < 0.5, drawn, torch.where(choice < 0.75, x.flip(1), x))

    prior = sd.train(
        windows(sst),
        space(),
        network="mlp",
        settings={"width": 32, "depth": 1},
        gaussian=base,
        steps=1000,
        batch=256,
        learning_rate=1e-3,
        weight_decay=1e-2,
        sigmas=(-0.4, 1.2),
        augment=augment,
        seed=seed,
    )
    kept: NeuralPrior = in_degrees(prior, anomalies(sst)[1])
    kept.save(out / "prior")
    return kept


def load(seed: int = 0) -> Problem:
    """The twelve months from May 1997 on, when the largest El Niño of the record began, from the twelve before."""
    sst = dataset("elnino").load()["sst"]
    prior = sd.load_prior(HERE / "prior")
    dates = pd.date_range(end=pd.Timestamp(SHOWN) + pd.DateOffset(months=HORIZON), periods=WINDOW, freq="MS")
    here = sd.Space({"time": dates.values}, {"sst": "degC"})
    assert prior.season is not None
    prior = prior.relabel(here, prior.season[torch.as_tensor(dates.month.to_numpy() - 1)])
    truth = sst.sel(time=dates).to_dataset(name="sst")
    y = truth.where(truth["time"] <= np.datetime64(SHOWN))
    return Problem(
        "elnino", TITLE, prior, Identity(here), sd.noise.Gaussian(NOISE_SD), truth, y, missing="mask"
    )


def cases(sst: xr.DataArray, starts: np.ndarray, hidden: slice) -> tuple[np.ndarray, np.ndarray]:
    """Windows of anomalies that begin at ``starts``, and the same with NaN where hidden or beyond the record."""
    a = np.append(anomalies(sst)[0], np.full(WINDOW, np.nan))
    truth = a[starts[:, None] + np.arange(WINDOW)]
    y = truth.copy()
    y[:, hidden] = np.nan
    return truth, y


def draw(prior: Prior, y: np.ndarray, samples: int, *, seed: int, progress: bool | None) -> xr.Dataset:
    """Posterior draws of many windows of anomalies at once, dims ("sample", "case", "time")."""
    at = of_anomalies(prior)
    posterior = at.given(y, Identity(at.space), sd.noise.Gaussian(NOISE_SD), missing="mask", batch_dim="case")
    # the priors are Gaussian or nearly so, for which few steps are exact
    return posterior.sample(samples, method=sd.MMPS(), steps=16, seed=seed, progress=progress)


def forecasts(
    prior: Prior, sst: xr.DataArray, *, samples: int = SAMPLES, seed: int = 0, progress: bool | None = None
) -> xr.DataArray:
    """Draws of temperature from every origin, dims ("sample", "origin", "lead"), dated as the baselines are."""
    frame = baselines.climatology(sst, train_end=TRAIN_END, origins=ORIGINS)
    index = sst.indexes["time"].get_indexer(pd.DatetimeIndex(frame["origin"].values))
    _, y = cases(sst, index - (WINDOW - HORIZON), slice(WINDOW - HORIZON, None))
    drawn = draw(prior, y, samples, seed=seed, progress=progress)
    season = anomalies(sst)[1]
    mean = season[frame["valid_time"].dt.month.values - 1]
    values = drawn["sst"].values[:, :, WINDOW - HORIZON :] + mean
    out = frame["mean"].expand_dims(sample=samples).copy(data=values).rename("sst")
    out.attrs = {"units": "degC", "long_name": "sea-surface temperature"}
    out.encoding["run"] = drawn.attrs
    return out


def verify(draws: xr.DataArray, sst: xr.DataArray) -> xr.Dataset:
    """CRPS, squared error of the mean and 90 % coverage of draws, (origin, lead); NaN beyond the record.

    ``covered`` is the share of a randomised interval, right in expectation at any number of draws; see `coverage`.
    """
    times = draws["valid_time"].values
    truth = draws.isel(sample=0, drop=True).copy(
        data=sst.reindex(time=times.ravel()).values.reshape(times.shape)
    )
    return (
        crps(draws, truth, nan="omit")
        .to_dataset(name="crps")
        .assign(
            squared_error=(draws.mean("sample") - truth) ** 2,
            covered=coverage(draws, truth, [0.9], [], nan="omit").isel(level=0, drop=True),
        )
    )


def gaps(prior: Prior, sst: xr.DataArray, *, seed: int = 0) -> dict[str, float]:
    """Six months hidden in the middle of every window of 1995-2010: CRPS, RMSE and coverage."""
    first = int(sst.indexes["time"].get_loc(pd.Timestamp(ORIGINS[0])))
    starts = np.arange(first, sst.sizes["time"] - WINDOW + 1)
    truth, y = cases(sst, starts, GAP)
    drawn = draw(prior, y, SAMPLES, seed=seed, progress=False)["sst"].isel(time=GAP)
    seen = drawn.isel(sample=0, drop=True).copy(data=truth[:, GAP])
    return {
        "crps": float(crps(drawn, seen).mean()),
        "rmse": float(np.sqrt(((drawn.mean("sample") - seen) ** 2).mean())),
        "coverage": coverage(drawn, seen, [0.9]).item(),
    }


def interpolated(sst: xr.DataArray) -> float:
    """RMSE of linear interpolation over the same gaps."""
    first = int(sst.indexes["time"].get_loc(pd.Timestamp(ORIGINS[0])))
    truth, _ = cases(sst, np.arange(first, sst.sizes["time"] - WINDOW + 1), GAP)
    a, b = GAP.start - 1, GAP.stop
    share = (np.arange(GAP.start, GAP.stop) - a) / (b - a)
    line = truth[:, [a]] * (1 - share) + truth[:, [b]] * share
    return float(np.sqrt(np.mean((line - truth[:, GAP]) ** 2)))


def run(*, seed: int = 0, progress: bool | None = None) -> Result:
    """Forecasts from every month of 1995 to 2010 and filled gaps, under both priors and four baselines."""
    sst = dataset("elnino").load()["sst"]
    priors = {
        "fitted Gaussian": in_degrees(gaussian(sst), anomalies(sst)[1]),
        "network": sd.load_prior(HERE / "prior"),
    }
    draws = {name: forecasts(p, sst, seed=seed, progress=progress) for name, p in priors.items()}
    scored = {
        name: baselines.verify(f(sst, train_end=TRAIN_END, origins=ORIGINS), sst)
        for name, f in baselines.BASELINES.items()
    }
    scored |= {f"{name} prior": verify(d, sst) for name, d in draws.items()}
    filled = {name: gaps(p, sst, seed=seed) for name, p in priors.items()}
    paths = baselines.autoregression_paths(sst, samples=SAMPLES, seed=seed)
    brier, events = tasks.event_table({"AR(3)": paths} | {f"{n} prior": d for n, d in draws.items()}, sst)
    holed = missing_months(priors["network"], sst, seed=seed, progress=progress)
    far_draws = {
        f"{n} prior, window by window": tasks.two_years(p, sst, seed=seed) for n, p in priors.items()
    }
    far, far_rows = tasks.far_table(far_draws, sst)
    metrics: dict[str, Metric] = {}
    for name, key in (("fitted Gaussian", "gaussian"), ("network", "network")):
        for lead in LEADS:
            ratio, _ = compared(scored[f"{name} prior"], scored["AR(3)"], lead)
            metrics[f"{key}_crps_ratio_ar3_lead_{lead}"] = Metric(
                ratio,
                "1",
                1.0,
                "AR(3) on anomalies",
                f"CRPS ratio to the AR(3), lead {lead}, {name} prior",
                "lower",
            )
            covered = float(scored[f"{name} prior"]["covered"].sel(lead=lead).mean())
            metrics[f"{key}_coverage_90_lead_{lead}"] = Metric(
                covered,
                "1",
                0.9,
                "nominal",
                f"coverage of 90 % intervals, lead {lead}, {name} prior",
                "nearer",
            )
        metrics[f"{key}_crps_lead_12"] = Metric(
            float(scored[f"{name} prior"]["crps"].sel(lead=12).mean()),
            "degC",
            0.636,
            "climatology at lead 1",
            f"CRPS, lead 12, {name} prior",
            "lower",
        )
        metrics[f"{key}_gap_crps"] = Metric(
            filled[name]["crps"], "degC", label=f"CRPS in gaps of six months, {name} prior", better="lower"
        )
        metrics[f"{key}_gap_rmse"] = Metric(
            filled[name]["rmse"],
            "degC",
            interpolated(sst),
            "linear interpolation",
            f"RMSE in gaps of six months, {name} prior",
            "lower",
        )
    gain, interval = compared(scored["network prior"], scored["fitted Gaussian prior"], None)
    metrics["network_crps_ratio_gaussian"] = Metric(
        gain,
        "1",
        1.0,
        "the fitted Gaussian prior",
        "CRPS ratio of the network prior to the fitted Gaussian, all leads",
        "lower",
    )
    metrics["network_event_brier"] = Metric(
        float(brier["network prior"].mean()),
        "1",
        float(brier["AR(3)"].mean()),
        "AR(3) on anomalies",
        "Brier score of a warm spell in the year ahead, network prior",
        "lower",
    )
    metrics["network_crps_second_year"] = Metric(
        float(far["network prior, window by window"].sel(lead=slice(13, 24)).mean()),
        "degC",
        float(far["climatology"].sel(lead=slice(13, 24)).mean()),
        "climatology",
        "CRPS, leads 13 to 24, network prior",
        "lower",
    )
    metrics["network_crps_missing_lead_3"] = Metric(
        float(holed["40 % of the months missing at random"].sel(lead=3).mean()),
        "degC",
        float(holed["all twelve months"].sel(lead=3).mean()),
        "the same prior with all twelve months",
        "CRPS, lead 3, 40 % of the months missing, network prior",
        "lower",
    )
    tables = {
        "CRPS [degC] by lead, and 90 % coverage": [score_row(n, s) for n, s in scored.items()],
        "CRPS over that of the AR(3), with 95 % block-bootstrap intervals": [
            ratio_row(n, s, scored["AR(3)"]) for n, s in scored.items() if "prior" in n
        ],
        "Gaps of six months": [
            {
                "method": "linear interpolation",
                "CRPS [degC]": "",
                "RMSE [degC]": f"{interpolated(sst):.3f}",
                "coverage 90 %": "",
            }
        ]
        + [
            {
                "method": f"{n} prior",
                "CRPS [degC]": f"{s['crps']:.3f}",
                "RMSE [degC]": f"{s['rmse']:.3f}",
                "coverage 90 %": f"{100 * s['coverage']:.1f} %",
            }
            for n, s in filled.items()
        ],
        "A warm spell in the year ahead: three months in a row at least 1 degC above their means": events,
        "Histories with months missing, CRPS [degC] of the network prior": tasks.holed_table(holed, LEADS),
        "Two years ahead, CRPS [degC]": far_rows,
    }
    notes = [
        f"The network's mean CRPS over all leads is {gain:.3f} [{interval[0]:.3f}, {interval[1]:.3f}] times its Gaussian's. An "
        "interval that holds 1 shows no gain; the training years hold only 517 overlapping windows.",
        f"Every month of 1995 to 2010 is an origin, {SAMPLES} draws each; months beyond December 2010 are not scored. Blocks of 24 origins.",
    ]
    if (covered := filled["network"]["coverage"]) < 0.9:
        notes.append(
            f"The 90 % intervals of the network prior hold {100 * covered:.0f} % of the months in gaps: 1995 to 2010 holds the "
            "largest event of the record, that of 1997."
        )
    result = draws["network"].to_dataset(name="sst")
    result.attrs = draws["network"].encoding["run"]
    return Result(
        metrics,
        result,
        pictures(draws, scored, sst, far),
        tables,
        notes,
        {"seed": seed, "samples": SAMPLES, "mix": MIX},
        headline=[
            "network_crps_ratio_ar3_lead_1",
            "network_crps_ratio_ar3_lead_6",
            "network_coverage_90_lead_6",
        ],
    )


def missing_months(
    prior: Prior, sst: xr.DataArray, *, samples: int = 100, seed: int = 0, progress: bool | None = None
) -> dict[str, xr.DataArray]:
    """CRPS of forecasts from histories with months missing, (origin, lead)."""
    frame = baselines.climatology(sst, train_end=TRAIN_END, origins=ORIGINS)
    index = sst.indexes["time"].get_indexer(pd.DatetimeIndex(frame["origin"].values))
    truth, y = cases(sst, index - (WINDOW - HORIZON), slice(WINDOW - HORIZON, None))
    happened = frame["mean"].copy(data=truth[:, WINDOW - HORIZON :])
    out = {}
    for name, seen in tasks.missed(y, seed=seed).items():
        drawn = draw(prior, seen, samples, seed=seed, progress=progress)["sst"].values[
            :, :, WINDOW - HORIZON :
        ]
        out[name] = crps(frame["mean"].expand_dims(sample=samples).copy(data=drawn), happened, nan="omit")
    return out


def compared(ours: xr.Dataset, theirs: xr.Dataset, lead: int | None) -> tuple[float, tuple[float, float]]:
    """Ratio of mean CRPS at one lead, or over all, with a paired 95 % block-bootstrap interval."""
    a, b = (s["crps"] if lead is None else s["crps"].sel(lead=[lead]) for s in (ours, theirs))
    means = [baselines.block_means(s).mean("lead") for s in (a, b)]
    low, high = np.quantile((means[0] / means[1]).values, [0.025, 0.975])
    return float(a.mean("origin").mean() / b.mean("origin").mean()), (float(low), float(high))


def score_row(name: str, scores: xr.Dataset) -> dict[str, str]:
    """CRPS and coverage of one method."""
    crps_at = {f"lead {lead}": f"{float(scores['crps'].sel(lead=lead).mean()):.3f}" for lead in LEADS}
    covered = {f"coverage {lead}": f"{float(scores['covered'].sel(lead=lead).mean()):.2f}" for lead in LEADS}
    return {"method": name, **crps_at, **covered}


def ratio_row(name: str, ours: xr.Dataset, theirs: xr.Dataset) -> dict[str, str]:
    """Ratios with intervals of one method."""
    out = {"method": name}
    for lead in LEADS:
        ratio, (low, high) = compared(ours, theirs, lead)
        out[f"lead {lead}"] = f"{ratio:.3f} [{low:.3f}, {high:.3f}]"
    return out


def pictures(
    draws: dict[str, xr.DataArray],
    scored: dict[str, xr.Dataset],
    sst: xr.DataArray,
    far: dict[str, xr.DataArray],
) -> dict[str, Figure]:
    """A forecast of the El Niño of 1997, the CRPS against lead, and the ranks of what happened."""
    import matplotlib.pyplot as plt

    problem = load()
    shown = problem.posterior.sample(500, seed=0)
    fan, ax = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
    sd.plot.fan(shown, truth=problem.truth, observation=problem.y, ax=ax)
    figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.3), layout="constrained", sharey=True)
    curves = {name: s["crps"] for name, s in scored.items()}
    for ax, lines, ticks in zip(axes, (curves, far), ([1, 3, 6, 9, 12], [1, 6, 12, 18, 24]), strict=True):
        for name, values in lines.items():
            colour = COLOURS[name.split(" prior")[0]]
            style = "-" if "prior" in name else "--"
            ax.plot(
                values["lead"],
                values.mean("origin"),
                style,
                marker="o",
                ms=3,
                lw=1.2,
                color=colour,
                label=name,
            )
        ax.set(xlabel="lead [months]", xticks=ticks)
    axes[1].axvline(12.5, color="0.7", lw=0.8, zorder=0)
    axes[0].set_ylabel("CRPS [°C]")
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        place = "lower right" if ax is axes[1] else "upper left"
        ax.legend(framealpha=1, edgecolor="none", fontsize=7, loc=place)
    ranks, axes = plt.subplots(1, 2, figsize=(7.5, 2.8), layout="constrained")
    for ax, lead in zip(axes, (1, 6), strict=True):
        x = draws["network"].sel(lead=lead, drop=True).reset_coords(drop=True)
        known = sst.to_series().reindex(
            pd.DatetimeIndex(draws["network"]["valid_time"].sel(lead=lead).values)
        )
        seen = x.isel(sample=0, drop=True).copy(data=known.to_numpy())
        sd.plot.rank_histogram(x, seen, bins=10, nan="omit", ax=ax)
        ax.set(xlabel=f"rank of the truth, lead {lead}", ylim=(0, 1.8))
    axes[1].set_ylabel("")
    return {
        "fan": Figure(
            fan,
            "A year ahead from April 1997, before the largest El Niño of the record, under the network prior.",
        ),
        "crps": Figure(
            figure,
            "CRPS against lead, lower is better. Left: mean over every origin of 1995 to 2010. Right: two years ahead, every "
            "fifth origin; beyond the line a second window goes on from the draws of the first.",
        ),
        "ranks": Figure(
            ranks,
            "Rank of what happened among 400 draws of the network prior, every origin of 1995 to 2010. The band is that of "
            "exchangeable draws at independent origins, which these are not: neighbours share eleven months.",
        ),
    }
