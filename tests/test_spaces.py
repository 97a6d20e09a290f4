"""Claims about spaces: labels survive the way to tensors and back, and what does not fit is refused."""

from __future__ import annotations

import json
import math
from datetime import date, datetime

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as some

import sciddiff as sd
from sciddiff.errors import InputError
from sciddiff.spaces import Space, Variable

DATES = np.arange("2000-01-01", "2000-01-06", dtype="datetime64[D]").astype("datetime64[ns]")
SPACES = {
    "line": Space({"x": np.linspace(0, 1, 5)}, {"t": "K"}),
    "plane": Space(
        {"lat": [50.0, 40.0, 30.0], "lon": 4},
        {"t": Variable(("lat", "lon"), "K", attrs={"long_name": "heat"})},
    ),
    "solid": Space({"z": 2, "y": [1, 2, 3], "x": 4}, "u"),
    "many": Space({"y": 3, "x": [0.0, 0.5]}, {"t": "K", "q": "g/kg", "w": None}),
    "dates": Space({"time": DATES}, {"sst": "degC"}),
    "irregular": Space({"time": [0.0, 0.1, 2.0, 7.5]}, ["a", "b"]),
    "names": Space({"station": ["oslo", "rome", "lima"]}, "rain"),
    "durations": Space({"lead": np.array([1, 3, 9], dtype="timedelta64[h]")}, "t"),
    "graph": Space(
        {"node": 4, "edge": 3},
        {"charge": Variable(("node",), "C"), "length": Variable(("edge",), "m"), "mass": Variable(())},
        edges=[[0, 1, 2], [1, 2, 3]],
    ),
    "complex": Space({"y": 2, "x": 3}, {"psi": Variable(("y", "x"), "V", complex=True)}),
    "complex and real": Space(
        {"f": [1.0, 2.0]},
        {"z": Variable(("f",), complex=True), "r": "m", "w": Variable(("f",), complex=True)},
    ),
    "complex graph": Space(
        {"node": 3, "edge": 2}, {"v": Variable(("node",), complex=True), "i": Variable(("edge",))}
    ),
    "transposed": Space({"y": 2, "x": 3}, {"a": Variable(("x", "y")), "b": Variable(("y", "x"))}),
    "one number": Space({}, "total"),
    "numbers": Space({}, ["a", "b"]),
}


@pytest.fixture(params=list(SPACES))
def space(request):
    return SPACES[request.param]


def states(space: Space, *lead: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal((*lead, *space.shape)))


def test_a_tensor_comes_back_from_xarray(space):
    one, many = states(space), states(space, 4)
    assert torch.equal(space.tensor(space.dataset(one)), one)
    assert torch.equal(space.tensor(space.dataset(many, ["case"]), batch_dim="case"), many)


def test_a_dataset_keeps_names_dims_coords_units_and_attributes(space):
    out = space.dataset(states(space, 2), ["sample"], {"sample": [7, 9]})
    assert list(out.data_vars) == list(space.variables)
    for name, variable in space.variables.items():
        assert out[name].dims == ("sample", *variable.dims)
        assert out[name].attrs == {**variable.attrs, **({"units": variable.units} if variable.units else {})}
        assert np.iscomplexobj(out[name]) == variable.complex
    assert set(out.coords) == {"sample", *space.coords}
    for dim, labels in space.coords.items():
        np.testing.assert_array_equal(out[dim].values, labels)
    assert out["sample"].values.tolist() == [7, 9]


def test_dims_are_matched_by_name_and_not_by_place(space):
    data = space.dataset(states(space, 2), ["case"])
    turned = data.transpose(*reversed(list(data.dims)))
    assert torch.equal(space.tensor(turned, batch_dim="case"), states(space, 2))


def test_plain_arrays_lie_as_they_are(space):
    x = states(space)
    assert torch.equal(space.tensor(x.numpy()), x)
    assert torch.equal(space.tensor(x), x)
    assert torch.equal(space.tensor(x.tolist()), x)
    assert torch.equal(space.tensor(x[None], batch_dim="case"), x[None])


def test_a_batch_of_none_is_a_batch(space):
    assert space.tensor(states(space, 0), batch_dim="case").shape == (0, *space.shape)


def test_size_and_components_count_the_real_values(space):
    assert space.size == math.prod(space.shape)
    assert len(space.components) == sum(2 if v.complex else 1 for v in space.variables.values())


def test_a_space_comes_back_from_json(space):
    again = Space.from_dict(json.loads(json.dumps(space.to_dict())))
    assert again == space and again.dims == space.dims and again.variables == space.variables
    for dim, labels in space.coords.items():
        assert again.coords[dim].dtype == labels.dtype
        np.testing.assert_array_equal(again.coords[dim], labels)
    assert (again.edges is None) == (space.edges is None)


