import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

from sciddiff.diagnostics import verify
from sciddiff.plot import spread_skill


def test_the_lines_are_the_tables_error_and_its_spread_with_the_factor_of_a_finite_ensemble():
    x = np.random.default_rng(0).standard_normal((6, 40, 3)) * [1.0, 2.0, 3.0]
    draws = xr.DataArray(
        x[1:],
        dims=("member", "origin", "lead"),
        coords={"lead": [6, 12, 18]},
        name="t",
        attrs={"units": "K"},
    )
    truth = draws.isel(member=0, drop=True).copy(data=x[0])
    truth[3, 2] = np.nan
    ax = spread_skill(draws, truth, sample_dim="member", nan="omit")
    table = verify(draws, truth, sample_dim="member", nan="omit").loc["t"]
    error, spread = ax.get_lines()
    np.testing.assert_allclose(error.get_ydata(), table["rmse"])
    np.testing.assert_allclose(spread.get_ydata(), np.sqrt(6 / 5) * table["spread"])
    assert error.get_xdata().tolist() == [6, 12, 18]
    assert ax.get_ylabel() == "t [K]"
    plt.close(ax.figure)
