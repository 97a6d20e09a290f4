import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from sciddiff.bench.cache import cache_dir, cached, checksum
from sciddiff.bench.catalog import dataset, module
from sciddiff.errors import InputError, MissingDependencyError

PROBLEM = Path(__file__).resolve().parents[2] / "problems" / "elnino"
baselines = module(PROBLEM, "baselines")
elnino = dataset("elnino")
LEADS = [1, 3, 6, 12]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def sst(cache):
    return elnino.load(cache)["sst"]


@pytest.fixture(scope="module")
def forecasts(sst):
    return {name: forecast(sst) for name, forecast in baselines.BASELINES.items()}


@pytest.fixture(scope="module")
def figures(sst, forecasts):
    scores = {name: baselines.verify(forecast, sst) for name, forecast in forecasts.items()}
    return {name: score.mean("origin").sel(lead=LEADS) for name, score in scores.items()}


def test_the_series_comes_back_from_the_cache_as_statsmodels_has_it(cache, sst):
    from statsmodels.datasets import elnino as source

    table = source.load_pandas().data
    assert sst.dims == ("time",) and sst.attrs["units"] == "degC"
    march = sst.sel(time="1983-03-01").item()
    assert march == table.set_index("YEAR").loc[1983.0, "MAR"]
    assert np.array_equal(sst.values, table.to_numpy()[:, 1:].ravel())
    assert xr.testing.assert_identical(elnino.load(cache)["sst"], sst) is None
    assert [file.name for file in cache.iterdir()] == ["elnino.nc"]


def test_a_file_with_one_changed_value_is_refused(tmp_path):
    path = tmp_path / "elnino.nc"
    elnino.load(tmp_path)
    with xr.open_dataset(path, engine="h5netcdf") as opened:
        changed = opened.load()
    changed["sst"][400] += 0.01
    changed.to_netcdf(path, engine="h5netcdf")
    with pytest.raises(InputError, match="checksum"):
        elnino.load(tmp_path)


def test_a_sound_file_of_another_series_is_refused(tmp_path):
    from sciddiff.draws import save

    other = elnino.load(tmp_path).copy(deep=True)
    other["sst"][400] += 0.01
    save(other, tmp_path / "elnino.nc")
    with pytest.raises(InputError, match="remove the file"):
        elnino.load(tmp_path)