def test_a_space_shows_itself_without_values(space):
    assert repr(space).startswith("Space(") and all(name in repr(space) for name in space.variables)
    assert isinstance(space._repr_html_(), str)


@settings(deadline=None, max_examples=40)
@given(some.data())
def test_every_small_space_keeps_its_states(data):
    dims = data.draw(some.lists(some.sampled_from(["a", "b", "c"]), unique=True, max_size=3))
    sizes = {d: data.draw(some.integers(1, 3)) for d in dims}
    coords = {
        d: data.draw(
            some.sampled_from([n, list(range(n)), np.sort(np.random.default_rng(n).random(n)), DATES[:n]])
        )
        for d, n in sizes.items()
    }
    subset = some.lists(some.sampled_from(dims), unique=True) if dims else some.just([])
    variables = {
        name: Variable(tuple(data.draw(subset)), None, data.draw(some.booleans()))
        for name in data.draw(some.lists(some.sampled_from(["p", "q", "r"]), unique=True, min_size=1))
    }
    space = Space(coords, variables)
    x = states(space, 2)
    labelled = space.dataset(x, ["case"]).transpose(..., "case")
    assert torch.equal(space.tensor(labelled, batch_dim="case"), x)
    assert Space.from_dict(json.loads(json.dumps(space.to_dict()))) == space


# -- layout: the shapes that everything else counts on ----------------------------------------------


def test_variables_on_the_same_dims_are_stacked_in_front():
    space = SPACES["many"]
    data = space.dataset(states(space))
    assert space.shape == (3, 3, 2)
    np.testing.assert_array_equal(states(space)[1], data["q"])


def test_variables_on_other_dims_are_laid_one_behind_the_other():
    space, x = SPACES["graph"], states(SPACES["graph"])
    data = space.dataset(x)
    assert space.shape == (8,)
    np.testing.assert_array_equal(x, np.concatenate([data["charge"], data["length"], [data["mass"]]]))


def test_a_complex_variable_is_its_real_and_then_its_imaginary_part():
    space, x = SPACES["complex and real"], states(SPACES["complex and real"])
    data = space.dataset(x)
    np.testing.assert_array_equal(data["z"], x[0] + 1j * x[1])
    np.testing.assert_array_equal(data["r"], x[2])
    np.testing.assert_array_equal(data["w"], x[3] + 1j * x[4])


def test_complex_arrays_are_split():
    space = SPACES["complex"]
    z = np.array([[1 + 2j, 3.0, 0], [0, 4j, 0]])
    for data in (z, torch.from_numpy(z), torch.from_numpy(z.conj()).conj(), z.tolist()):
        out = space.tensor(data)
        np.testing.assert_array_equal(out[0] + 1j * out[1], z)
    pair = Space({"x": 3}, {n: Variable(("x",), complex=True) for n in "ab"})
    np.testing.assert_array_equal(pair.tensor(z[None], batch_dim="case")[0, 2:], [[0, 0, 0], [0, 4, 0]])


