"""Run a problem and keep what came of it: one JSON file of figures, the pictures and the draws.

``NAME.json`` holds flat ``metrics`` (name -> number), beside them ``units``, ``labels`` and ``better``
(name -> text) and ``reference`` (name -> value and source), and what it took to get there: cost, seed, settings, versions.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sciddiff.bench import catalog
from sciddiff.bench.problem import Figure, Metric, Result
from sciddiff.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["run", "staged"]

DPI = 150
HEADLINE = 3  # figures a problem shows in the report's table of contents
BETTER = ("", "lower", "higher", "nearer")


def run(name: str | Path, out: str | Path, *, seed: int = 0, progress: bool | None = None) -> dict[str, Any]:
    """Run a problem and write ``NAME.json``, ``NAME_<figure>.png`` and ``NAME.nc``, all of them or none.

    Args:
        name: a name that `sciddiff list` prints, or the path of a problem's folder.
        out: the folder to write to, made if it is not there. Files of an earlier run are replaced.
        seed: what the problem's ``run`` is given.
        progress: a progress bar; None shows it on a terminal and in notebooks.

    Returns:
        What ``NAME.json`` holds. Numbers of calls and seconds in ``cost`` are per draw where they say so, the
        latter where the draws' attrs count their ``cases``; ``wall_seconds`` is the whole run, with loading
        and scoring.

    Raises:
        InputError: if there is no such problem, ``out`` is no folder, or the result breaks the contract.
    """
    from sciddiff.random import check_seed

    seed, out = check_seed(seed), Path(out)
    given = _given(name)
    name, folder = catalog.locate(name)
    if out.exists() and not out.is_dir():
        raise InputError("out", expected="a folder", got=f"the file {out}", fix="pass another path")
    definition = catalog.definition(folder)
    begun, started = datetime.now(UTC), time.perf_counter()
    result = definition.run(seed=seed, progress=progress)
    wall = time.perf_counter() - started
    _check(name, result)
    record = {
        "name": name,
        "given": given,
        "started": begun.isoformat(timespec="microseconds"),
        "title": definition.TITLE,
        "summary": definition.SUMMARY,
        **_record(name, result),
        "cost": _cost(result.draws, wall),
        "seed": seed,
        "versions": _versions(),
    }
    with staged(out) as stage:
        for key, figure in result.figures.items():
            _write_picture(figure, stage / f"{name}_{key}.png")
        _write_draws(result.draws, stage / f"{name}.nc")
        text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False)
        (stage / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    return record


def _given(name: str | Path) -> str:
    """The words that name the problem on a command line, where a path is told by a slash in it."""
    text = os.fspath(name)
    return f".{os.sep}{text}" if isinstance(name, Path) and os.sep not in text else text


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder whose files move to ``out`` when the block ends well, and vanish when it does not."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".", suffix=".part") as folder:
        stage = Path(folder)
        yield stage
        # the JSON file last: where it is, what it speaks of is there too
        for file in sorted(stage.iterdir(), key=lambda file: file.suffix == ".json"):
            os.replace(file, out / file.name)


def _check(name: str, result: object) -> None:
    if not isinstance(result, Result):
        raise _broken(name, "a Result", type(result).__name__, "return sciddiff.bench.Result(...)")
    for key, metric in result.metrics.items():
        if not isinstance(metric, Metric):
            raise _broken(
                name, f"metric {key!r} to be a Metric", repr(metric), "wrap it: Metric(value, units)"
            )
        for value in (metric.value, metric.reference):
            if value is not None and not math.isfinite(value):
                raise _broken(
                    name, f"metric {key!r} to be finite", value, "look at the draws: a score of them broke"
                )
        if metric.better not in BETTER:
            raise _broken(
                name, f"`better` of metric {key!r} in {BETTER}", repr(metric.better), "pass one of these"
            )
        if metric.better == "nearer" and metric.reference is None:
            raise _broken(name, f"a reference of metric {key!r} to be near to", "none", "pass reference=")
    lost = [key for key in result.headline if key not in result.metrics]
    if lost or isinstance(result.headline, str) or len(result.headline) > HEADLINE:
        raise _broken(
            name,
            f"a headline of up to {HEADLINE} names of metrics",
            repr(result.headline),
            f"take them from {', '.join(result.metrics)}",
        )
    for key, figure in result.figures.items():
        if not isinstance(figure, Figure):
            raise _broken(
                name, f"figure {key!r} to be a Figure", repr(figure), "wrap it: Figure(figure, caption)"
            )
        if not re.fullmatch(r"[\w-]+", key):
            raise _broken(
                name, "names of figures of letters, digits, _ and -", repr(key), "rename the figure"
            )


def _broken(name: str, expected: str, got: object, fix: str) -> InputError:
    return InputError("result", expected=f"{expected}, from `run` of {name}", got=got, fix=fix)


def _record(name: str, result: Result) -> dict[str, Any]:
    metrics = result.metrics.items()
    return {
        "metrics": {key: float(m.value) for key, m in metrics},
        "units": {key: m.units for key, m in metrics},
        "labels": {key: m.label for key, m in metrics if m.label},
        "better": {key: m.better for key, m in metrics if m.better},
        "headline": list(result.headline) or list(result.metrics)[:HEADLINE],
        "reference": {
            key: {"value": float(m.reference), "source": m.source}
            for key, m in metrics
            if m.reference is not None
        },
        "settings": plain(result.settings),
        "tables": plain(result.tables),
        "notes": [str(note) for note in result.notes],
        "figures": [
            {"file": f"{name}_{key}.png", "caption": figure.caption} for key, figure in result.figures.items()
        ],
        "draws": {
            "file": f"{name}.nc",
            "sizes": {str(dim): int(size) for dim, size in result.draws.sizes.items()},
            "attrs": plain(result.draws.attrs),
        },
    }


def _cost(draws: xr.Dataset, wall: float) -> dict[str, Any]:
    import torch

    attrs = draws.attrs
    cost: dict[str, Any] = {
        f"{key}_per_draw": float(attrs[key]) for key in ("forwards", "vjps", "operator_calls") if key in attrs
    }
    samples = int(draws.sizes.get("sample", 1))
    if "seconds" in attrs:
        cost["sampling_seconds"] = float(attrs["seconds"])
        # the dims alone do not say how many observations were conditioned on side by side
        if "cases" in attrs:
            cost["seconds_per_draw"] = float(attrs["seconds"]) / (samples * int(attrs["cases"]))
    made = samples * int(attrs.get("cases", 1))
    return {**cost, "draws": made, "wall_seconds": wall, "threads": torch.get_num_threads()}


def _versions() -> dict[str, str]:
    import torch
    import xarray

    from sciddiff import __version__

    return {
        "sciddiff": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "xarray": xarray.__version__,
        "python": platform.python_version(),
    }


def plain(value: Any) -> Any:
    """The value as JSON can hold it: a number that is not finite becomes None, an object its repr."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy's numbers and arrays, tensors
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value) if isinstance(value, Path) else repr(value)


def _write_picture(figure: Figure, file: Path) -> None:
    # without the name of the software in it, equal pictures are equal files
    figure.figure.savefig(file, dpi=DPI, bbox_inches="tight", facecolor="white", metadata={"Software": None})
    if "matplotlib.pyplot" in sys.modules:  # which would keep the figure for ever
        sys.modules["matplotlib.pyplot"].close(figure.figure)


def _write_draws(draws: xr.Dataset, file: Path) -> None:
    from sciddiff.draws import save

    draws = draws.copy()
    draws.attrs = {str(key): _attribute(value) for key, value in draws.attrs.items()}
    save(draws, file)


def _attribute(value: Any) -> Any:
    """Text, numbers and arrays of them as they are, anything else, which netCDF does not know, as JSON."""
    if isinstance(value, str):
        return str(value)  # a subclass, as torch's version is, is not text to HDF5
    if isinstance(value, np.number) or (isinstance(value, np.ndarray) and value.dtype.kind in "fiu"):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    return json.dumps(plain(value))
