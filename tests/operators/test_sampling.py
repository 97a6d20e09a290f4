"""Sensors, masks and sub-grids read what they say they read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr

from sciddiff.errors import InputError
from sciddiff.operators import LinearOperator, Mask, Points, Radon, Select, restrict
from sciddiff.spaces import Space, Variable

LAT, LON = np.array([60.0, 50.0, 45.0]), np.array([0.0, 1.0, 3.0, 4.0])
FIELD = Space({"time": ["a", "b"], "lat": LAT, "lon": LON}, {"t": "K", "q": "g/kg"})
DAYS = Space({"time": np.array(["2000-01-01", "2000-01-02", "2000-01-05"], dtype="M8[D]")}, {"flow": "m3/s"})


def bilinear(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    return 1.0 + 2 * lat - 3 * lon + 0.5 * lat * lon


def fields() -> torch.Tensor:
    """``t`` at the two times is a bilinear function and twice it; ``q`` is its negative."""
    f = torch.from_numpy(bilinear(LAT[:, None], LON[None, :]))
    return torch.stack([torch.stack([f, 2 * f]), torch.stack([-f, -2 * f])])[None]


def test_points_read_the_labelled_values():
    sensors = Points(FIELD, {"lat": [45.0, 60.0], "lon": [3.0, 0.0]})
    f = bilinear(np.array([45.0, 60.0]), np.array([3.0, 0.0]))
    assert sensors.codomain == Space({"time": ["a", "b"], "sensor": 2}, {"t": "K", "q": "g/kg"})
    assert np.array_equal(sensors.apply(fields())[0], [[f, 2 * f], [-f, -2 * f]])
    assert sensors.locations["lat"].tolist() == [45.0, 60.0] and sensors.locations["lon"].tolist() == [
        3.0,
        0.0,
    ]


def test_linear_interpolation_is_exact_for_bilinear_fields_on_uneven_descending_grids():
    rng = np.random.default_rng(0)
    lat, lon = rng.uniform(45, 60, 40), rng.uniform(0, 4, 40)
    lat[:2], lon[:2] = [45.0, 60.0], [4.0, 0.0]
    sensors = Points(FIELD, {"lat": lat, "lon": lon}, variables="q", interpolate="linear")
    assert np.allclose(sensors.apply(fields())[0, 1], -2 * bilinear(lat, lon), rtol=1e-13)
    assert list(sensors.codomain.variables) == ["q"]


def test_points_of_all_dims_take_one_row_per_sensor():
    plane = Space({"lat": LAT, "lon": LON}, "t")
    rows = np.array([[50.0, 3.0], [60.0, 4.0]])
    f = torch.from_numpy(bilinear(LAT[:, None], LON[None, :]))[None]
    assert np.array_equal(Points(plane, rows).apply(f)[0], bilinear(*rows.T))
    by_index = Points.at_indices(plane, [[1, 2], [0, 3]])
    assert torch.equal(by_index.apply(f), Points(plane, rows).apply(f))
    assert by_index.locations["lat"].tolist() == [50.0, 60.0]


def test_points_take_dates_and_words():
    flow = torch.tensor([[1.0, 2.0, 8.0]])
    when = np.array(["2000-01-05", "2000-01-01"], dtype="M8[D]")
    assert Points(DAYS, when).apply(flow).tolist() == [[8.0, 1.0]]
    half = np.array(["2000-01-03T12:00"], dtype="M8[m]")
    assert Points(DAYS, half, interpolate="linear").apply(flow).tolist() == [[5.0]]
    assert torch.equal(Points(FIELD, {"time": ["b"]}).apply(fields())[0, ..., 0], fields()[0, :, 1])


def test_points_of_a_complex_variable_read_both_parts():
    space = Space({"t": 3}, {"z": Variable(("t",), complex=True)})
    sensors = Points.at_indices(space, [2, 0, 2])
    assert sensors.apply(torch.arange(6.0).reshape(1, 2, 3)).tolist() == [[[2.0, 0.0, 2.0], [5.0, 3.0, 5.0]]]
    assert sensors.codomain.variables["z"].complex


def test_the_adjoint_of_points_adds_repeated_sensors_up():
    sensors = Points.at_indices(Space({"t": 3}), [2, 0, 2])
    assert sensors.adjoint(torch.tensor([[1.0, 10.0, 100.0]])).tolist() == [[10.0, 0.0, 101.0]]


@pytest.mark.parametrize(
    ("locations", "options", "message"),
    [
        ([[50.0, 0.5]], {}, "interpolate='linear'"),
        ([[70.0, 0.0]], {"interpolate": "linear"}, "points inside the grid"),
        ([[70.0, 0.0]], {}, "labels of 'lat'"),
        ([[np.nan, 0.0]], {}, "finite coordinates"),
        ([[50.0]], {}, "one column per dim"),
        ([50.0, 0.0], {}, "one column per dim"),
        (np.zeros((0, 2)), {}, "at least one sensor"),
        ({"lat": [50.0], "lon": [0.0, 1.0]}, {}, "as many labels"),
        ({"depth": [1.0]}, {}, "dims among"),
        ({"lat": ["a"]}, {}, "labels of 'lat' like"),
        ([[50.0, 0.0]], {"variables": "salt"}, "names among"),
        ([[50.0, 0.0]], {"interpolate": "cubic"}, "'exact' or 'linear'"),
        ({"lat": [50.0]}, {"dim": "lon"}, "pass another dim="),
    ],
)
def test_bad_locations_are_refused(locations, options, message):
    with pytest.raises(InputError, match=message):
        Points(Space({"lat": LAT, "lon": LON}, "t"), locations, **options)


@pytest.mark.parametrize("indices", [[3], [-1], [0.5]])
def test_bad_indices_are_refused(indices):
    with pytest.raises(InputError, match="ints from 0 to 2"):
        Points.at_indices(Space({"t": 3}), indices)


def test_numbers_are_not_taken_for_dates():
    with pytest.raises(InputError, match="labels of 'time' like 2000-01-01"):
        Points(DAYS, [1.0])


def test_a_mask_reads_its_points_and_is_an_isometry_back():
    plane = Space({"lat": LAT, "lon": LON}, ["t", "q"])
    keep = np.add.outer(LAT, LON) > 52
    seen = Mask(plane, keep)
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(seen.apply(x), x[:, :, torch.from_numpy(keep)])
    assert torch.equal(seen.apply(seen.adjoint(seen.apply(x))), seen.apply(x))
    assert np.array_equal(seen.locations["lon"], np.broadcast_to(LON, keep.shape)[keep])


def test_labelled_masks_are_matched_by_their_dims():
    plane = Space({"lat": LAT, "lon": LON}, ["t", "q"])
    keep = xr.DataArray(np.add.outer(LAT, LON) > 52, dims=["lat", "lon"])
    assert torch.equal(Mask(plane, keep.T).index, Mask(plane, keep).index)
    one = Mask(plane, xr.Dataset({"q": keep}))
    assert one.codomain == Space({"q_point": int(keep.sum())}, "q")


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([1, 0, 1], "booleans of shape"),
        ([True, False], "booleans of shape"),
        ([False, False, False], "at least one True"),
        ({"nothing": [True] * 3}, "names among"),
    ],
)
def test_bad_masks_are_refused(mask, message):
    with pytest.raises(InputError, match=message):
        Mask(Space({"t": 3}), mask)


def test_select_keeps_labels_and_their_order():
    some = Select(FIELD, {"time": ["b"], "lon": [4.0, 0.0]}, variables="t")
    assert some.codomain == Space({"time": ["b"], "lat": LAT, "lon": [4.0, 0.0]}, {"t": "K"})
    assert torch.equal(some.apply(fields()), fields()[:, 0, 1:, :, [3, 0]])


def test_restrict_keeps_rows_of_any_operator():
    plane = Space({"y": 4, "x": 4}, "a")
    radon = Radon(plane, [0.0, 30.0, 60.0])
    x = torch.randn(2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    some = restrict(radon, {"angle": [2, 0]})
    assert isinstance(some, LinearOperator)
    assert some.codomain.coords["angle"].tolist() == [60.0, 0.0]
    assert torch.equal(some.apply(x), radon.apply(x)[:, [2, 0]])
    keep = torch.zeros(radon.codomain.grid, dtype=torch.bool)
    keep[1, 2] = True
    assert torch.equal(restrict(radon, keep).apply(x), radon.apply(x)[:, 1, 2, None])
    with pytest.raises(InputError, match="a mapping of dims"):
        restrict(radon, [0, 1])