def test_a_missing_complex_value_is_missing_in_both_parts():
    space = SPACES["complex"]
    z = np.ones((2, 3), dtype=complex)
    z[0, 1] = np.nan
    for data in (z, space.dataset(torch.zeros(space.shape))["psi"].copy(data=z)):
        out = space.tensor(data, missing=True)
        assert out.isnan().nonzero().tolist() == [[0, 0, 1], [1, 0, 1]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_states_of_any_precision_are_labelled(dtype):
    x = torch.arange(5.0).to(dtype)
    assert SPACES["line"].dataset(x)["t"].values.tolist() == [0, 1, 2, 3, 4]


def test_float32_draws_of_complex_variables_stay_single():
    assert SPACES["complex"].dataset(torch.zeros(2, 2, 3))["psi"].dtype == np.complex64


# -- pandas ------------------------------------------------------------------------------------------


def test_a_pandas_series_brings_its_dates():
    series = pd.Series(np.arange(5.0), index=pd.DatetimeIndex(DATES))
    assert SPACES["dates"].tensor(series).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(InputError, match="coords of 'time'"):
        SPACES["dates"].tensor(series.shift(freq="D"))


def test_a_pandas_frame_holds_variables_by_name():
    frame = pd.DataFrame({"b": [4.0, 5, 6, 7], "a": [0.0, 1, 2, 3]}, index=[0.0, 0.1, 2.0, 7.5])
    assert SPACES["irregular"].tensor(frame).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_pandas_frame_holds_a_field():
    space = Space({"y": [1.0, 2.0], "x": ["a", "b", "c"]}, "t")
    frame = pd.DataFrame(np.arange(6.0).reshape(2, 3), index=[1.0, 2.0], columns=["a", "b", "c"])
    assert torch.equal(space.tensor(frame), torch.arange(6.0, dtype=torch.float64).reshape(2, 3))
    with pytest.raises(InputError, match="coords of 'x'"):
        space.tensor(frame[["b", "a", "c"]])


def test_missing_values_of_pandas_are_nan():
    series = pd.Series([1.0, None, 3.0], dtype="Float64")
    assert Space({"time": 3}).tensor(series, missing=True).isnan().tolist() == [False, True, False]


# -- labels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels",
    [
        [date(2000, 1, 1), date(2000, 1, 2)],
        [datetime(2000, 1, 1, 6), datetime(2000, 1, 2)],
        pd.DatetimeIndex(["2000-01-01", "2000-01-02"]),
        np.array(["2000-01-01", "2000-01-02"], dtype="datetime64[s]"),
        xr.DataArray(pd.DatetimeIndex(["2000-01-01", "2000-01-02"]), dims="time"),
    ],
)
def test_dates_of_any_make_are_dates(labels):
    space = Space({"time": labels})
    assert space.coords["time"].dtype.kind == "M"
    data = xr.DataArray(
        [1.0, 2.0], dims="time", coords={"time": np.asarray(space.coords["time"], "datetime64[ns]")}
    )
    assert space.tensor(data).tolist() == [1, 2]


def test_labels_may_differ_by_rounding_only():
    space = Space({"x": np.linspace(0, 1, 5)}, "t")
    data = space.dataset(torch.zeros(5))["t"]
    space.tensor(data.assign_coords(x=data["x"] + 1e-9))
    with pytest.raises(InputError, match="coords of 'x'"):
        space.tensor(data.assign_coords(x=data["x"] + 1e-3))


def test_data_without_labels_are_taken_as_they_lie():
    space = SPACES["plane"]
    assert torch.equal(
        space.tensor(xr.DataArray(np.ones((3, 4)), dims=("lat", "lon"))), torch.ones(3, 4).double()
    )


def test_further_labels_of_the_data_do_not_disturb():
    data = xr.DataArray([1.0, 2.0], dims="f", coords={"f": [1.0, 2.0], "t": 5.0, "name": ("f", ["p", "q"])})
    assert Space({"f": [1.0, 2.0]}, "t").tensor(data).tolist() == [1, 2]


def test_the_default_variable_does_not_take_the_name_of_a_dim():
    assert list(Space({"time": 3}).variables) == ["x"]
    assert list(Space({"x": 3}).variables) == ["u"]


def test_dtype_and_device_are_those_asked_for():
    space = SPACES["line"]
    for dtype in (torch.float32, torch.float64):
        assert space.tensor(np.zeros(5, dtype=np.int8), dtype=dtype).dtype == dtype
    assert space.tensor(torch.zeros(5, dtype=torch.bfloat16)).dtype == torch.float64
    assert not space.tensor(torch.zeros(5, requires_grad=True)).requires_grad


def test_reading_leaves_the_data_alone():
    x = np.zeros(5)
    space = SPACES["line"]
    space.tensor(x).add_(1)
    space.tensor(torch.from_numpy(x)).add_(1)
    assert (x == 0).all()


# -- comparison --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (Space({"x": [0.0, 1.0, 3.0]}, {"t": "K"}), "coords"),
        (Space({"x": 4}, {"t": "K"}), "dims"),
        (Space({"y": [0.0, 1.0, 2.0]}, {"t": "K"}), "dims"),
        (Space({"x": [0.0, 1.0, 2.0]}, {"t": "degC"}), "units"),
        (Space({"x": [0.0, 1.0, 2.0]}, {"q": "K"}), "variables"),
        (Space({"x": [0.0, 1.0, 2.0]}, {"t": Variable(("x",), "K", complex=True)}), "variable 't'"),
    ],
)
def test_a_difference_is_named(other, word):
    space = Space({"x": [0.0, 1.0, 2.0]}, {"t": "K"})
    assert word in space.difference(other) and space != other


def test_graphs_of_other_edges_are_other_spaces():
    a, b = (Space({"node": 3}, edges=edges) for edges in ([[0, 1], [1, 2]], [[0, 0], [1, 2]]))
    assert "edges" in a.difference(b)
    assert a == Space({"node": 3}, edges=[[0, 1], [1, 2]])


def test_unknown_labels_and_units_fit_any():
    assert Space({"x": 3}, {"t": "K"}) == Space({"x": [0.0, 1.0, 2.0]}, "t")


