"""Where is the source? The Poisson inverse problem of DiffusionPDE, with its exact posterior beside.

500 interior point values of ``u`` are seen and the source ``a`` of ``Lap u = a`` is wanted. The source is a Gaussian
random field and ``u`` depends on it linearly, so the posterior is an exact Gaussian process.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import sciddiff as sd
from sciddiff.bench.catalog import dataset, module
from sciddiff.bench.problem import Figure, Metric, Problem, Result

if TYPE_CHECKING:
    import xarray as xr

TITLE = "Poisson inverse problem: find the source from 500 sensors"
SUMMARY = (
    "The source a of Lap u = a on a 128 x 128 grid of the unit square is recovered from 500 values of the solution u at "
    "random interior points, 3 % of the grid. The setting is that of DiffusionPDE (Huang et al. 2024) and FunDPS (Yao "
    "et al. 2025), with our own fields from the same generator. Since the source is a Gaussian random field and the "
    "equation is linear, the posterior is a Gaussian process, known exactly: the sampler is compared with the truth "
    "about the posterior, and not only with the truth about the field."
)
HERE = Path(__file__).parent
SENSORS = 500
SAMPLES = 16
STEPS = 8


def build(*, n: int = 128, fields: int = 20, sensors: int = SENSORS, seed: int = 0) -> Problem:
    """Many fields at once, seen by the same sensors; dims of y ("field", "sensor")."""
    source = dataset("poisson_grf")
    data = source.load(n=n, fields=fields, seed=seed)
    space = source.source_space(n)
    prior = sd.GaussianPrior(space, sd.covariance.spectral(space.shape, source.spectrum(n), "neumann"))
    generator = np.random.Generator(np.random.Philox(key=[seed, 1]))
    inner = n - 2
    flat = np.sort(generator.choice(inner * inner, sensors, replace=False))
    solve = sd.operators.poisson(space)
    points = sd.operators.Points.at_indices(
        solve.codomain, np.stack([flat // inner + 1, flat % inner + 1], axis=1)
    )
    operator = points @ solve
    # "noise-free" data: an sd of 1e-5 of the rms of u, in the reference as well
    noise = sd.noise.Gaussian(1e-5 * float(np.sqrt((data["u"] ** 2).mean())))
    clean = operator(space.tensor(data[["a"]], batch_dim="field"))
    y = operator.codomain.dataset(noise.sample(clean, seed=seed), ["field"])
    y = y.assign_coords({d: ("sensor", v) for d, v in points.locations.items()})
    mean, deviation = exact(operator, y, source.spectrum(n), float(noise.sd))
    reference = {
        "mean": space.dataset(torch.from_numpy(mean), ["field"]),
        "sd": space.dataset(torch.from_numpy(deviation)),
    }
    return Problem(
        "poisson_source",
        TITLE,
        prior,
        operator,
        noise,
        data[["a"]].drop_attrs(deep=False),
        y,
        reference,
        method=sd.MMPS(),
        batch_dim="field",
    )


def exact(
    operator: Any, y: xr.Dataset, spectrum: np.ndarray, noise_sd: float
) -> tuple[np.ndarray, np.ndarray]:
    """Kriging mean of every field, and the standard deviation that they share."""
    rows = operator.adjoint(torch.eye(operator.codomain.size, dtype=torch.float64)).numpy()
    kriging = module(HERE / "reference.py", "reference").kriging
    out: tuple[np.ndarray, np.ndarray] = kriging(spectrum, rows, y["u"].values, noise_sd)
    return out


def load(seed: int = 0) -> Problem:
    """One field, for people."""
    many = build(fields=1, seed=seed)
    assert many.reference is not None
    reference = {"mean": many.reference["mean"].isel(field=0), "sd": many.reference["sd"]}
    return Problem(
        many.name,
        many.title,
        many.prior,
        many.operator,
        many.noise,
        many.truth.isel(field=0),
        many.y.isel(field=0),
        reference,
        method=many.method,
    )


def scores(problem: Problem, draws: xr.Dataset) -> dict[str, np.ndarray]:
    """Per field: relative errors of the means and the squared share that the finite number of draws adds."""
    assert problem.reference is not None
    truth, x = problem.truth["a"], draws["a"]
    mean, deviation = problem.reference["mean"]["a"], problem.reference["sd"]["a"]
    size = (truth**2).sum(["y", "x"])

    def relative(field: xr.DataArray) -> np.ndarray:
        return np.asarray(np.sqrt(((field - truth) ** 2).sum(["y", "x"]) / size).values)

    extra = (deviation**2).sum() / x.sizes["sample"] / size
    return {
        "mean": relative(x.mean("sample")),
        "exact": relative(mean),
        "draw": relative(x.isel(sample=0)),
        "corrected": np.sqrt(np.maximum(relative(x.mean("sample")) ** 2 - extra.values, 0.0)),
        "exact_draw": np.sqrt(relative(mean) ** 2 + ((deviation**2).sum() / size).values),
        "sd_ratio": np.sqrt((x.var("sample", ddof=1).mean(["y", "x"]) / (deviation**2).mean()).values),
    }


def run(*, seed: int = 0, progress: bool | None = None, samples: int = SAMPLES) -> Result:
    """Twenty fields, each with its own draws, against the exact posterior of each."""
    problem = build(seed=seed)
    draws = problem.posterior.sample(
        samples, method=problem.method, steps=STEPS, seed=seed, progress=progress
    )
    s = scores(problem, draws)
    published = json.loads((HERE / "reference.json").read_text())["published"]
    fields = len(s["mean"])
    spread = {k: 100 * v.std(ddof=1) / np.sqrt(fields) for k, v in s.items()}
    percent = {k: 100 * v.mean() for k, v in s.items()}
    metrics = {
        "rel_l2_mean": Metric(
            percent["mean"] / 100,
            "1",
            percent["exact"] / 100,
            "exact posterior mean",
            f"relative L2 error of the mean of {samples} draws",
            "nearer",
        ),
        "rel_l2_mean_corrected": Metric(
            percent["corrected"] / 100,
            "1",
            percent["exact"] / 100,
            "exact posterior mean",
            "relative L2 error of the mean, less what few draws add",
            "nearer",
        ),
        "rel_l2_mean_exact": Metric(
            percent["exact"] / 100, "1", label="relative L2 error of the exact posterior mean"
        ),
        "rel_l2_draw": Metric(
            percent["draw"] / 100,
            "1",
            percent["exact_draw"] / 100,
            "exact posterior draw",
            "relative L2 error of one draw",
            "nearer",
        ),
        "sd_ratio_rms": Metric(
            float(np.sqrt((s["sd_ratio"] ** 2).mean())),
            "1",
            1.0,
            "exact posterior",
            "sd ratio of the draws",
            "nearer",
        ),
    }
    rows = [
        {
            "method": "exact posterior mean (kriging)",
            "prior": "exact",
            "error of the mean [%]": _pm(percent["exact"], spread["exact"]),
            "error of one draw [%]": _pm(percent["exact_draw"], spread["exact_draw"]),
        },
        {
            "method": f"MMPS, mean of {samples} draws",
            "prior": "exact",
            "error of the mean [%]": _pm(percent["mean"], spread["mean"]),
            "error of one draw [%]": _pm(percent["draw"], spread["draw"]),
        },
        {
            "method": "the same, less what the finite number of draws adds",
            "prior": "exact",
            "error of the mean [%]": _pm(percent["corrected"], spread["corrected"]),
            "error of one draw [%]": "",
        },
        *(
            {
                "method": p["method"],
                "prior": "learned",
                "error of the mean [%]": "",
                "error of one draw [%]": p["rel_l2_percent"],
            }
            for p in published
        ),
    ]
    notes = [
        "The published rows are single draws under learned priors on the authors' own fields; ours have the exact prior and "
        "fields from the same generator. The exact rows show how much of the published error the data do not force.",
        f"Means over {fields} fields, plus or minus one standard error; single fields range from {100 * s['exact'].min():.1f} "
        f"to {100 * s['exact'].max():.1f} % for the exact mean.",
        "Noise-free data are stood for by a noise sd of 1e-5 of the rms of u, in the sampler and in the reference.",
    ]
    return Result(
        metrics,
        draws,
        {
            "fields": Figure(
                picture(problem, draws),
                "One field: truth, data, posterior mean and standard deviation, and draws.",
            )
        },
        {"Relative L2 error of the source": rows},
        notes,
        {"seed": seed, "fields": fields, "samples": samples, "steps": STEPS},
        headline=["rel_l2_mean_corrected", "sd_ratio_rms"],
    )


def picture(problem: Problem, draws: xr.Dataset, field: int = 0) -> Any:
    """Truth, observation, mean, sd and draws of one field."""
    axes = sd.plot.fields(
        draws.isel(field=field),
        truth=problem.truth.isel(field=field),
        observation=problem.y.isel(field=field),
        count=4,
    )
    return np.asarray(axes).flat[0].figure


def _pm(value: float, error: float) -> str:
    return f"{value:.2f} ± {error:.2f}"
