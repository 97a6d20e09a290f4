from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sciddiff.bench import Problem, catalog
from sciddiff.errors import InputError

STUB = 'TITLE = "{0}"\nSUMMARY = ""\n\ndef load(seed=0): ...\n\ndef run(*, seed=0, progress=None): ...\n'


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalog of two problems and a dataset in the place of the library's own."""
    for name in ("elnino", "poisson_source"):
        (tmp_path / "problems" / name).mkdir(parents=True)
        (tmp_path / "problems" / name / "problem.py").write_text(STUB.format(name))
    (tmp_path / "problems" / "notes").mkdir()
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "nino.py").write_text("SOURCE = __name__\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == catalog.PACKAGE]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(catalog, "_root", lambda: tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == catalog.PACKAGE]:
        del sys.modules[name]


@pytest.mark.parametrize("name", catalog.problems())
def test_every_problem_of_the_catalog_keeps_the_contract(name: str):
    definition = catalog.definition(name)
    assert catalog.card(catalog.problems()[name]).title == definition.TITLE


def test_a_problem_loads_from_its_path_with_the_seed(tiny: Path):
    loaded, other = catalog.problem(tiny, seed=3), catalog.problem(str(tiny), seed=4)
    assert isinstance(loaded, Problem)
    assert loaded.truth.equals(catalog.problem(tiny / "problem.py", seed=3).truth)
    assert not loaded.truth.equals(other.truth)


def test_folders_with_a_problem_are_found_by_name(root: Path):
    assert catalog.problems() == {name: root / "problems" / name for name in ("elnino", "poisson_source")}
    assert catalog.definition("elnino").TITLE == "elnino"
    assert catalog.definition("elnino").__name__ == "sciddiff_catalog.problems.elnino.problem"


def test_an_unknown_problem_is_refused_with_the_known_and_the_close_ones(root: Path):
    with pytest.raises(InputError, match=r"one of elnino, poisson_source, got 'el_nino'.*write elnino,"):
        catalog.problem("el_nino")
    with pytest.raises(InputError, match="name as listed, or a path"):
        catalog.problem("zzz")


def test_the_bare_name_of_a_local_folder_is_refused_with_its_path(
    root: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tiny.parent)
    with pytest.raises(InputError, match=r"write \./tiny"):
        catalog.locate("tiny")
    assert catalog.locate("./tiny") == ("tiny", tiny.resolve())
    monkeypatch.chdir(tiny)
    assert catalog.locate(".") == ("tiny", tiny.resolve())


def test_a_path_without_a_problem_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"a folder with a problem\.py"):
        catalog.locate(tmp_path)


def test_a_dataset_loads_by_name_and_an_unknown_one_is_refused_with_the_known(root: Path):
    assert catalog.dataset("nino").SOURCE == "sciddiff_catalog.datasets.nino"
    assert catalog.dataset("nino") is catalog.dataset("nino")
    with pytest.raises(InputError, match=r"one of nino, got 'ninno'.*write nino,"):
        catalog.dataset("ninno")


def test_files_of_one_name_in_two_folders_do_not_meet_and_sys_path_stays(tmp_path: Path):
    path = list(sys.path)
    for name in ("one", "two"):
        folder = tmp_path / name / "twin"
        folder.mkdir(parents=True)
        (folder / "baselines.py").write_text(f"NAME = {name!r}\n")
        (folder / "problem.py").write_text(
            STUB.format(name)
            + "from sciddiff.bench import catalog\n"
            + 'NAME = catalog.module(__file__, "baselines").NAME\n'
            + "from . import baselines\n"
        )
    first, second = (catalog.definition(tmp_path / name / "twin") for name in ("one", "two"))
    assert (first.NAME, second.NAME) == ("one", "two")
    assert (first.baselines.NAME, second.baselines.NAME) == ("one", "two")
    assert sys.path == path and "baselines" not in sys.modules


def test_a_missing_neighbour_is_refused_with_those_that_are_there(tiny: Path):
    with pytest.raises(InputError, match=r"got 'baselines'.*pass one of problem"):
        catalog.module(tiny, "baselines")


def test_a_problem_that_breaks_the_contract_is_refused_with_what_it_lacks(tmp_path: Path):
    (tmp_path / "problem.py").write_text(
        'TITLE = "t"\nSUMMARY = 3\nrun = None\n\ndef load(seed=0): return 1\n'
    )
    with pytest.raises(InputError, match="no SUMMARY, no run of the right kind"):
        catalog.definition(tmp_path)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "problem.py").write_text(STUB.format("t"))
    with pytest.raises(InputError, match="to return a Problem, got NoneType"):
        catalog.problem(tmp_path / "more")


def test_the_card_is_read_without_running_the_problem(tmp_path: Path):
    code = 'TITLE: str = "found"\nraise SystemExit\n'
    (tmp_path / "problem.py").write_text(code)
    assert catalog.card(tmp_path) == ("found", "none needed")
    (tmp_path / "problem.py").write_text(code + "def train(out, *, seed=0): ...\n")
    assert catalog.card(tmp_path) == ("found", "to be trained")
    (tmp_path / "prior.safetensors").touch()
    assert catalog.card(tmp_path) == ("found", "shipped")
    (tmp_path / "problem.py").write_text("TITLE = (")
    assert "cannot be read" in catalog.card(tmp_path).title


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with a problem of its own; the fixture's value takes more entry points."""
    site = tmp_path / "site"
    folder = site / "stranger" / "problems" / "theirs"
    folder.mkdir(parents=True)
    (folder / "problem.py").write_text(STUB.format("of another package"))
    meta = site / "stranger-1.0.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (meta / "entry_points.txt").write_text("[sciddiff.problems]\ntheirs = stranger.problems.theirs\n")
    monkeypatch.syspath_prepend(site)
    yield meta / "entry_points.txt"
    for name in [name for name in sys.modules if name.partition(".")[0] == "stranger"]:
        del sys.modules[name]


def test_another_packages_problem_is_found_through_its_entry_point(root: Path, stranger: Path):
    assert list(catalog.problems()) == ["elnino", "poisson_source", "theirs"]
    assert catalog.definition("theirs").TITLE == "of another package"


@pytest.mark.parametrize(
    ("line", "why"),
    [("lost = nowhere.at_all", "holds no problem.py"), ("elnino = stranger.problems.theirs", "is taken")],
)
def test_a_broken_entry_point_is_left_out_with_a_warning(root: Path, stranger: Path, line: str, why: str):
    stranger.write_text(stranger.read_text() + line + "\n")
    with pytest.warns(UserWarning, match=why):
        found = catalog.problems()
    assert list(found) == ["elnino", "poisson_source", "theirs"]
    assert found["elnino"] == root / "problems" / "elnino"
