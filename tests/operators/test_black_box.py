"""A simulator that fails for one member costs that member and nothing else."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
import torch

from sciddiff.errors import InputError, SciddiffError
from sciddiff.operators import black_box
from sciddiff.spaces import Space, Variable

sys.path.append(str(Path(__file__).parent))  # workers find the simulators by name

import simulators

DOMAIN, CODOMAIN = Space({"t": 3}), Space({"detector": 2}, {"count": "1/s"})
# the third member is the one that fails
STATES = torch.tensor(
    [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [2.0, 0.0, 1.0], [0.7, 0.8, 0.9]], dtype=torch.float64
)
EXPECTED = STATES.sin().cumsum(1)[:, :2]
OTHERS = [0, 1, 3]


@pytest.fixture(scope="module")
def processes() -> Iterator[Callable[[], Executor]]:
    """A maker of process pools that start fast: their server has imported torch once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sciddiff.operators.blackbox"])
    pools: list[ProcessPoolExecutor] = []

    def make() -> ProcessPoolExecutor:
        pools.append(ProcessPoolExecutor(2, mp_context=context))
        return pools[-1]

    assert make().submit(abs, -1).result() == 1  # starts the server, which takes seconds
    yield make
    for pool in pools:
        pool.shutdown(wait=False, cancel_futures=True)


def test_results_are_the_same_serially_in_threads_and_in_processes(processes):
    results = [black_box(simulators.cumulative, DOMAIN, CODOMAIN).apply(STATES)]
    with ThreadPoolExecutor(2) as threads, ThreadPool(2) as mapper:
        for executor in (threads, mapper, processes):
            results.append(
                black_box(simulators.cumulative, DOMAIN, CODOMAIN, executor=executor).apply(STATES)
            )
    assert torch.allclose(results[0], EXPECTED, rtol=1e-14)
    assert all(torch.equal(r, results[0]) for r in results[1:])


@pytest.mark.parametrize("kind", ["serial", "threads", "processes"])
@pytest.mark.parametrize("name", ["raises_above_one", "nan_above_one", "short_above_one"])
def test_a_failing_member_is_recorded_and_the_others_are_untouched(kind, name, processes):
    executor = {"serial": None, "threads": lambda: ThreadPoolExecutor(2), "processes": processes}[kind]
    operator = black_box(getattr(simulators, name), DOMAIN, CODOMAIN, executor=executor, on_error="nan")
    for call in range(2):
        out = operator.apply(STATES)
        assert torch.allclose(out[OTHERS], EXPECTED[OTHERS], rtol=1e-14) and out[2].isnan().all()
        assert [(f.call, f.member) for f in operator.failures] == [(c, 2) for c in range(call + 1)]
    assert {"raises": "diverged", "nan_ab": "2 NaN", "short_": "shape (1,)"}[name[:6]] in operator.failures[
        0
    ].error


def test_a_member_that_kills_its_worker_costs_only_itself(processes):
    operator = black_box(simulators.dies_above_one, DOMAIN, CODOMAIN, executor=processes, on_error="drop")
    out = operator.apply(STATES)
    assert torch.allclose(out[OTHERS], EXPECTED[OTHERS], rtol=1e-14) and out[2].isnan().all()
    assert [(f.member, f.error) for f in operator.failures] == [(2, "the worker died")]
    assert torch.allclose(operator.apply(STATES[OTHERS]), EXPECTED[OTHERS], rtol=1e-14)


def test_a_member_that_hangs_costs_only_itself(processes):
    operator = black_box(
        simulators.hangs_above_one, DOMAIN, CODOMAIN, executor=processes, on_error="nan", timeout=2.0
    )
    out = operator.apply(STATES)
    assert torch.allclose(out[OTHERS], EXPECTED[OTHERS], rtol=1e-14) and out[2].isnan().all()
    assert [(f.member, f.error) for f in operator.failures] == [(2, "no result in time")]


def test_a_member_gets_a_second_chance():
    calls: list[float] = []

    def unlucky_once(x: np.ndarray) -> np.ndarray:
        calls.append(float(x[0]))
        if x[0] > 1 and calls.count(2.0) == 1:
            raise OSError("licence server is busy")
        return simulators.cumulative(x)

    operator = black_box(unlucky_once, DOMAIN, CODOMAIN)
    assert torch.allclose(operator.apply(STATES), EXPECTED) and not operator.failures
    assert calls == [0.1, 0.4, 2.0, 0.7, 2.0]


def test_raise_names_the_member_and_the_error():
    operator = black_box(simulators.raises_above_one, DOMAIN, CODOMAIN)
    with pytest.raises(
        SciddiffError, match=r"1 of 4 members .* number 2: ArithmeticError: the solver diverged"
    ):
        operator.apply(STATES)
    assert operator.failures == []


def test_a_wrong_shape_names_expected_and_got():
    with pytest.raises(InputError, match=r"expected shape \(2,\) .* got shape \(1,\)"):
        black_box(simulators.short_above_one, DOMAIN, CODOMAIN).apply(STATES)


def test_nothing_to_go_on_with_raises_whatever_the_policy():
    operator = black_box(simulators.raises_above_one, DOMAIN, CODOMAIN, on_error="nan")
    with pytest.raises(SciddiffError, match="1 of 1 members"):
        operator.apply(STATES[2:3])


def test_a_function_that_cannot_be_sent_to_processes_is_explained(processes):
    with pytest.raises(SciddiffError, match=r"4 of 4 members .*(pickle|local)"):
        black_box(lambda x: x[:2], DOMAIN, CODOMAIN, executor=processes).apply(STATES)


def test_a_simulator_cannot_change_the_states():
    def careless(x: np.ndarray) -> np.ndarray:
        x[:] = 0.0
        return x[:2]

    states = STATES.clone()
    black_box(careless, DOMAIN, CODOMAIN).apply(states)
    assert torch.equal(states, STATES)


def test_dtype_is_kept_and_empty_batches_call_nothing():
    operator = black_box(simulators.raises_above_one, DOMAIN, CODOMAIN)
    assert operator.apply(STATES[:2].float()).dtype == torch.float32
    assert operator.apply(STATES[:0]).shape == (0, 2)


def test_complex_results_are_stored_as_real_views():
    codomain = Space({"k": 2}, {"f": Variable(("k",), complex=True)})
    out = black_box(lambda x: np.fft.rfft(x), DOMAIN, codomain).apply(STATES)
    assert np.allclose(out[:, 0] + 1j * out[:, 1], np.fft.rfft(STATES.numpy()))


def test_gradients_are_refused():
    operator = black_box(simulators.cumulative, DOMAIN, CODOMAIN)
    assert not operator.differentiable and not operator.linear
    with pytest.raises(InputError, match="derivative-free"):
        operator.vjp(STATES, EXPECTED)


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (3.0, {}, "function"),
        (simulators.cumulative, {"on_error": "ignore"}, "'raise', 'nan' or 'drop'"),
        (simulators.cumulative, {"executor": 4}, "submit or map"),
        (simulators.cumulative, {"timeout": 0}, "positive seconds"),
    ],
)
def test_bad_settings_are_refused(function, options, message):
    with pytest.raises(InputError, match=message):
        black_box(function, DOMAIN, CODOMAIN, **options)
