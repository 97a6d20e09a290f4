"""Systems converge at the order of their scheme, keep what they have to keep, and treat rows of a batch alike."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sciddiff.errors import DivergenceError, InputError
from sciddiff.physics import (
    ETDRK4,
    DoublePendulum,
    FitzHughNagumo,
    KuramotoSivashinsky,
    Lorenz63,
    Lorenz96,
    rk4,
    simulate,
)
from sciddiff.random import Streams

SYSTEMS = [
    Lorenz63(),
    Lorenz96(sites=8),
    KuramotoSivashinsky(sites=16, length=12.0),
    FitzHughNagumo(),
    FitzHughNagumo(b=(0.0065,)),
    DoublePendulum(),
]


def start(system, rows=4, seed=0, dtype=torch.float64):
    z = Streams(seed, range(rows), purpose="first states").normal(system.space.shape, dtype=dtype)
    if isinstance(system, Lorenz63):
        return z * 5 + torch.tensor([0.0, 0.0, 25.0], dtype=dtype)
    return z * (0.1 if isinstance(system, FitzHughNagumo) else 1.0)


def order(coarse, middle, fine):
    """From three runs with steps h, h/2 and h/4."""
    return math.log2(float((coarse - middle).norm() / (middle - fine).norm()))


@pytest.mark.parametrize("system", SYSTEMS, ids=repr)
def test_every_step_converges_at_order_four(system):
    # as steps become short: the field of SYSTEMS is small and early, that of the default is below
    smooth = simulate(system, start(system), 40)[:, -1]
    dt = {"FitzHughNagumo": 1.0, "KuramotoSivashinsky": 0.025}.get(type(system).__name__, 0.02)
    runs = []
    for halvings in range(3):
        finer = type(system)(**{**vars(system), "dt": dt / 2**halvings})
        runs.append(simulate(finer, smooth, 8 * 2**halvings)[:, -1])
    assert 3.7 < order(*runs) < 4.4


@pytest.mark.parametrize("system", SYSTEMS, ids=repr)
def test_a_short_step_follows_the_tendency(system):
    tiny = type(system)(**{**vars(system), "dt": 1e-5})
    x = simulate(system, start(system), 20)[:, -1]
    slope = (tiny.step(x) - x) / 1e-5
    torch.testing.assert_close(slope, system.tendency(x), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("system", SYSTEMS, ids=repr)
def test_steps_are_differentiable(system):
    x = start(system, rows=2)[:, ...].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: simulate(system, x, 3, every=3), x, atol=1e-6)


@pytest.mark.parametrize("system", SYSTEMS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_of_a_batch_is_the_run_of_that_row_alone_in_its_own_dtype(system, dtype):
    x = start(system, dtype=dtype)
    whole = simulate(system, x, 12, every=4, noise_sd=0.01, streams=Streams(1, range(4), purpose="run"))
    alone = simulate(system, x[2:3], 12, every=4, noise_sd=0.01, streams=Streams(1, [2], purpose="run"))
    assert whole.shape == (4, 4, *system.space.shape) and whole.dtype == dtype
    torch.testing.assert_close(
        alone[0], whole[2], rtol=0, atol=float(torch.finfo(dtype).eps * 100 * whole.abs().max())
    )


@pytest.mark.parametrize("system", SYSTEMS, ids=repr)
def test_states_in_time_fit_the_space_of_trajectories(system):
    out = simulate(system, start(system), 5)
    space = system.trajectories(np.arange(6) * system.dt)
    labelled = space.dataset(system.as_trajectories(out), ["sample"])
    name = next(iter(system.space.variables))
    at = labelled[name].isel(sample=1, time=3).values
    first = out[1, 3] if len(system.space.variables) == 1 else out[1, 3].unbind(0)[0]
    np.testing.assert_array_equal(at, first.numpy())


def test_noise_is_added_after_every_step_with_the_given_sd():
    class Still(Lorenz96.__base__):
        dt = 1.0
        space = Lorenz96(sites=4).space

        def tendency(self, x):
            return 0 * x

    rows = 4000
    out = simulate(
        Still(),
        torch.zeros(rows, 4, dtype=torch.float64),
        6,
        every=2,
        noise_sd=torch.tensor([0.0, 1.0, 2.0, 3.0]),
        streams=Streams(0, range(rows), purpose="noise"),
    )
    exact = torch.arange(4.0, dtype=torch.float64)[:, None] * 2 * torch.arange(4.0, dtype=torch.float64) ** 2
    # the variance of a variance of n normals is 2 var^2 / n
    assert bool(((out.var(0) - exact).abs() <= 4.5 * exact * math.sqrt(2 / rows)).all())
    ahead = out.diff(dim=1)
    cross = (ahead[:, 0, 1] * ahead[:, 1, 1]).mean() / 2
    assert abs(float(cross)) < 4.5 / math.sqrt(rows)


def test_noise_of_long_runs_does_not_depend_on_how_much_is_drawn_at_once(monkeypatch):
    system, x = Lorenz63(dt=0.025), start(Lorenz63(), rows=2)

    def run():
        return simulate(system, x, 9, noise_sd=0.1, streams=Streams(0, range(2), purpose="run"))

    whole = run()
    monkeypatch.setattr("sciddiff.physics.systems._NOISE_AT_ONCE", 12)
    assert bool((run() == whole).all())


# -- Lorenz ------------------------------------------------------------------------------------------


def test_the_fixed_points_of_lorenz63_do_not_move():
    system = Lorenz63()
    a = math.sqrt(system.beta * (system.rho - 1))
    points = torch.tensor([[0.0, 0, 0], [a, a, 27], [-a, -a, 27]], dtype=torch.float64)
    assert float((system.step(points) - points).abs().max()) < 1e-13


def test_lorenz63_contracts_volume_at_the_known_rate():
    system, x = Lorenz63(), start(Lorenz63(), rows=1)[0]
    jacobian = torch.func.jacrev(system.tendency)(x)
    assert math.isclose(float(jacobian.trace()), -(10 + 1 + 8 / 3), rel_tol=1e-12)


def test_lorenz63_has_its_known_climate():
    # 512 runs of 40 time units: the attractor's sd is known to be about 7.93, 9.01 and 8.62
    out = simulate(Lorenz63(), start(Lorenz63(), rows=512), 5000, every=25)[:, 40:]
    flat = out.flatten(0, 1)
    # errors of means over a run, from the runs
    error = out.square().mean(1).std(0) / math.sqrt(512)
    second = torch.tensor([7.93, 9.01, 0.0], dtype=torch.float64).square()
    assert float(((flat.square().mean(0) - second) / error)[:2].abs().max()) < 6
    assert abs(float(flat[:, 2].mean()) - 23.55) < 0.1 and abs(float(flat[:, 2].std()) - 8.62) < 0.1
    assert abs(float(out[..., 0].mean(1).mean() / out[..., 0].mean(1).std())) < 4.5 / math.sqrt(512)


def test_the_advection_of_lorenz96_keeps_energy():
    system = Lorenz96()
    x = start(system, rows=8) * 3
    power = (x * (system.tendency(x) + x - system.forcing)).sum(-1)
    assert float(power.abs().max()) < 1e-11


def test_lorenz96_at_the_forcing_is_at_rest_and_grows_at_the_linear_rate_about_it():
    system = Lorenz96(sites=40)
    rest = torch.full((40,), 8.0, dtype=torch.float64)
    assert float(system.tendency(rest).abs().max()) == 0
    eigenvalues = torch.linalg.eigvals(torch.func.jacrev(system.tendency)(rest))
    angle = 2 * math.pi * torch.arange(40, dtype=torch.float64) / 40
    # of waves exp(i angle j): F (exp(i angle) - exp(-2 i angle)) - 1
    exact = 8 * (torch.exp(1j * angle) - torch.exp(-2j * angle)) - 1
    assert float((eigenvalues[:, None] - exact).abs().min(0).values.max()) < 1e-10


def test_lorenz96_has_its_known_climate():
    out = simulate(Lorenz96(), 8 + start(Lorenz96(), rows=64), 1000, every=10)[:, 20:]
    # the spread about the climate's mean is 3.64, the mean 2.34
    means = out.mean((1, 2))
    assert abs(float(means.mean()) - 2.34) < 6 * float(means.std()) / 8 + 0.01
    assert abs(float(out.std()) - 3.64) < 0.05


# -- Kuramoto-Sivashinsky ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [1, 3, 6, 10])
def test_a_small_wave_grows_at_its_linear_rate(mode):
    system = KuramotoSivashinsky(sites=64, length=22.0, dt=0.25)
    x = torch.tensor(system.space.coords["x"])
    k = 2 * math.pi * mode / 22.0
    u = 1e-9 * torch.cos(k * x)
    grown = simulate(system, u[None], 8)[0, -1]
    rate = k**2 - k**4
    torch.testing.assert_close(grown, u * math.exp(2 * rate), rtol=1e-6, atol=1e-22)


@pytest.mark.parametrize(("dt", "low", "high"), [(0.25, 2.7, 3.7), (0.025, 3.2, 3.9)])
def test_the_default_field_converges_more_slowly_than_at_order_four(dt, low, high):
    # stiff damping takes part of the order at steps in use; on the attractor, over two units of time
    system = KuramotoSivashinsky()
    u, steps = simulate(system, 0.1 * start(system, rows=8), 600)[:, -1], round(2.0 / dt)
    runs = [simulate(KuramotoSivashinsky(dt=dt / n), u, steps * n)[:, -1] for n in (1, 2, 4)]
    assert low < order(*runs) < high


def test_fields_in_uniform_motion_are_the_same_fields():
    system = KuramotoSivashinsky(sites=64, length=22.0, dt=0.02)
    u = simulate(KuramotoSivashinsky(), 0.1 * start(system), 400)[:, -1]
    # eight cells in two units of time
    speed = 8 * (22.0 / 64) / 2.0
    moving = simulate(system, u + speed, 100)[:, -1]
    resting = simulate(system, u, 100)[:, -1]
    assert float((moving - speed - resting.roll(8, -1)).abs().max()) < 1e-5
    assert float((resting.mean(-1) - u.mean(-1)).abs().max()) < 1e-12


def test_energy_of_the_kuramoto_sivashinsky_field_changes_by_its_linear_part_alone():
    system = KuramotoSivashinsky(sites=96, length=22.0)
    u = simulate(system, 0.1 * start(system), 400)[:, -1]
    v = torch.fft.rfft(u)
    work = (u * torch.fft.irfft(system.product(v), n=96)).mean(-1)
    assert float(work.abs().max()) < 1e-8
    k = 2 * math.pi * torch.arange(49, dtype=torch.float64) / 22.0
    twice = torch.where((torch.arange(49) > 0) & (torch.arange(49) < 48), 2.0, 1.0)
    gain = ((k**2 - k**4) * twice * v.abs().square()).sum(-1) / 96**2
    torch.testing.assert_close((u * system.tendency(u)).mean(-1), gain, rtol=1e-8, atol=1e-8)


def test_the_products_of_the_kuramoto_sivashinsky_field_have_no_aliases():
    system = KuramotoSivashinsky(sites=24, length=22.0)
    v = torch.zeros(13, dtype=torch.complex128)
    v[7], v[6] = 3.0, 1.0
    # wave 7 + 7 = 14 of 24 sites would come back as wave 10, and 7 + 6 = 13 as 11; only 7 - 6 = 1 is below a third
    out = system.product(v).abs()
    assert float(out[1]) > 1e-3 and float(out[2:].max()) < 1e-12


def test_exponential_steps_are_exact_without_and_runge_kutta_with_the_nonlinear_part_alone():
    linear = np.array([0.0, 1e-9, -1e-3, -0.3, -3.0, -4e5, 0.2])
    v = torch.linspace(-1, 1, 7, dtype=torch.float64)
    step = ETDRK4(linear, dt=0.5)
    torch.testing.assert_close(
        step(v, torch.zeros_like), v * torch.from_numpy(np.exp(0.5 * linear)), rtol=1e-12, atol=0
    )
    still = ETDRK4(np.zeros(7), dt=0.5)
    torch.testing.assert_close(
        still(v, lambda v: v.cos()), rk4(lambda v: v.cos(), v, 0.5), rtol=1e-12, atol=0
    )


def test_the_coefficients_of_exponential_steps_are_those_of_exact_arithmetic():
    mpmath = pytest.importorskip("mpmath")
    values = [-500.0, -12.0, -1.0, -0.1, -1e-5, 0.3]
    table = ETDRK4(np.array(values), dt=1.0)._table
    with mpmath.workdps(60):
        for i, value in enumerate(values):
            z = mpmath.mpf(value)
            e = mpmath.exp(z)
            exact = [
                (mpmath.exp(z / 2) - 1) / z,
                (-4 - z + e * (4 - 3 * z + z**2)) / z**3,
                2 * (2 + z + e * (z - 2)) / z**3,
                (-4 - 3 * z - z**2 + e * (4 - z)) / z**3,
            ]
            for ours, theirs in zip(table[2:, i].tolist(), exact, strict=True):
                assert abs(ours - float(theirs)) < 1e-13


def test_exponential_steps_take_complex_rates():
    step = ETDRK4(np.array([2j, -1 + 1j]), dt=0.1)
    v = torch.ones(2, dtype=torch.complex128)
    exact = torch.exp(torch.tensor([0.2j, -0.1 + 0.1j], dtype=torch.complex128))
    torch.testing.assert_close(step(v, torch.zeros_like), exact, rtol=1e-12, atol=0)


# -- oscillators -------------------------------------------------------------------------------------


def test_the_double_pendulum_keeps_its_energy_to_the_order_of_the_scheme():
    drift = []
    x = torch.tensor([[2.0, 1.0, 0.0, 0.0], [0.5, -2.0, 1.0, 0.5]], dtype=torch.float64)
    for dt in (0.004, 0.002):
        system = DoublePendulum(masses=(1.0, 2.0), lengths=(1.0, 0.7), dt=dt)
        end = simulate(system, x, round(1.0 / dt))[:, -1]
        drift.append(system.energy(end) - system.energy(x))
    # what RK4 loses in energy is of order four, or five where the leading term is a round trip
    assert math.log2(float(drift[0].norm() / drift[1].norm())) > 3.7
    assert float(drift[1].abs().max()) < 1e-5 * 9.81 * 3


def test_a_slightly_swung_double_pendulum_has_its_two_known_frequencies():
    system = DoublePendulum()
    rest = torch.zeros(4, dtype=torch.float64)
    eigenvalues = torch.linalg.eigvals(torch.func.jacrev(system.tendency)(rest))
    exact = [math.sqrt(9.81 * (2 + s * math.sqrt(2))) for s in (-1, -1, 1, 1)]
    np.testing.assert_allclose(np.sort(eigenvalues.imag.abs().numpy()), exact, rtol=1e-12)


def test_the_rest_of_excitable_units_is_a_fixed_point_with_the_known_growth():
    system = FitzHughNagumo(b=(0.0065,))
    rest = torch.zeros(2, 1, dtype=torch.float64)
    assert float(system.tendency(rest).abs().max()) == 0
    jacobian = torch.func.jacrev(system.tendency)(rest).reshape(2, 2)
    # dv = -a v - w, dw = b v - c w
    torch.testing.assert_close(
        jacobian, torch.tensor([[0.025794, -1.0], [0.0065, -0.02]], dtype=torch.float64)
    )


def test_units_that_are_alike_stay_alike_and_feel_no_coupling():
    x = torch.tensor([[[0.3, 0.3, 0.3], [0.1, 0.1, 0.1]]], dtype=torch.float64)
    three = simulate(FitzHughNagumo(b=(0.01,) * 3), x, 50)
    one = simulate(FitzHughNagumo(b=(0.01,)), x[..., :1], 50)
    assert float((three - one).abs().max()) < 1e-12


@pytest.mark.slow
def test_two_different_units_burst_together_now_and_then():
    out = simulate(FitzHughNagumo(), start(FitzHughNagumo(), rows=24), 12000, every=20)
    mean = out[:, 100:, 0].mean(-1)
    share = float((mean > 0.6).double().mean())
    assert 0 < share < 0.05


# -- refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: Lorenz63(dt=0.0), "dt"),
        (lambda: Lorenz63(rho=math.nan), "rho"),
        (lambda: Lorenz96(sites=3), "sites"),
        (lambda: KuramotoSivashinsky(length=-1.0), "length"),
        (lambda: FitzHughNagumo(b=()), "b"),
        (lambda: DoublePendulum(masses=(1.0,)), "masses"),
        (lambda: DoublePendulum(lengths=(1.0, 0.0)), "lengths[1]"),
        (lambda: Lorenz63().step(torch.zeros(4)), "x"),
        (lambda: Lorenz63().step(torch.zeros(3, dtype=torch.int64)), "x"),
        (lambda: simulate(Lorenz63(), torch.zeros(3), 4), "x0"),
        (lambda: simulate(Lorenz63(), torch.full((2, 3), math.nan), 4), "x0"),
        (lambda: simulate(Lorenz63(), torch.zeros(2, 3), 4, every=3), "every"),
        (lambda: simulate(Lorenz63(), torch.zeros(2, 3), -1), "steps"),
        (lambda: simulate(Lorenz63(), torch.zeros(2, 3), 4, noise_sd=1.0), "streams"),
        (lambda: simulate(Lorenz63(), torch.zeros(2, 3), 4, noise_sd=-1.0), "noise_sd"),
        (lambda: simulate(Lorenz63(), torch.zeros(2, 3), 4, noise_sd=torch.ones(2)), "noise_sd"),
        (lambda: ETDRK4([math.inf], dt=1.0), "linear"),
        (lambda: ETDRK4([1.0], dt=0.0), "dt"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(make, argument):
    with pytest.raises(InputError) as error:
        make()
    assert error.value.argument == argument


def test_a_run_that_blows_up_says_so():
    with pytest.raises(DivergenceError, match="1 of 2 runs"):
        simulate(Lorenz63(dt=0.2), torch.tensor([[0.0, 0.0, 0.0], [900.0, 9.0, 9.0]]), 40)
