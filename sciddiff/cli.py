"""The command line: ``sciddiff list | run | train | report``.

Every verb imports what it needs when it is called, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sciddiff import __version__
from sciddiff.errors import InputError, SciddiffError

__all__ = ["main"]

PROBLEM = "a name that `sciddiff list` prints, or the path of a problem's folder"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after ``sciddiff``; None takes them from the command line.

    Returns:
        The exit status: 0 for success, 2 for what the user can put right, 1 for a problem that crashed, 130 when stopped.

    Example:
        >>> from sciddiff.cli import main
        >>> main(["run", "./no_such_folder", "--out", "demo"])
        2
    """
    options = _parser().parse_args(argv)
    try:
        status: int = options.verb(options)
    except (SciddiffError, OSError) as error:
        _complain(str(error))
        return 2
    except KeyboardInterrupt:
        _complain("stopped")
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sciddiff",
        description="Inverse problems with diffusion priors: solve them, train for them, report.",
    )
    parser.add_argument("--version", action="version", version=f"sciddiff {__version__}")
    verbs = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    command = verbs.add_parser("list", help="the problems there are")
    command.set_defaults(verb=_list)

    command = verbs.add_parser("run", help="solve problems; keep figures, pictures and draws")
    command.add_argument("problems", nargs="+", metavar="NAME", help=PROBLEM)
    # asked for in `_run`, so that a wrong name is told of first
    command.add_argument("--out", type=Path, metavar="DIR", help="where the results go (required)")
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the problem and its draws (default 0)"
    )
    command.add_argument("--quiet", action="store_true", help="print errors only")
    command.set_defaults(verb=_run)

    command = verbs.add_parser("train", help="make a problem's prior")
    command.add_argument("problem", metavar="NAME", help=PROBLEM)
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="where the prior goes (with --replace: the problem's folder)"
    )
    command.add_argument("--replace", action="store_true", help="replace the prior that is there")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="of the training (default 0)")
    command.set_defaults(verb=_train)

    command = verbs.add_parser("report", help="one HTML page from a folder of results")
    command.add_argument("folder", type=Path, metavar="DIR", help="where `sciddiff run --out DIR` wrote")
    command.set_defaults(verb=_report)
    return parser


def _list(options: argparse.Namespace) -> int:
    from sciddiff.bench import catalog

    found = catalog.problems()
    if not found:
        raise InputError(
            "problems",
            expected="at least one",
            got="none",
            fix="pass the path of a problem's folder to `run`",
        )
    rows = [("name", "prior", "title")]
    for name, folder in found.items():
        title, prior = catalog.card(folder)
        rows.append((name, prior, title))
    first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
    for name, prior, title in rows:
        print(f"{name:<{first}}  {prior:<{second}}  {title}")
    return 0


def _run(options: argparse.Namespace) -> int:
    from sciddiff.bench import catalog, runner

    # all that can be refused is refused before the first problem has run
    names = [catalog.locate(name)[0] for name in options.problems]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            "problems",
            expected="every name once",
            got=f"{', '.join(twice)} twice",
            fix="give them their own --out",
        )
    if options.out is None:
        raise InputError("--out", expected="a folder for the results", got="none", fix="add --out DIR")
    _writable(options.out)
    failed, crashed = [], False
    for name, given in zip(names, options.problems, strict=True):
        try:
            record = runner.run(
                given, options.out, seed=options.seed, progress=False if options.quiet else None
            )
        except SciddiffError as error:
            _complain(f"{name}: {error}")
            failed.append(name)
        except Exception:
            # a crash is a defect of the problem or of this library: who is to mend it needs the traceback
            traceback.print_exc()
            failed.append(name)
            crashed = True
        else:
            if not options.quiet:
                _show(record, options.out)
    if crashed or (failed and len(names) > 1):
        _complain(f"{len(failed)} of {len(names)} problems failed: {', '.join(failed)}")
    return 1 if crashed else 2 if failed else 0


def _train(options: argparse.Namespace) -> int:
    from sciddiff.bench import catalog
    from sciddiff.random import check_seed

    check_seed(options.seed)
    _, folder = catalog.locate(options.problem)
    if catalog.card(folder).prior == "none needed":
        raise InputError(
            "problem",
            expected="one with a prior to train",
            got=f"{options.problem}, which needs no training",
            fix=f"solve it: sciddiff run {options.problem} --out DIR",
        )
    definition = catalog.definition(folder, ["TITLE", "train"])
    out = folder if options.out is None else options.out
    if not options.replace and (options.out is None or (out / "prior.safetensors").exists()):
        raise InputError(
            "--out",
            expected="a folder without a prior",
            got="none" if options.out is None else f"{out}, which holds one",
            fix=f"pass another --out DIR, or --replace to write to {out}",
        )
    _writable(out)
    definition.train(out, seed=options.seed)
    for name in ("prior.safetensors", "prior.json"):
        if not (out / name).is_file():
            raise InputError(
                "problem",
                expected=f"`train` of {options.problem} to write {name}",
                got="no such file",
                fix="end `train` with prior.save(out / 'prior')",
            )
        print(f"{out / name}  {(out / name).stat().st_size / 1e6:.2f} MB")
    return 0


def _report(options: argparse.Namespace) -> int:
    from sciddiff.bench.report import report

    print(report(options.folder))
    return 0


def _show(record: Mapping[str, Any], out: Path) -> None:
    """One line per metric, in words where the problem has some for it."""
    print(f"{record['name']}: {record['title']}")
    words = {name: record["labels"].get(name, name) for name in record["metrics"]}
    width = max(map(len, words.values()), default=0)
    for name, value in record["metrics"].items():
        units = record["units"][name]
        line = f"  {words[name]:<{width}}  {value:.4g}{'' if units in ('', '1') else ' ' + units}"
        reference = record["reference"].get(name)
        if reference is not None:
            source = f", {reference['source']}" if reference["source"] else ""
            line += f"  (reference {reference['value']:.4g}{source})"
        if name in record["better"]:
            line += f"  [{record['better'][name]} is better]"
        print(line)
    print(f"  {record['cost']['wall_seconds']:.1f} s, kept in {out / record['name']}.json")


def _writable(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError("--out", expected="a folder", got=f"the file {out}", fix="pass another path")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            "--out",
            expected="a folder that can be made",
            got=f"{out} ({error.strerror})",
            fix="pass another --out",
        ) from error
    if not os.access(out, os.W_OK):
        raise InputError(
            "--out", expected="a folder to write to", got=f"{out}, read-only", fix="pass another --out"
        )


def _complain(message: str) -> None:
    print(f"sciddiff: {message}", file=sys.stderr)