def test_without_statsmodels_the_error_names_the_extra(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "statsmodels.datasets", None)
    with pytest.raises(MissingDependencyError, match=r"sciddiff\[data\]"):
        elnino.load(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_fails_while_it_is_made_leaves_nothing_in_the_cache(tmp_path, monkeypatch):
    def fail(path):
        path.write_text("half")
        raise RuntimeError("interrupted")

    monkeypatch.setenv("SCIDDIFF_CACHE", str(tmp_path / "deep" / "cache"))
    with pytest.raises(RuntimeError, match="interrupted"):
        cached("file", fail)
    assert cache_dir() == tmp_path / "deep" / "cache" and list(cache_dir().iterdir()) == []


def test_a_checksum_sees_values_and_types_but_not_memory_layout():
    x = np.arange(6.0).reshape(2, 3)
    assert checksum(x) == checksum(np.asfortranarray(x)) == checksum(x.astype(">f8"))
    others = [x + 1e-15 * (x == 1), x.T, x.ravel(), x.astype(np.float32), x.astype(np.int64)]
    assert len({checksum(v) for v in [x, *others]}) == 6


def test_every_month_of_1995_to_2010_is_an_origin(forecasts):
    for forecast in forecasts.values():
        assert dict(forecast.sizes) == {"origin": 192, "lead": 12}
        first = forecast.isel(origin=0, lead=0)
        assert (
            str(first["valid_time"].values)[:7] == "1995-01"
            and str(first["init_time"].values)[:7] == "1994-12"
        )
        assert bool((forecast["sd"] > 0).all())


# from another implementation, to three digits; its 0.655 is 0.654 here
@pytest.mark.parametrize(
    ("name", "measure", "expected"),
    [
        ("AR(3)", "crps", [0.262, 0.505, 0.589, 0.655]),
        ("AR(3)", "squared_error", [0.467, 0.892, 1.097, 1.262]),
        ("persistence", "squared_error", [0.493, 0.978, 1.298, 1.741]),
    ],
)
def test_the_reference_figures_are_reproduced(figures, name, measure, expected):
    found = figures[name][measure]
    found = np.sqrt(found) if measure == "squared_error" else found
    assert np.allclose(found, expected, rtol=0, atol=1.1e-3)


def test_the_reference_figures_of_climatology_are_reproduced(figures):
    first = figures["climatology"].sel(lead=1)
    assert abs(first["crps"].item() - 0.636) < 5e-4
    assert abs(np.sqrt(first["squared_error"].item()) - 1.230) < 5e-4


def test_leads_beyond_the_record_are_not_scored(sst, forecasts):
    scores = baselines.verify(forecasts["AR(3)"], sst)
    assert scores["crps"].notnull().sum("origin").values.tolist() == list(range(192, 180, -1))
    assert bool((scores["covered"].isnull() == scores["crps"].isnull()).all())


def test_no_forecast_uses_what_comes_after_its_origin(sst, forecasts):
    changed = sst.where(sst["time"] < np.datetime64("2000-01"), sst + 3)
    for name, forecast in baselines.BASELINES.items():
        new, old = forecast(changed), forecasts[name]
        at = old["origin"] <= np.datetime64("2000-01")
        for part in ("mean", "sd"):
            assert np.allclose(new[part][at], old[part][at], rtol=1e-12, atol=0)
        if name != "climatology":
            assert bool((abs(new["mean"] - old["mean"])[~at].isel(lead=0) > 1).any())


def test_the_filtered_arima_is_what_statsmodels_forecasts_from_each_origin(sst, forecasts):
    from statsmodels.tsa.statespace.sarimax import SARIMAX

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = SARIMAX(sst.values[:540], order=(2, 0, 2), seasonal_order=(0, 1, 1, 12)).fit(
            disp=0, maxiter=300
        )
    for i in (0, 100, 191):
        expected = fit.apply(sst.values[: 540 + i]).get_forecast(12)
        found = forecasts["SARIMAX"].isel(origin=i)
        assert np.allclose(found["mean"], expected.predicted_mean, rtol=1e-9)
        assert np.allclose(found["sd"], expected.se_mean, rtol=1e-9)


def test_a_simulated_autoregression_is_forecast_with_honest_intervals(sst):
    n, phi = 24000, np.array([1.07, -0.11, -0.06])
    e = 0.4 * np.random.default_rng(0).standard_normal(n)
    a = np.zeros(n)
    for t in range(3, n):
        a[t] = a[t - 3 : t][::-1] @ phi + e[t]
    start = np.datetime64("1000-01", "M")
    time = (start + np.arange(n)).astype("datetime64[s]")
    series = xr.DataArray(20 + a, {"time": time}, ("time",))
    origins = (str(start + n // 2), str(start + n - 1))
    scores = baselines.verify(
        baselines.autoregression(series, train_end=str(start + n // 2 - 1), origins=origins), series
    )
    for lead in LEADS:
        # one origin in `4 lead` is close to independent of the last
        apart = scores["covered"].sel(lead=lead).dropna("origin")[:: 4 * lead]
        z = (apart.mean() - 0.9) / np.sqrt(0.09 / apart.size)
        assert abs(float(z)) < 4


def test_the_bootstrap_of_single_origins_has_the_standard_error_of_a_mean():
    scores = xr.DataArray(
        np.random.default_rng(1).exponential(size=(192, 2)), {"lead": [1, 3]}, ("origin", "lead")
    )
    means = baselines.block_means(scores, block=1, draws=4000)
    expected = scores.std("origin") / np.sqrt(192)
    assert bool((abs(means.std("draw") / expected - 1) < 4 / np.sqrt(2 * 4000)).all())
    whole = baselines.block_means(scores, block=192, draws=50)
    assert np.allclose(whole, scores.mean("origin"))
    ratio = baselines.block_means(2 * scores, draws=50) / baselines.block_means(scores, draws=50)
    assert np.allclose(ratio, 2)


def test_a_series_with_a_gap_is_refused(sst):
    with pytest.raises(InputError, match="without gaps"):
        baselines.climatology(sst.drop_isel(time=3))
    with pytest.raises(InputError, match="origins"):
        baselines.climatology(sst, origins=("1990-01", "1995-01"))
    with pytest.raises(InputError, match="train_end"):
        baselines.normals(sst, "2011-01")