# -- refusals ----------------------------------------------------------------------------------------

FIELD = SPACES["plane"]
GOOD = FIELD.dataset(torch.zeros(3, 4))


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (np.zeros((4, 3)), "shape"),
        (np.zeros(12), "shape"),
        (np.zeros((1, 4)), "nothing is broadcast"),
        (np.zeros((3, 1)), "nothing is broadcast"),
        (0.0, "shape"),
        (np.zeros((2, 3, 4)), "batch_dim"),
        (np.zeros((3, 0)), "shape"),
        (np.full((3, 4), np.nan), "12 NaN"),
        (np.full((3, 4), np.inf), "infinite"),
        (np.zeros((3, 4), dtype=complex), "real numbers"),
        (np.zeros((3, 4), dtype=object), "dtype object"),
        (np.full((3, 4), "a"), "dtype <U1"),
        (np.zeros((3, 4), dtype="datetime64[s]"), "dtype datetime64"),
        (np.ma.masked_array(np.zeros((3, 4)), np.eye(3, 4)), "mask"),
        ([[1.0, 2.0], [3.0]], "array of numbers"),
        ("abc", "dtype <U3"),
        (None, "dtype object"),
        (torch.zeros(3, 4).to_sparse(), "array of numbers"),
        (GOOD.rename(lon="longitude"), "dims"),
        (GOOD.expand_dims("member"), "dims"),
        (GOOD.isel(lat=0), "dims"),
        (GOOD.isel(lat=[0, 1]), "3 values along 'lat'"),
        (GOOD.isel(lat=[2, 1, 0]), "coords of 'lat'"),
        (GOOD.assign_coords(lat=[50.0, 50.0, 30.0]), "coords of 'lat'"),
        (GOOD.assign_coords(lat=["a", "b", "c"]), "coords of 'lat'"),
        (GOOD.rename(t="temperature"), "variables"),
        (GOOD.assign(extra=GOOD["t"]), "variables"),
        (GOOD.assign(t=GOOD["t"].assign_attrs(units="degC")), "units 'K'"),
        (GOOD.astype(complex), "real numbers"),
        (GOOD.astype(str), "real numbers"),
        (GOOD.where(GOOD["lat"] > 35), "4 NaN"),
        (GOOD.to_dataframe()["t"], "dims"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(data, word):
    with pytest.raises(InputError) as caught:
        FIELD.tensor(data, argument="y")
    assert word in str(caught.value) and caught.value.argument == "y"


def test_a_data_array_does_not_say_which_variable_it_is():
    with pytest.raises(InputError, match="Dataset"):
        SPACES["many"].tensor(xr.DataArray(np.zeros((3, 2)), dims=("y", "x")))


def test_numbers_beyond_the_dtype_are_refused():
    with pytest.raises(InputError, match="range of float32"):
        SPACES["line"].tensor(np.full(5, 1e300), dtype=torch.float32)


def test_infinity_is_refused_where_gaps_are_allowed():
    with pytest.raises(InputError, match="finite"):
        SPACES["line"].tensor([1.0, np.inf, 0, 0, np.nan], missing=True)


@pytest.mark.parametrize(
    ("coords", "variables", "word"),
    [
        (5, "t", "mapping"),
        ({3: 4}, "t", "mapping"),
        ({"sample": 4}, "t", "'sample'"),
        ({"x": 0}, "t", "size of at least 1"),
        ({"x": -2}, "t", "size of at least 1"),
        ({"x": 2.5}, "t", "1-D labels"),
        ({"x": True}, "t", "1-D labels"),
        ({"x": None}, "t", "1-D labels"),
        ({"x": "abc"}, "t", "1-D labels"),
        ({"x": []}, "t", "1-D labels"),
        ({"x": np.zeros((2, 2))}, "t", "1-D labels"),
        ({"x": [0.0, 0.0]}, "t", "distinct"),
        ({"x": [0.0, np.nan]}, "t", "finite"),
        ({"x": [0.0, np.inf]}, "t", "finite"),
        ({"x": np.array(["2000", "NaT"], dtype="datetime64[Y]")}, "t", "finite"),
        ({"x": np.array([1, "NaT"], dtype="timedelta64[s]")}, "t", "finite"),
        ({"x": [True, False]}, "t", "numbers, dates or strings"),
        ({"x": [1j, 2j]}, "t", "numbers, dates or strings"),
        ({"x": [None, "a"]}, "t", "numbers, dates or strings"),
        ({"x": pd.period_range("2000", periods=2, freq="M")}, "t", "to_timestamp"),
        ({"x": 3}, [], "at least one variable"),
        ({"x": 3}, ["a", "a"], "distinct names"),
        ({"x": 3}, [1], "distinct names"),
        ({"x": 3}, 1, "distinct names"),
        ({"x": 3}, "sample", "distinct names"),
        ({"x": 3}, "x", "unlike the dims"),
        ({"x": 3}, {"t": Variable(("y",))}, "on dims"),
        ({"x": 3}, {"t": 1.0}, "units"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(coords, variables, word):
    with pytest.raises(InputError, match=word):
        Space(coords, variables)


@pytest.mark.parametrize("dims", ["time", ("x", "x")])
def test_a_variable_on_no_tuple_of_distinct_dims_is_refused(dims):
    with pytest.raises(InputError, match="distinct dim names"):
        Variable(dims)


@pytest.mark.parametrize("edges", [[0, 1], [[0, 1]], [[0.0], [1.0]], [[-1], [0]], [[0], [3]]])
def test_edges_that_join_no_nodes_are_refused(edges):
    with pytest.raises(InputError, match="`edges`"):
        Space({"node": 3}, edges=edges)


@pytest.mark.parametrize(
    ("values", "dims", "word"),
    [
        (torch.zeros(4, 3), (), "shape"),
        (torch.zeros(2, 3, 4), (), "shape"),
        (torch.zeros(3, 4), ("sample",), "shape"),
        (torch.zeros(2, 3, 4), ("lat",), "unlike those"),
        (torch.zeros(2, 3, 4), ("t",), "unlike those"),
        (torch.zeros(2, 2, 3, 4), ("a", "a"), "unlike those"),
    ],
)
def test_values_that_do_not_fit_get_no_labels(values, dims, word):
    with pytest.raises(InputError, match=word):
        FIELD.dataset(values, dims)


def sensors():
    space = Space({"lat": np.linspace(40, 44, 5), "lon": np.linspace(0, 5, 6)}, {"t": "K"})
    return space, sd.operators.Points(space, {"lat": [40.0, 44.0, 42.0], "lon": [0.0, 5.0, 1.0]})


def test_observations_carry_where_their_sensors_are():
    space, points = sensors()
    y = points.observe(space.dataset(torch.zeros(space.shape)), sd.noise.Gaussian(0.1), seed=0)
    assert y["lat"].dims == ("sensor",) and y["lat"].values.tolist() == [40.0, 44.0, 42.0]
    assert points.codomain.tensor(y).shape == (3,)


def test_reordered_sensors_are_refused():
    space, points = sensors()
    y = points.observe(space.dataset(torch.zeros(space.shape)), sd.noise.Gaussian(0.1), seed=0)
    with pytest.raises(InputError, match="'lat' along 'sensor'"):
        points.codomain.tensor(y.isel(sensor=[1, 0, 2]))


def test_coordinates_beside_a_dim_survive_storage_and_are_compared():
    space = Space({"sensor": 2}, "t", along={"lat": ("sensor", [1.0, 2.0]), "name": ("sensor", ["a", "b"])})
    again = Space.from_dict(json.loads(json.dumps(space.to_dict(), sort_keys=True)))
    assert again == space and again.along["name"][1].tolist() == ["a", "b"]
    assert space.difference(Space({"sensor": 2}, "t", along={"lat": ("sensor", [1.0, 3.0])})) is not None


@pytest.mark.parametrize(
    "along", [{"lat": ("sensor", [1.0])}, {"lat": ("other", [1.0, 2.0])}, {"t": ("sensor", [1, 2])}]
)
def test_coordinates_that_do_not_fit_a_dim_are_refused(along):
    with pytest.raises(InputError, match="along"):
        Space({"sensor": 2}, "t", along=along)


def test_dates_with_a_time_zone_are_refused():
    days = pd.date_range("2020", periods=3, tz="Europe/Berlin")
    for dates in (days, pd.Series(days), list(days), days.to_pydatetime(), days.astype(object)):
        with pytest.raises(InputError, match="time zone Europe/Berlin"):
            Space({"time": dates})
    space = Space({"time": days.tz_convert("UTC").tz_localize(None)}, "t")
    series = pd.Series(np.zeros(3), days.tz_convert("UTC"), name="t")
    for data in (series, series.to_frame()):
        with pytest.raises(InputError, match="time zone UTC"):
            space.tensor(data)
    assert space.tensor(series.tz_localize(None)).shape == (3,)


def test_labels_are_copied():
    labels = np.linspace(0, 1, 3)
    space = Space({"z": labels})
    labels[:] = 7
    assert space.coords["z"].tolist() == [0.0, 0.5, 1.0]
