"""Where problems and datasets are, and how their files are loaded.

A problem is a folder with a ``problem.py`` that exposes ``TITLE`` (a plain string), ``SUMMARY``,
``load(seed=0) -> Problem`` and ``run(*, seed=0, progress=None) -> Result``, and maybe
``train(out, *, seed=0)``. It is found by name, beside the package in a checkout and inside the package
in a wheel; through another package's entry point in the group ``sciddiff.problems``, which names the
package or folder that holds its ``problem.py``; or by its path. A dataset is a file of ``datasets/``.

Nothing here touches ``sys.path``: a file is loaded below ``sciddiff_catalog``, a name of ours, so that a
problem's ``baselines.py`` never meets another one's. `from . import baselines` works there, too.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import os
import sys
import warnings
import zlib
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, final

from sciddiff.bench.problem import Problem
from sciddiff.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from sciddiff.priors import Prior

__all__ = [
    "Card",
    "card",
    "dataset",
    "definition",
    "load_prior",
    "locate",
    "module",
    "problem",
    "problems",
]

GROUP = "sciddiff.problems"
PACKAGE = "sciddiff_catalog"


@final
class Card(NamedTuple):
    """What can be said of a problem without running any of its code."""

    title: str
    prior: str


def problems() -> dict[str, Path]:
    """Name -> folder of every problem that can be named: the library's own, then those of other packages.

    Another package's problem that cannot be found, or whose name is taken, is left out with a warning.

    Example:
        >>> from sciddiff.bench import catalog
        >>> all((folder / "problem.py").is_file() for folder in catalog.problems().values())
        True
    """
    found = {file.parent.name: file.parent for file in sorted((_root() / "problems").glob("*/problem.py"))}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        folder = _entry_folder(entry)
        if folder is None or entry.name in found:
            why = "holds no problem.py" if folder is None else "has a name that is taken"
            warnings.warn(
                f"the entry point {entry.name} = {entry.value} of {GROUP} {why}: left out", stacklevel=2
            )
        else:
            found[entry.name] = folder
    return found


def problem(name: str | Path, seed: int = 0) -> Problem:
    """Load a problem: its space, prior, operator, noise, truth, observation and reference.

    Args:
        name: a name that `sciddiff list` prints, or the path of a problem's folder.
        seed: of the truth and the observation.

    Returns:
        `Problem`, ready to sample.

    Raises:
        InputError: if there is no such problem, naming those that there are.

    Example:
        >>> from sciddiff.bench import catalog
        >>> catalog.problem("poison_sauce")
        Traceback (most recent call last):
        ...
        sciddiff.errors.InputError: `problem`: expected ...
    """
    from sciddiff.random import check_seed

    loaded = definition(name).load(seed=check_seed(seed))
    if not isinstance(loaded, Problem):
        raise InputError(
            "problem",
            expected=f"`load` of {name} to return a Problem",
            got=type(loaded).__name__,
            fix="return sciddiff.bench.Problem(...)",
        )
    return loaded


def load_prior(
    name: str | Path, network: nn.Module | None = None, *, device: torch.device | str = "cpu"
) -> Prior:
    """Read a prior: one that `Prior.save` wrote, or the one that is shipped with a problem.

    Args:
        name: the path that was given to `Prior.save`, or the name of a problem. A path that exists comes first.
        network: see `sciddiff.priors.load_prior`.
        device: of the states and the network.

    Raises:
        InputError: if there is neither, or the files are damaged, altered or of a newer version.

    Example:
        >>> load_prior("elnino").space.dims
        ('time',)
    """
    from sciddiff.priors import load_prior as read

    shipped = problems().get(str(name))
    if shipped is not None and not Path(f"{name}.json").exists():
        if not (shipped / "prior.json").exists():
            raise InputError(
                "name",
                expected="a problem with a trained prior",
                got=repr(name),
                fix=f"its prior is exact: take problem({str(name)!r}).prior",
            )
        return read(shipped / "prior", network, device=device)
    return read(name, network, device=device)


def dataset(name: str) -> ModuleType:
    """The module of a dataset, ``datasets/NAME.py``.

    Raises:
        InputError: if there is no such dataset, naming those that there are.
    """
    files = {file.stem: file for file in sorted((_root() / "datasets").glob("[!_]*.py"))}
    if name not in files:
        raise _unknown("dataset", name, files, "pass a name as listed")
    return module(files[name], name)


def module(path: str | Path, name: str) -> ModuleType:
    """The Python file ``NAME.py`` that stands in a folder, loaded once, under a name that meets no other.

    Args:
        path: the folder, or any file in it: in a ``problem.py``, ``module(__file__, "baselines")`` is its
            neighbour ``baselines.py``.
        name: the file's name without ``.py``.

    Raises:
        InputError: if there is no such file.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from sciddiff.bench import catalog
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "numbers.py").write_text("ANSWER = 42")
        ...     catalog.module(folder, "numbers").ANSWER
        42
    """
    place = Path(path).resolve()
    folder = place if place.is_dir() else place.parent
    if not (folder / f"{name}.py").is_file():
        raise InputError(
            "name",
            expected=f"the name of a Python file in {folder}",
            got=repr(name),
            fix=f"pass one of {', '.join(sorted(file.stem for file in folder.glob('*.py'))) or '(none there)'}",
        )
    package = _package(folder)
    importlib.invalidate_caches()
    return importlib.import_module(f"{package}.{name}")


def locate(name: str | Path) -> tuple[str, Path]:
    """The name and the folder of a problem, given either.

    Raises:
        InputError: if there is no such problem, naming those that there are.
    """
    text = os.fspath(name)
    if isinstance(name, Path) or text == "." or "/" in text or os.sep in text:
        folder = Path(text).resolve()
        folder = folder.parent if folder.name == "problem.py" else folder
        if not (folder / "problem.py").is_file():
            raise InputError(
                "problem",
                expected="a folder with a problem.py",
                got=text,
                fix="pass such a folder, or a name that `sciddiff list` prints",
            )
        return folder.name, folder
    known = problems()
    if text not in known:
        here = Path(text, "problem.py").is_file()
        raise _unknown(
            "problem",
            text,
            known,
            f"write .{os.sep}{text} for the folder of that name"
            if here
            else "pass a name as listed, or a path",
        )
    return text, known[text]


def definition(name: str | Path, needs: Iterable[str] = ("TITLE", "SUMMARY", "load", "run")) -> ModuleType:
    """The module ``problem.py`` of a problem, which exposes at least what is needed of it.

    Raises:
        InputError: if there is no such problem, or it lacks one of ``needs``.
    """
    _, folder = locate(name)
    loaded = module(folder, "problem")
    lacking = [need for need in needs if not _exposes(loaded, need)]
    if lacking:
        raise InputError(
            "problem",
            expected=f"{folder / 'problem.py'} to expose {', '.join(needs)}",
            got=f"no {', no '.join(lacking)} of the right kind",
            fix="define it: TITLE and SUMMARY are strings, load, run and train are functions",
        )
    return loaded


def card(folder: Path) -> Card:
    """Title of the problem and state of its prior, read off the files.

    ``prior`` is "shipped" where its weights are there, "to be trained" where they are not but the problem
    can train them, and "none needed" where there is nothing to train.
    """
    try:
        tree = ast.parse((folder / "problem.py").read_text(encoding="utf-8"))
    except SyntaxError as error:
        return Card(f"(problem.py cannot be read: {error.msg}, line {error.lineno})", "unknown")
    title, trains = "(no title)", False
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name("TITLE")], value=ast.Constant(str() as text)):
                title = text
            case ast.AnnAssign(target=ast.Name("TITLE"), value=ast.Constant(str() as text)):
                title = text
            case ast.FunctionDef("train"):
                trains = True
    if (folder / "prior.safetensors").is_file():
        return Card(title, "shipped")
    return Card(title, "to be trained" if trains else "none needed")


def _root() -> Path:
    """The folder that holds problems/ and datasets/: inside an installed package, beside it in a checkout."""
    here = Path(__file__).resolve().parents[1]
    inside = here / "_catalog"
    return inside if inside.is_dir() else here.parent


def _entry_folder(entry: EntryPoint) -> Path | None:
    try:
        spec = importlib.util.find_spec(entry.value)
    except Exception:  # the import of a stranger's parent package may raise anything; `problems` warns
        return None
    if spec is None:
        return None
    places = spec.submodule_search_locations or ([spec.origin] if spec.origin else [])
    folders = [Path(place) if spec.submodule_search_locations else Path(place).parent for place in places]
    return next((folder for folder in folders if (folder / "problem.py").is_file()), None)


def _package(folder: Path) -> str:
    """The name below which a folder's files load, made importable."""
    root = _root()
    _mount(PACKAGE, root)
    if folder.parent == root / "problems" or folder == root / "datasets":
        return ".".join((PACKAGE, *folder.relative_to(root).parts))
    # anywhere else: two folders of one name are told apart by where they are
    name = f"{PACKAGE}.at_{zlib.crc32(os.fsencode(folder)):08x}"
    _mount(name, folder)
    return name


def _mount(name: str, folder: Path) -> None:
    if name not in sys.modules:
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        sys.modules[name] = importlib.util.module_from_spec(spec)


def _exposes(loaded: ModuleType, name: str) -> bool:
    value: Any = getattr(loaded, name, None)
    return isinstance(value, str) if name.isupper() else callable(value)


def _unknown(kind: str, name: str, known: Iterable[str], fix: str) -> InputError:
    names = sorted(known)
    close = difflib.get_close_matches(name, names)
    return InputError(
        kind,
        expected=f"one of {', '.join(names) or '(none is installed)'}",
        got=repr(name),
        fix=f"write {' or '.join(close)}, if you mean that" if close else fix,
    )
