"""Six faults of one member among many, in a pool of processes and on a Dask cluster: the others do not notice."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import sciddiff as sd
from sciddiff.errors import SciddiffError
from sciddiff.methods.kalman import EnsembleKalman
from sciddiff.operators import black_box
from sciddiff.spaces import Space

sys.path.append(str(Path(__file__).parent))  # workers find the simulators by name

import simulators

DOMAIN, CODOMAIN = Space({"t": 3}), Space({"detector": 2}, {"count": "1/s"})
STATES = torch.linspace(0.05, 0.9, 36, dtype=torch.float64).reshape(12, 3)
GUILTY = 7
STATES[GUILTY, 0] = 2.0
EXPECTED = STATES.sin().cumsum(1)[:, :2]
OTHERS = [i for i in range(12) if i != GUILTY]

FAULTS = {
    "raises": (simulators.raises_above_one, "the solver diverged"),
    "NaN": (simulators.nan_above_one, "2 NaN"),
    "wrong shape": (simulators.short_above_one, "shape (1,)"),
    "hangs": (simulators.hangs_above_one, "no result in time"),
    "segfault": (simulators.segfaults_above_one, "the worker died"),
    "out of memory": (simulators.hungry_above_one, "MemoryError"),
}


@pytest.fixture(scope="module")
def processes() -> Iterator[Callable[[], Executor]]:
    """A maker of process pools that start fast: their server has imported torch once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sciddiff.operators.blackbox"])
    pools: list[ProcessPoolExecutor] = []

    def make() -> ProcessPoolExecutor:
        pools.append(ProcessPoolExecutor(2, mp_context=context))
        return pools[-1]

    make.pools = pools
    assert make().submit(abs, -1).result() == 1  # starts the server, which takes seconds
    yield make
    for pool in pools:
        pool.shutdown(wait=False, cancel_futures=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """A client of two Dask workers, each with a nanny that replaces it."""
    distributed = pytest.importorskip("distributed")
    import dask

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
        ) as made,
        distributed.Client(made) as client,
    ):
        yield client


def survives(function, words: str, executor: object, timeout: float | None) -> None:
    operator = black_box(function, DOMAIN, CODOMAIN, executor=executor, on_error="drop", timeout=timeout)
    out = operator.apply(STATES)
    assert torch.allclose(out[OTHERS], EXPECTED[OTHERS], rtol=1e-14) and out[GUILTY].isnan().all()
    assert [(f.call, f.member) for f in operator.failures] == [(0, GUILTY)]
    assert words in operator.failures[0].error
    # and the pool can be used again
    assert torch.allclose(operator.apply(STATES[OTHERS]), EXPECTED[OTHERS], rtol=1e-14)
    assert len(operator.failures) == 1


@pytest.mark.parametrize("fault", FAULTS)
def test_processes_survive(fault, processes):
    survives(*FAULTS[fault], processes, timeout=1.5 if fault == "hangs" else None)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", ["client", "executor"])
def test_dask_survives(fault, kind, cluster):
    executor = cluster if kind == "client" else cluster.get_executor()
    late = {"segfault": (simulators.segfaults_late_above_one, "the worker died")}
    survives(*{**FAULTS, **late}[fault], executor, timeout=20.0 if fault == "hangs" else 60.0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_dask_tries_a_failed_member_again_and_does_not_recall_its_first_answer(cluster, tmp_path):
    def unlucky_once(x: np.ndarray) -> np.ndarray:
        seen = tmp_path / f"{x[0]:.3f}"
        if x[0] > 1 and not seen.exists():
            seen.touch()
            raise OSError("licence server is busy")
        return np.cumsum(np.sin(x))[:2]

    operator = black_box(unlucky_once, DOMAIN, CODOMAIN, executor=cluster.get_executor())
    assert torch.allclose(operator.apply(STATES), EXPECTED, rtol=1e-14) and not operator.failures


def test_members_of_a_pool_that_died_are_run_again_together_and_not_one_by_one(processes):
    before = len(processes.pools)
    operator = black_box(simulators.dies_above_one, DOMAIN, CODOMAIN, executor=processes, on_error="drop")
    operator.apply(STATES)
    # one pool at first, and by halves two pools at each of at most four depths
    assert len(processes.pools) - before <= 1 + 2 * 4


def test_a_pool_that_died_and_cannot_be_made_again_is_explained_and_nobody_is_dropped(processes):
    operator = black_box(simulators.dies_above_one, DOMAIN, CODOMAIN, executor=processes(), on_error="drop")
    with pytest.raises(SciddiffError, match="a function that makes a pool"):
        operator.apply(STATES)
    assert not operator.failures


@pytest.mark.filterwarnings("ignore::sciddiff.draws.DiagnosisWarning")
@pytest.mark.parametrize("fault", ["wrong shape", "segfault", "out of memory"])
def test_a_sampler_draws_the_same_from_the_others_whatever_the_fault(fault, processes):
    prior = sd.GaussianPrior(DOMAIN, sd.covariance.white((3,)))

    def draws(function, executor):
        box = black_box(function, DOMAIN, CODOMAIN, executor=executor, on_error="drop")
        posterior = prior.given([0.3, 0.5], box, sd.noise.Gaussian(0.1))
        return posterior.sample(8, method=EnsembleKalman(ensemble=12), seed=3)

    serial, pooled = draws(simulators.raises_above_one, None), draws(FAULTS[fault][0], processes)
    assert serial.attrs["failed_members"] == pooled.attrs["failed_members"] == 2
    np.testing.assert_array_equal(serial["x"], pooled["x"])
