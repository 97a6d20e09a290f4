"""Priors on disk: ``name.safetensors`` for the numbers and ``name.json`` for the rest, and no code in either.

A network is rebuilt from its name and settings and a covariance from its basis, so loading executes nothing
that came with the file. What is built is first held against what the file has: settings that would
need more parameters than are stored are refused before any memory is taken.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sciddiff import networks
from sciddiff.covariance import (
    Axes,
    Basis,
    Covariance,
    Eigen,
    Full,
    OrnsteinUhlenbeck,
    Precision,
    Standard,
    Symmetric,
    white,
)
from sciddiff.errors import InputError, SciddiffError
from sciddiff.priors.base import Normalisation, Prior
from sciddiff.priors.covariates import Covariates, Told
from sciddiff.priors.files import pack, read_document, read_tensors, seal, write
from sciddiff.priors.gaussian import GaussianPrior
from sciddiff.priors.neural import NeuralPrior, evaluating
from sciddiff.priors.process import ProcessPrior
from sciddiff.priors.spread import Spread
from sciddiff.random import Streams
from sciddiff.spaces import Space

__all__ = ["load_prior", "save_prior"]

_FORMAT, _VERSION = "sciddiff prior", 1
_MOST_VALUES = 2**27
_DTYPES = {"float16": torch.float16, "float32": torch.float32, "float64": torch.float64}


def save_prior(prior: Prior, path: str | PathLike[str], *, half: bool = False) -> None:
    """See `Prior.save`.

    Example:
        >>> import tempfile
        >>> prior = GaussianPrior(Space({"i": 3}), white((3,)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     prior.save(f"{folder}/mine")
        ...     load_prior(f"{folder}/mine")
        GaussianPrior(Space(x on (i: 3)), sigma 0.002 to 20, float64)
    """
    from importlib.metadata import version

    if not isinstance(prior, (NeuralPrior, GaussianPrior, ProcessPrior)):
        raise InputError(
            "prior",
            expected="a NeuralPrior, a GaussianPrior or a ProcessPrior",
            got=type(prior).__name__,
            fix="keep the code that makes it; of a network trained elsewhere, keep its own file",
        )
    if prior.dtype not in _DTYPES.values():
        raise InputError(
            "prior",
            expected=f"one of {list(_DTYPES)}",
            got=prior.dtype,
            fix="convert it with prior.to(dtype=...)",
        )
    tensors: dict[str, Tensor] = {}
    if isinstance(prior, GaussianPrior):
        document = {"kind": "gaussian", **_gaussian(prior, tensors, half)}
    elif isinstance(prior, ProcessPrior):
        document = {"kind": "process", **_process(prior, tensors, half)}
    else:
        document = {"kind": "neural", **_neural(prior, tensors, half)}
    document |= {
        "format": _FORMAT,
        "version": _VERSION,
        "sciddiff": version("sciddiff"),
        "space": prior.space.to_dict(),
        "dtype": "float32" if half and document["kind"] != "gaussian" else _show(prior.dtype),
        "sigma_min": prior.sigma_min,
        "sigma_max": prior.sigma_max,
    }
    if prior.season is not None:
        tensors["season"] = prior.season
    _check_numbers(tensors)
    data, manifest = pack(tensors)
    numbers, text = _files(path)
    numbers.parent.mkdir(parents=True, exist_ok=True)
    write(numbers, data)
    write(text, seal({**document, "tensors": manifest}))


def load_prior(
    path: str | PathLike[str], network: nn.Module | None = None, *, device: torch.device | str = "cpu"
) -> Prior:
    """Read a prior that `Prior.save` wrote; executes nothing from the files.

    Args:
        path: where it was saved, without a suffix.
        network: a network of your own class, whose code was not stored: its weights are taken from the
            file, on a copy.
        device: of the states and the network.

    Raises:
        InputError: if a file is missing, damaged, altered, too large or of a newer version, or the network
            does not fit it.
    """
    numbers, text = _files(path)
    document = read_document(text, _FORMAT, _VERSION)
    with torch.inference_mode(False):  # what is made under it could never take part in a gradient
        return _load(text, document, read_tensors(numbers, document.get("tensors")), network).to(device)


def _load(
    text: Path, document: Mapping[str, Any], tensors: Mapping[str, Tensor], network: nn.Module | None
) -> Prior:
    """The prior, or the one error that says that the file makes none."""
    try:
        _check_numbers(tensors)
        return _build(document, tensors, network)
    except SciddiffError as error:
        if network is not None or isinstance(error, _NetworkError):
            raise
        raise _unusable(text, error) from error
    except Exception as error:  # whatever a forged file provokes; nothing has been computed with it
        raise _unusable(text, error) from error


class _NetworkError(InputError):
    """The caller's ``network`` argument does not fit the file."""


def _unusable(path: Path, error: Exception) -> InputError:
    return InputError(
        "path",
        expected="a prior that Prior.save wrote",
        got=f"{path.name}, of which none can be made: {type(error).__name__}: {error}",
        fix="get or make the file again",
    )


# -- out -------------------------------------------------------------------------------------------


def _gaussian(prior: GaussianPrior, tensors: dict[str, Tensor], half: bool) -> dict[str, Any]:
    tensors["gaussian.mean"] = torch.broadcast_to(prior.normalisation.mean, prior.space.shape)
    return {
        "gaussian": _describe(prior.physical_covariance, "gaussian", tensors, half),
        "reference": _describe(prior.reference, "reference", tensors, half),
    }


def _neural(prior: NeuralPrior, tensors: dict[str, Tensor], half: bool) -> dict[str, Any]:
    document: dict[str, Any] = {"gaussian": None}
    if prior.gaussian is not None:
        document = _gaussian(prior.gaussian, tensors, half)
    else:
        document["reference"] = _describe(prior.reference, "reference", tensors, half)
        tensors["normalisation.mean"] = prior.normalisation.mean
        tensors["normalisation.scale"] = prior.normalisation.scale
    if isinstance(prior.network, Told):
        raise InputError(
            "prior",
            expected="the prior before it was told its drivers",
            got="one with fixed drivers",
            fix="save what train returned, and call driven(...) after loading",
        )
    if prior.covariates is not None:
        document["covariates"] = [[name, units] for name, units in prior.covariates.units.items()]
        tensors["covariates.mean"] = prior.covariates.normalisation.mean
        tensors["covariates.scale"] = prior.covariates.normalisation.scale
        if prior.covariates.response is not None:
            response = prior.covariates.response
            tensors["covariates.response"] = response.float() if half else response
    _weights(prior.network, tensors, half)
    return {
        **document,
        "largest": prior.largest,
        "history": prior.history,
        "spread": None
        if prior.spread is None
        else {"levels": prior.spread.levels, "factors": prior.spread.factors},
        "network": _identify(prior.network),
        "answer": _answer(prior),
    }


def _process(prior: ProcessPrior, tensors: dict[str, Tensor], half: bool) -> dict[str, Any]:
    tensors["normalisation.mean"] = prior.normalisation.mean
    tensors["normalisation.scale"] = prior.normalisation.scale
    _weights(prior.network, tensors, half)
    numbers = {name: getattr(prior, name) for name in ("length", "memory", "gap", "largest", "dated")}
    regular = prior.on(np.full(prior.window - 1, prior.gap), prior.space)
    return {
        **numbers,
        "history": prior.history,
        "network": _identify(prior.network),
        "answer": _answer(regular),
    }


def _weights(network: nn.Module, tensors: dict[str, Tensor], half: bool) -> None:
    for name, weight in network.state_dict().items():
        tensors[f"network.{name}"] = weight.half() if half and weight.is_floating_point() else weight


def _answer(prior: NeuralPrior) -> list[float]:
    """What the network says to one fixed input: weights alone do not tell with which code they were trained."""
    grid = prior.space.grid if prior.space.homogeneous else (prior.space.size,)
    streams = Streams(0, [0], purpose="answer")
    channels = prior.preconditioning.inputs + (0 if prior.covariates is None else len(prior.covariates.units))
    x = streams.normal((channels, *grid), dtype=prior.dtype, device=prior.device)
    with torch.no_grad(), evaluating(prior.network):
        out = prior.network(x, torch.zeros(1, dtype=prior.dtype, device=prior.device)).double().cpu()
    return [float(out.square().mean().sqrt()), *out.flatten()[:16].tolist()]


def _check_answer(prior: NeuralPrior, stored: list[float]) -> None:
    """Refuse a network that no longer computes what it did when it was saved; half precision is within 5 %."""
    now = torch.tensor(_answer(prior), dtype=torch.float64)
    was = torch.tensor(stored, dtype=torch.float64)
    # the first entry is the rms of the whole output, the scale of the others
    if now.shape != was.shape or bool(((now - was).abs() > 0.05 * was[0].abs() + 1e-6).any()):
        raise InputError(
            "path",
            expected="a network that answers as it did when it was saved",
            got="another answer to the same input: the network's code has changed since",
            fix="use the version of sciddiff (or of your network) that trained it, or train it again",
        )


def _identify(network: nn.Module) -> dict[str, Any]:
    """Name and settings of a built-in network; the class name of another, with a warning."""
    kind = type(network)
    if isinstance(network, networks.Backbone) and _built_in(kind):
        return {"name": kind.__name__.lower(), "settings": network.settings}
    warnings.warn(
        f"The weights of {kind.__name__} are saved, but not its code. To load the prior, make the network "
        f"first: load_prior(path, network={kind.__name__}(...)).",
        stacklevel=5,
    )
    return {"name": None, "class": kind.__name__}


def _describe(covariance: Covariance, name: str, tensors: dict[str, Tensor], half: bool) -> dict[str, Any]:
    """What to rebuild a covariance from; its numbers go to the tensors."""
    if isinstance(covariance, Precision):
        matrix = covariance.matrix
        tensors[f"{name}.values"] = torch.from_numpy(matrix.data)
        tensors[f"{name}.rows"] = torch.from_numpy(matrix.indices.astype(np.int64))
        tensors[f"{name}.columns"] = torch.from_numpy(matrix.indptr.astype(np.int64))
        return {"kind": "precision"}
    if isinstance(covariance, OrnsteinUhlenbeck):
        tensors[f"{name}.steps"], tensors[f"{name}.variance"] = covariance.steps, covariance.level
        return {"kind": "ornstein-uhlenbeck"}
    if not isinstance(covariance, Eigen):
        raise InputError(
            "prior",
            expected="a covariance made by white, diagonal, dense, spectral, graph, precision or ornstein_uhlenbeck",
            got=type(covariance).__name__,
            fix="make a dense one of it: covariance.dense(matrix, shape)",
        )
    basis, values = covariance.basis, covariance.eigenvalues
    if isinstance(basis, Standard) and bool((values == values.reshape(-1)[0]).all()):
        return {"kind": "white", "variance": float(values.reshape(-1)[0])}
    tensors[f"{name}.eigenvalues"] = values.double()
    matrices: dict[str, Tensor | None] = {}
    if isinstance(basis, Axes):
        matrices = {str(axis): matrix for axis, matrix in enumerate(basis.matrices)}
    elif isinstance(basis, Full):
        # eigenvectors as rows: in memory as they came from eigh, so that products with them round the same
        matrices = {"rows": basis.columns.T}
    elif not isinstance(basis, (Standard, Symmetric)):
        raise InputError(
            "prior", expected="a known basis", got=type(basis).__name__, fix="use covariance.dense"
        )
    for key, matrix in matrices.items():
        if matrix is not None:
            tensors[f"{name}.basis.{key}"] = matrix.float() if half else matrix
    return {"kind": "eigen", "basis": type(basis).__name__.lower()}


def _check_numbers(tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(
                "prior",
                expected="finite numbers",
                got=f"NaN or infinity in {name!r}",
                fix="save without half=True" if tensor.dtype == torch.float16 else "train it again",
            )


# -- in --------------------------------------------------------------------------------------------


def _build(document: Mapping[str, Any], tensors: Mapping[str, Tensor], network: nn.Module | None) -> Prior:
    space = _space(document["space"])
    if document["kind"] == "process":
        return _of_process(document, tensors, space, network)
    reference = _covariance(document["reference"], "reference", tensors, space)
    levels = {"sigma_min": float(document["sigma_min"]), "sigma_max": float(document["sigma_max"])}
    dtype = _DTYPES[document["dtype"]]
    gaussian = None
    if document["gaussian"] is not None:
        gaussian = GaussianPrior(
            space,
            _covariance(document["gaussian"], "gaussian", tensors, space),
            tensors["gaussian.mean"],
            reference=reference,
            dtype=dtype,
            sigma_min=levels["sigma_min"] if document["kind"] == "gaussian" else None,
            sigma_max=levels["sigma_max"] if document["kind"] == "gaussian" else None,
        )
    season = tensors.get("season")
    if document["kind"] == "gaussian" and gaussian is not None:
        if network is not None:
            raise _NetworkError("network", expected="none", got="one", fix="this prior is Gaussian")
        gaussian.season = season
        return gaussian
    if document["kind"] != "neural":
        raise ValueError(f"kind {document['kind']!r}")
    units = None
    if gaussian is None:
        units = Normalisation(tensors["normalisation.mean"], tensors["normalisation.scale"])
        if not bool((torch.broadcast_to(units.scale, space.shape) > 0).all()):
            raise ValueError("a scale that is not positive")
        torch.broadcast_to(units.mean, space.shape)
    prior = NeuralPrior(
        _network(document["network"], tensors, network).to(dtype),
        space,
        units,
        gaussian=gaussian,
        reference=reference if gaussian is None else None,
        largest=float(document["largest"]),
        season=season,
        covariates=_covariates(document.get("covariates"), tensors, space),
        history=document["history"],
        sigma_min=levels["sigma_min"],
        sigma_max=levels["sigma_max"],
    )
    _check_answer(prior, document["answer"])
    # files of before there were spreads have none
    spread = document.get("spread")
    prior.spread = None if spread is None else Spread(spread["levels"], spread["factors"])
    return prior


def _of_process(
    document: Mapping[str, Any], tensors: Mapping[str, Tensor], space: Space, network: nn.Module | None
) -> ProcessPrior:
    if space.dims != ("time",) or not space.homogeneous:
        raise ValueError(f"a process on {space}")
    units = Normalisation(tensors["normalisation.mean"], tensors["normalisation.scale"])
    if not bool((torch.broadcast_to(units.scale, space.shape) > 0).all()):
        raise ValueError("a scale that is not positive")
    prior = ProcessPrior(
        _network(document["network"], tensors, network).to(_DTYPES[document["dtype"]]),
        {name: variable.units for name, variable in space.variables.items()},
        units,
        window=space.sizes["time"],
        dated=bool(document["dated"]),
        history=document["history"],
        **{k: float(document[k]) for k in ("length", "memory", "gap", "largest", "sigma_min", "sigma_max")},
    )
    _check_answer(prior.on(np.full(prior.window - 1, prior.gap), space), document["answer"])
    return prior


def _covariates(data: Any, tensors: Mapping[str, Tensor], space: Space) -> Covariates | None:
    """The drivers, in files that have any."""
    if data is None:
        return None
    units = {str(name): None if unit is None else str(unit) for name, unit in data}
    mean, scale = (tensors[f"covariates.{part}"].double() for part in ("mean", "scale"))
    shape = (len(units), *(1,) * len(space.grid))
    if not units or tuple(mean.shape) != shape or tuple(scale.shape) != shape or not bool((scale > 0).all()):
        raise ValueError("drivers without a mean and a positive scale each")
    response = tensors.get("covariates.response")
    if response is not None and tuple(response.shape) != (space.size, len(units) * math.prod(space.grid)):
        raise ValueError(f"a response of shape {tuple(response.shape)}")
    return Covariates(units, Normalisation(mean, scale), None if response is None else response.double())


def _space(data: Any) -> Space:
    """The space, if its labels are numbers, dates or short strings and a state has a sane size."""
    total = 1
    for _, size, labels in data["coords"]:
        if labels is not None:
            dtype = np.dtype(str(labels["dtype"]))
            if dtype.kind not in "biufmMU" or dtype.itemsize * len(labels["values"]) > _MOST_VALUES:
                raise ValueError(f"labels of dtype {dtype}")
        total *= int(size) if labels is None else len(labels["values"])
    for _, _, labels in data.get("along", []):
        if np.dtype(str(labels["dtype"])).kind not in "biufmMU" or len(labels["values"]) > _MOST_VALUES:
            raise ValueError(f"labels of dtype {labels['dtype']}")
    if not 0 < total * len(data["variables"]) <= _MOST_VALUES:
        raise ValueError(f"states of {total} cells")
    return Space.from_dict(data)


def _covariance(data: Any, name: str, tensors: Mapping[str, Tensor], space: Space) -> Covariance:
    shape, kind = space.shape, data["kind"]
    if kind == "white":
        return white(shape, float(data["variance"]))
    if kind == "precision":
        import scipy.sparse as sp

        parts = [tensors[f"{name}.{part}"].numpy() for part in ("values", "rows", "columns")]
        matrix = sp.csc_matrix(tuple(parts), shape=(space.size, space.size))
        matrix.check_format(full_check=True)
        return Precision(shape, matrix)
    if kind == "ornstein-uhlenbeck":
        steps, variance = (tensors[f"{name}.{part}"].double() for part in ("steps", "variance"))
        sizes = tuple(steps.shape) == (shape[-1] - 1,) and tuple(variance.shape) == (*shape[:-1], 1)
        if not sizes or not bool((steps > 0).all()) or not bool((variance > 0).all()):
            raise ValueError("gaps or variances that are not positive, or not of the space")
        return OrnsteinUhlenbeck(steps, variance, shape)
    if kind != "eigen":
        raise ValueError(f"covariance {kind!r}")
    return Eigen(_basis(data["basis"], name, tensors, shape), tensors[f"{name}.eigenvalues"].double())


def _basis(kind: str, name: str, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> Basis:
    if kind == "standard":
        return Standard(shape)
    if kind == "symmetric":
        return Symmetric(shape)
    if kind == "full":
        columns = tensors[f"{name}.basis.rows"].double().T
        _check_orthonormal(columns, math.prod(shape))
        return Full(shape, columns)
    if kind != "axes":
        raise ValueError(f"basis {kind!r}")
    matrices = [tensors.get(f"{name}.basis.{axis}") for axis in range(len(shape))]
    for matrix, n in zip(matrices, shape, strict=True):
        if matrix is not None:
            _check_orthonormal(matrix, n)
    return Axes(shape, [None if matrix is None else matrix.double() for matrix in matrices])


def _check_orthonormal(columns: Tensor, n: int) -> None:
    if columns.ndim != 2 or columns.shape[0] != n or columns.shape[1] > n:
        raise ValueError(f"a basis of shape {tuple(columns.shape)} for {n} values")
    # one random combination, because the full product of a large basis would take longer than all the rest
    probe = torch.linspace(-1.0, 1.0, columns.shape[1], dtype=torch.float64).cos()
    if not torch.allclose(columns.double().T @ (columns.double() @ probe), probe, atol=1e-4):
        raise ValueError("a basis that is not orthonormal")


def _network(data: Any, tensors: Mapping[str, Tensor], network: nn.Module | None) -> nn.Module:
    """The network with its weights; its shapes are compared before it takes memory."""
    weights = {n.removeprefix("network."): t for n, t in tensors.items() if n.startswith("network.")}
    if (data["name"] is None) != (network is not None):
        kind = data.get("class", data["name"])
        raise _NetworkError(
            "network",
            expected=f"a {kind}, whose code is not in the file" if network is None else "none",
            got="none" if network is None else "one",
            fix=f"load_prior(path, network={kind}(...))" if network is None else "leave it out",
        )
    made = _outline(data["name"], data["settings"], len(weights)) if network is None else network
    expected = {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if expected != found:
        differing = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
        raise _NetworkError(
            "network",
            expected=f"the weights of {type(made).__name__}",
            got=f"others, first {differing[0]!r}: {found.get(differing[0])} in place of "
            f"{expected.get(differing[0])}",
            fix="make the network with the settings that it was trained with",
        )
    made = networks.build(data["name"], data["settings"]) if network is None else copy.deepcopy(network)
    # parameters first take the precision of the file, so that nothing is rounded on the way
    for name, parameter in made.named_parameters():
        parameter.data = parameter.data.to(weights[name].dtype)
    made.load_state_dict(weights)
    return made.eval().requires_grad_(False)


def _outline(name: str, settings: Any, parameters: int) -> nn.Module:
    """A built-in network without memory, refused as soon as it has many more parameters than were stored."""
    kinds = {kind.__name__.lower(): kind for kind in vars(networks).values() if _built_in(kind)}
    kind = kinds[name]

    class Outline(kind):  # type: ignore[misc, valid-type]
        def initialise(self, seed: int) -> None:
            """Leave the parameters on the meta device."""

    with _Budget(100 * parameters + 1000):
        made: nn.Module = Outline(**settings)
    return made


def _built_in(kind: object) -> bool:
    """Whether it is a network of sciddiff's, which is built by its name in lower case."""
    return (
        isinstance(kind, type)
        and kind.__module__.startswith(f"{networks.__name__}.")
        and kind is not networks.Backbone
        and issubclass(kind, networks.Backbone)
    )


def _show(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


class _Budget(TorchFunctionMode):
    """Stops after so many calls of torch."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ValueError("settings of a network with many more parameters than are stored")
        return func(*args, **(kwargs or {}))


def _files(path: str | PathLike[str]) -> tuple[Path, Path]:
    stem = Path(path)
    return stem.with_name(f"{stem.name}.safetensors"), stem.with_name(f"{stem.name}.json")
