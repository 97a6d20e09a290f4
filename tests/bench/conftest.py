"""A tiny problem, whole: what the catalog finds, the runner runs and the report shows."""

from __future__ import annotations

from pathlib import Path

import pytest

PROBLEM = '''
import numpy as np
from matplotlib.figure import Figure as Canvas

import sciddiff as sd
from sciddiff.bench import Figure, Metric, Problem, Result

TITLE = "Four values <seen> & believed"
SUMMARY = """
    The first paragraph, about `x`.

    The second & last <paragraph>.
"""


def load(seed=0):
    space = sd.Space({"place": 4}, "a")
    prior = sd.GaussianPrior(space, sd.covariance.white((4,)))
    operator = sd.operators.Points.at_indices(space, [[0], [2]])
    truth = prior.sample(1, seed=seed).isel(sample=0, drop=True)
    y = operator.codomain.dataset(operator(space.tensor(truth)[None])[0])
    return Problem("tiny", TITLE, prior, operator, sd.noise.Gaussian(0.1), truth, y)


def run(*, seed=0, progress=None):
    draws = load(seed).posterior.sample(8, seed=seed, progress=progress)
    draws.attrs["flag"] = True
    draws.attrs["cases"] = 1
    canvas = Canvas(figsize=(3, 1))
    canvas.subplots().plot(draws["a"].values.T)
    metrics = {
        "mean_error": Metric(np.float64(0.0123456), "K", 0.0111, "Doe <2020> & co", better="lower"),
        "coverage": Metric(0.9, "<u>1", label="hits <of> 4"),
        "left_over": Metric(3.0),
        "spread": Metric(1.5, "K"),
    }
    rows = [
        {"method": "<b>MMPS</b>", "error <%>": 20.47, "steps": 64},
        {"method": "other", "error <%>": float("nan"), "exact": True},
    ]
    return Result(
        metrics,
        draws,
        {"draws": Figure(canvas, 'draws "as" <lines>'), "again": Figure(canvas, "once more")},
        {"Comparison & <more>": rows},
        ["A note with <tags>."],
        {"seed": seed, "sizes": (1, np.int64(2)), "limit": float("inf"), "<k>": "<v>"},
        headline=["spread", "mean_error"],
    )
'''


@pytest.fixture(scope="session")
def source() -> str:
    return PROBLEM


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "tiny"
    folder.mkdir()
    (folder / "problem.py").write_text(PROBLEM)
    return folder
