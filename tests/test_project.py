"""Claims about the package as a whole: what it costs to import, and what is shipped."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAZY = {
    "arviz_base",
    "dask",
    "h5netcdf",
    "h5py",
    "matplotlib",
    "pandas",
    "safetensors",
    "scipy",
    "sklearn",
    "statsmodels",
    "torchdiffeq",
    "tqdm",
    "xarray",
}
TRIALS = 3


def run(*command: str | Path, **env: str) -> str:
    """The standard output of a command that has to succeed; env is added to the environment."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env={**os.environ, **env}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = (
        "import os, sys; os.chdir(sys.argv[1]); from hatchling.build import build_wheel as b; b(sys.argv[2])"
    )
    run(sys.executable, "-c", build, ROOT, folder)
    (path,) = folder.glob("*.whl")
    return path


def test_importing_sciddiff_costs_at_most_0_3_seconds_more_than_importing_torch():
    script = "import torch, time; t = time.process_time(); import sciddiff; print(time.process_time() - t)"
    # processor time, and the least of it: other work on the machine can only add to it
    seconds = min(float(run(sys.executable, "-c", script)) for _ in range(TRIALS))
    assert seconds <= 0.3


def test_importing_sciddiff_imports_no_heavy_package():
    script = "import sys, torch; old = set(sys.modules); import sciddiff; print(*set(sys.modules) - old)"
    imported = {name.partition(".")[0] for name in run(sys.executable, "-c", script).split()}
    assert "sciddiff" in imported
    assert not imported & LAZY


def test_a_test_that_changes_global_state_fails(tmp_path: Path):
    changes = {
        "default_dtype": "torch.set_default_dtype(torch.float64)",
        "grad_mode": "torch.set_grad_enabled(False)",
        "threads": "torch.set_num_threads(torch.get_num_threads() + 1)",
        "torch_random_state": "torch.rand(())",
        "torch_seed": "torch.manual_seed(17)",
        "numpy_random_state": "np.random.rand()",
    }
    tests = [f"def test_{name}():\n    {change}\n" for name, change in changes.items()]
    # each bad test is followed by a good one, which must not see what the bad one left behind
    good = "    assert torch.is_grad_enabled() and torch.get_default_dtype() is torch.float32\n"
    tests = [f"{test}def test_good_{i}():\n{good}" for i, test in enumerate(tests)]
    (tmp_path / "test_state.py").write_text("import numpy as np\nimport torch\n" + "".join(tests))
    command = [sys.executable, "-m", "pytest", "--rootdir", str(tmp_path), "-c", os.devnull, "-p", "conftest"]
    done = subprocess.run(
        [*command, str(tmp_path), "-p", "no:cacheprovider"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": "", "PY_COLORS": "0"},
    )
    failed = set(re.findall(r"^ERROR \S+::test_(\w+)", done.stdout, re.MULTILINE))
    assert failed == set(changes), done.stdout + done.stderr


def test_the_version_is_the_same_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert version in (ROOT / "CHANGELOG.md").read_text()


def test_the_wheel_holds_the_types_the_problems_and_the_datasets(wheel: Path):
    shipped = set(zipfile.ZipFile(wheel).namelist())
    catalog = {
        f"sciddiff/_catalog/{path.relative_to(ROOT).as_posix()}"
        for folder in ("problems", "datasets")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".part"
    }
    assert {"sciddiff/py.typed"} | catalog <= shipped


def test_the_priors_in_the_wheel_stay_under_40_megabytes(wheel: Path):
    priors = [i for i in zipfile.ZipFile(wheel).infolist() if i.filename.endswith(".safetensors")]
    assert sum(i.file_size for i in priors) < 40e6


@pytest.mark.slow
def test_the_wheel_works_without_the_checkout(wheel: Path, tmp_path: Path):
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", tmp_path, wheel)
    script = "import sciddiff; print(sciddiff.__file__)"
    # -P keeps the current folder, which may be the checkout, off the path
    where = run(sys.executable, "-P", "-c", script, PYTHONPATH=str(tmp_path))
    assert Path(where.strip()).is_relative_to(tmp_path)
    assert (tmp_path / "bin" / "sciddiff").exists()
