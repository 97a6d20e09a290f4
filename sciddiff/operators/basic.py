"""The plain ones: the identity, a matrix, several operators side by side.

A matrix acts on flattened states, ``y = M x``. A complex one acts on complex variables: with ``E`` the
embedding of real views into complex vectors, ``z = E x``, it is the real matrix ``Re(E^H M E)``, so that its
transpose is the Hermitian adjoint.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import torch

from sciddiff.errors import InputError
from sciddiff.operators.base import LinearOperator, Operator
from sciddiff.operators.external import External
from sciddiff.operators.grids import labels
from sciddiff.spaces import Space, Variable

__all__ = ["Identity", "Matrix", "embedding", "stack"]


@final
class Identity(LinearOperator):
    """``A(x) = x``.

    Args:
        domain: the space of states, and of observations.

    Example:
        >>> Identity(Space({"t": 2})).apply(torch.ones(1, 2)).tolist()
        [[1.0, 1.0]]
    """

    def __init__(self, domain: Space) -> None:
        self.domain = self.codomain = domain

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """``x``."""
        return x

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """``y``."""
        return y


@final
class Matrix(External):
    """``y = M x`` on flattened states.

    Args:
        domain: the space of states.
        codomain: the space of observations.
        matrix: ``(codomain.size, domain.size)``, numpy, torch or scipy sparse. A complex one counts a complex
            variable's values once, and needs a codomain of complex variables.

    Raises:
        InputError: on a wrong shape, values that are not finite, or a complex matrix onto a real variable.

    Example:
        >>> A = Matrix(Space({"t": 3}), Space({"sensor": 2}), [[1.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
        >>> A.apply(torch.tensor([[1.0, 2.0, 3.0]])).tolist(), A.adjoint(torch.ones(1, 2)).tolist()
        ([[3.0, 6.0]], [[1.0, 1.0, 2.0]])
    """

    def __init__(self, domain: Space, codomain: Space, matrix: Any) -> None:
        self.domain, self.codomain = domain, codomain
        values = _values(matrix)
        natural = (embedding(codomain).shape[0], embedding(domain).shape[0])
        if values.dtype.kind == "c" or values.shape == natural != (codomain.size, domain.size):
            values = _real(values, domain, codomain)
        if values.shape != (codomain.size, domain.size):
            raise InputError(
                "matrix",
                expected=f"shape {(codomain.size, domain.size)}, (codomain.size, domain.size)",
                got=f"shape {values.shape}",
                fix="one row per observed value, one column per value of the state",
            )
        sparse = not isinstance(values, np.ndarray)
        if not np.isfinite(values.data if sparse else values).all():
            raise InputError("matrix", expected="finite numbers", got="NaN or infinity", fix="remove them")
        both = (values, values.T)
        self._pair = tuple(
            _csr(m) if sparse else torch.from_numpy(np.array(m, dtype=np.float64)) for m in both
        )
        self._cast: dict[tuple[torch.dtype, torch.device], tuple[torch.Tensor, ...]] = {}

    @property
    def matrix(self) -> torch.Tensor:
        """``M`` in float64, dense or sparse CSR, acting on real views."""
        return self._pair[0]

    def _multiply(self, x: torch.Tensor, which: int, shape: tuple[int, ...]) -> torch.Tensor:
        key = (x.dtype, x.device)
        if key not in self._cast:
            self._cast[key] = tuple(m.to(device=x.device, dtype=x.dtype) for m in self._pair)
        m = self._cast[key][which]
        if len(x) == 0:
            return x.new_zeros((0, *shape))
        flat = x.reshape(len(x), m.shape[1])
        # a sparse matrix comes first in a product
        out = flat @ m.T if m.layout == torch.strided else (m @ flat.T).T
        return out.reshape(len(x), *shape)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``M x``."""
        return self._multiply(x, 0, self.codomain.shape)

    def transposed(self, y: torch.Tensor) -> torch.Tensor:
        """``M^T y``."""
        return self._multiply(y, 1, self.domain.shape)


def embedding(space: Space) -> Any:
    """The scipy sparse matrix ``E`` that turns a flattened state into the vector of its numbers, ``z = E x``.

    The rows are the values of the variables, one behind the other; a complex value has the entries 1 and
    1j at its real and imaginary parts. ``E`` is the identity where nothing is complex, and ``Re(E^H E) = 1``.

    Args:
        space: the space of the states.

    Example:
        >>> embedding(Space({"t": 1}, {"z": Variable(("t",), complex=True)})).toarray()
        array([[1.+0.j, 0.+1.j]])
    """
    import scipy.sparse as sp

    parts = []
    for v in space.variables.values():
        eye = sp.identity(math.prod(space.sizes[d] for d in v.dims))
        parts.append(sp.hstack([eye, 1j * eye]) if v.complex else eye)
    return sp.block_diag(parts, format="csr")


def stack(operators: Mapping[str, Operator] | Sequence[Operator]) -> Operator:
    """Several observations of one state, side by side.

    Args:
        operators: operators on one domain. With names, ``{"gps": A, "sar": B}``, a single variable takes the
            operator's name, several ones and the dims take it as a prefix, ``sar_time``. Without names the
            variables have to differ, and dims of one name have to agree.

    Returns:
        The operator onto all variables, linear if all are. Variables on different dims lie flattened one
        behind the other, as in every `Space`.

    Raises:
        InputError: on no operator, different domains, or clashing variables or dims without names.

    Example:
        >>> from sciddiff.operators.sampling import Select
        >>> space = Space({"t": 3})
        >>> both = stack({"all": Identity(space), "last": Select.at_indices(space, {"t": [2]})})
        >>> both.codomain.variables["last"].dims, both.apply(torch.tensor([[1.0, 2.0, 3.0]])).tolist()
        (('last_t',), [[1.0, 2.0, 3.0, 3.0]])
    """
    parts = list(operators.values() if isinstance(operators, Mapping) else operators)
    if not parts:
        raise InputError(
            "operators", expected="at least one operator", got="none", fix="pass a list or a mapping"
        )
    for k, part in enumerate(parts[1:], 1):
        difference = parts[0].domain.difference(part.domain)
        if difference is not None:
            raise InputError(
                "operators",
                expected=f"operators on {parts[0].domain}",
                got=f"operator {k} with {difference}",
                fix="build all of them on one space",
            )
    names = list(operators) if isinstance(operators, Mapping) else None
    codomain = _side_by_side([p.codomain for p in parts], names)
    linear = [p for p in parts if isinstance(p, LinearOperator)]
    return _LinearStack(linear, codomain) if len(linear) == len(parts) else _Stack(parts, codomain)


def _concatenate(parts: Sequence[Operator], x: torch.Tensor, codomain: Space) -> torch.Tensor:
    out = [p.apply(x).reshape(x.shape[0], p.codomain.size) for p in parts]
    return torch.cat(out, 1).reshape(x.shape[0], *codomain.shape)


@final
class _Stack(Operator):
    """Operators side by side, not all of them linear."""

    def __init__(self, parts: Sequence[Operator], codomain: Space) -> None:
        self.parts, self.domain, self.codomain = tuple(parts), parts[0].domain, codomain
        self.differentiable = all(p.differentiable for p in parts)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """All of them."""
        return _concatenate(self.parts, x, self.codomain)


@final
class _LinearStack(LinearOperator):
    """Linear operators side by side."""

    def __init__(self, parts: Sequence[LinearOperator], codomain: Space) -> None:
        self.parts, self.domain, self.codomain = tuple(parts), parts[0].domain, codomain
        self.differentiable = all(p.differentiable for p in parts)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """All of them."""
        return _concatenate(self.parts, x, self.codomain)

    def adjoint(self, y: torch.Tensor) -> torch.Tensor:
        """The sum of the parts' adjoints."""
        sizes = [p.codomain.size for p in self.parts]
        pieces = y.reshape(y.shape[0], self.codomain.size).split(sizes, 1)
        out = y.new_zeros((y.shape[0], *self.domain.shape))
        for part, piece in zip(self.parts, pieces, strict=True):
            out = out + part.adjoint(piece.reshape(y.shape[0], *part.codomain.shape))
        return out


def _side_by_side(spaces: Sequence[Space], names: Sequence[str] | None) -> Space:
    coords: dict[str, Any] = {}
    variables: dict[str, Variable] = {}
    for k, space in enumerate(spaces):
        prefix = "" if names is None else f"{names[k]}_"
        for dim, values in labels(space).items():
            old = coords.setdefault(prefix + dim, values)
            if not np.array_equal(old, values):
                raise _clash(f"dim {dim!r}")
        for name, v in space.variables.items():
            new = name if names is None else names[k] if len(space.variables) == 1 else prefix + name
            if new in variables:
                raise _clash(f"variable {name!r}")
            variables[new] = Variable(tuple(prefix + d for d in v.dims), v.units, v.complex, v.attrs)
    return Space(coords, variables)


def _clash(what: str) -> InputError:
    return InputError(
        "operators",
        expected="different variables, and the same labels on dims of one name",
        got=f"two kinds of {what}",
        fix="name the operators: stack({'first': A, 'second': B})",
    )


def _values(matrix: Any) -> Any:
    """A numpy array or a scipy CSR matrix."""
    if hasattr(matrix, "tocsr"):
        return matrix.tocsr()
    if isinstance(matrix, torch.Tensor):
        matrix = matrix.detach().cpu().to_dense().resolve_conj().numpy()
    out = np.asarray(matrix)
    if out.ndim != 2 or out.dtype.kind not in "biufc":
        raise InputError(
            "matrix",
            expected="a 2-D array of numbers",
            got=f"{out.dtype} of shape {out.shape}",
            fix="pass numpy, torch or scipy sparse numbers",
        )
    return out


def _real(values: Any, domain: Space, codomain: Space) -> Any:
    import scipy.sparse as sp

    if not all(v.complex for v in codomain.variables.values()):
        raise InputError(
            "matrix",
            expected="a real matrix onto real variables",
            got="a complex one",
            fix="declare the codomain's variables complex: Variable(dims, complex=True)",
        )
    left, right = embedding(codomain), embedding(domain)
    if values.shape != (left.shape[0], right.shape[0]):
        raise InputError(
            "matrix",
            expected=f"shape {(left.shape[0], right.shape[0])}, complex values counted once",
            got=f"shape {values.shape}",
            fix="one row per observed value, one column per value of the state",
        )
    out = left.conj().T @ (values @ right)
    return sp.csr_matrix(out.real) if sp.issparse(out) else np.asarray(out.real)


def _csr(matrix: Any) -> torch.Tensor:
    m = matrix.tocsr().astype(np.float64)
    m.sum_duplicates()
    pointers, columns, data = (torch.from_numpy(np.array(a)) for a in (m.indptr, m.indices, m.data))
    with warnings.catch_warnings():
        # torch announces that its CSR layout is in beta; the two products used here are stable
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_csr_tensor(pointers, columns, data, size=m.shape, check_invariants=False)
