"""Operators from elsewhere: torch functions and modules, scipy, PyLops, deepinv.

Every adapter checks what it is told before anything is sampled. A linear map has to satisfy
``f(a x + b z) = a f(x) + b f(z)``, a pair ``A, A^T`` has to satisfy ``<A x, y> = <x, A^T y>``, both on random
states; a constant factor between the two sides is named in the error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, final

import numpy as np
import torch

from sciddiff.errors import InputError
from sciddiff.operators.base import LinearOperator, Operator
from sciddiff.operators.basic import Matrix, embedding
from sciddiff.operators.external import External
from sciddiff.random import Streams
from sciddiff.spaces import Space

__all__ = ["from_deepinv", "from_matvec", "from_pylops", "from_scipy", "from_torch"]

Map = Callable[[torch.Tensor], torch.Tensor]


def from_torch(function: Map, domain: Space, codomain: Space, *, linear: bool = False) -> Operator:
    """Any differentiable torch function or module as an operator.

    Args:
        function: maps ``(batch, *domain.shape)`` to ``(batch, *codomain.shape)``, row by row; a complex
            codomain may also be given as complex numbers, one channel a variable.
        domain: the space of states.
        codomain: the space of observations.
        linear: whether it is linear; this is checked, and the adjoint is taken by autograd.

    Raises:
        InputError: if ``linear`` is claimed wrongly, or if the function, tried on two random states, returns
            another shape, writes into its input, mixes its rows or lets no gradient through.

    Example:
        >>> A = from_torch(lambda x: x.square().sum(1, keepdim=True), Space({"t": 3}), Space({"detector": 1}))
        >>> A.apply(torch.ones(1, 3)).tolist(), A.vjp(torch.ones(1, 3), torch.ones(1, 1)).tolist()
        ([[3.0]], [[2.0, 2.0, 2.0]])
    """
    _callable(function, "function")
    _try(function, domain, codomain)
    if not linear:
        return _Torch(function, domain, codomain)
    operator = _LinearTorch(function, domain, codomain)
    _check_linear(operator)
    return operator


def from_matvec(
    matvec: Map, rmatvec: Map, domain: Space, codomain: Space, *, check: bool = True
) -> LinearOperator:
    """A linear operator from two torch functions that autograd need not see through.

    Args:
        matvec: ``A``, from ``(batch, *domain.shape)`` to ``(batch, *codomain.shape)``.
        rmatvec: ``A^T``, back; in the real views of complex variables it is the Hermitian adjoint.
        domain: the space of states.
        codomain: the space of observations.
        check: whether to test at once that one is the adjoint of the other.

    Raises:
        InputError: if they are not adjoint to 1e-6 (1e-3 where only float32 runs), or on a wrong shape.

    Example:
        >>> space = Space({"t": 3})
        >>> from_matvec(lambda x: x.cumsum(1), lambda y: y.flip(1).cumsum(1).flip(1), space, space)
        Adapted(Space(x on (t: 3)) -> Space(x on (t: 3)))
        >>> from_matvec(lambda x: 2 * x, lambda y: 8 * y, space, space)
        Traceback (most recent call last):
        sciddiff.errors.InputError: `rmatvec`: expected the adjoint of matvec, <A x, y> = <x, A^T y>, got one
        that is 4 times too large. To fix it: divide it by 4.
    """
    _callable(matvec, "matvec")
    _callable(rmatvec, "rmatvec")
    operator = Adapted(matvec, rmatvec, domain, codomain)
    if check:
        _check_adjoint(operator, "rmatvec")
    return operator


def from_scipy(operator: Any, domain: Space, codomain: Space, *, check: bool = True) -> LinearOperator:
    """A `scipy.sparse.linalg.LinearOperator`, or a sparse or dense matrix, on flattened states.

    Args:
        operator: ``(codomain.size, domain.size)``, complex values counted once; matrices become `Matrix`.
        domain: the space of states.
        codomain: the space of observations.
        check: whether to test at once that ``rmatvec`` is the adjoint of ``matvec``.

    Raises:
        InputError: on a wrong shape, a missing or wrong ``rmatvec``, or a complex map onto a real variable.

    Example:
        >>> import scipy.sparse.linalg as sla
        >>> sums = sla.aslinearoperator(np.array([[1.0, 1.0, 1.0]]))
        >>> from_scipy(sums, Space({"t": 3}), Space({"detector": 1})).apply(torch.ones(2, 3)).tolist()
        [[3.0], [3.0]]
    """
    if hasattr(operator, "tocsr") or isinstance(operator, (np.ndarray, torch.Tensor, list)):
        return Matrix(domain, codomain, operator)
    return _columns(operator, domain, codomain, check)


def from_pylops(operator: Any, domain: Space, codomain: Space, *, check: bool = True) -> LinearOperator:
    """A PyLops operator, or anything else with ``shape``, ``matvec`` and ``rmatvec``, on flattened states.

    Args:
        operator: the PyLops operator, real or complex.
        domain: the space of states.
        codomain: the space of observations.
        check: whether to test at once that ``rmatvec`` is the adjoint of ``matvec``.

    Raises:
        InputError: on a wrong shape, a wrong ``rmatvec``, or a complex map onto a real variable.

    Example:
        >>> import pylops
        >>> slope = pylops.FirstDerivative(4, kind="forward")
        >>> from_pylops(slope, Space({"t": 4}), Space({"t": 4})).apply(torch.tensor([[0.0, 1.0, 3.0, 3.0]]))
        tensor([[1., 2., 0., 0.]])
    """
    return _columns(operator, domain, codomain, check)


def from_deepinv(physics: Any, domain: Space, codomain: Space) -> Operator:
    """A deepinv physics: ``A`` with ``A_adjoint`` (linear) or with ``A_vjp`` or autograd (not linear).

    deepinv's tensors are ``(batch, channels, *grid)``; a single real variable gets its channel dim here.

    Args:
        physics: the object; it is called without noise.
        domain: the space of states, whose variables all live on all dims.
        codomain: the space of observations.

    Raises:
        InputError: on an object without ``A``, results of another shape, or a wrong ``A_adjoint``.

    Example:
        >>> class Attenuation:                              # stands for a deepinv.physics.LinearPhysics
        ...     def A(self, x): return 0.5 * x
        ...     def A_adjoint(self, y): return 0.5 * y
        >>> space = Space({"row": 2, "column": 2})
        >>> from_deepinv(Attenuation(), space, space).apply(torch.ones(1, 2, 2)).tolist()
        [[[0.5, 0.5], [0.5, 0.5]]]
    """
    _callable(getattr(physics, "A", None), "physics")
    inside = (len(domain.components), *domain.grid)
    dtype = _dtype(physics, lambda x: physics.A(x), inside)
    outside = tuple(physics.A(torch.zeros((1, *inside), dtype=dtype)).shape[1:])
    if math.prod(outside) != codomain.size or outside[-len(codomain.grid) :] != codomain.grid:
        raise InputError(
            "codomain",
            expected=f"a space of shape {outside}, which physics.A returns",
            got=codomain,
            fix="build the codomain from the shape of physics.A(x)",
        )

    def forward(x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(physics.A(x.reshape(-1, *inside))).reshape(-1, *codomain.shape)

    def backward(y: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(physics.A_adjoint(y.reshape(-1, *outside))).reshape(-1, *domain.shape)

    if callable(getattr(physics, "A_adjoint", None)):
        return from_matvec(forward, backward, domain, codomain)
    return _Torch(forward, domain, codomain)


@final
class Adapted(External):
    """``A`` and ``A^T`` as two torch functions, their shapes checked at every call."""

    def __init__(self, matvec: Map, rmatvec: Map, domain: Space, codomain: Space) -> None:
        self.domain, self.codomain = domain, codomain
        self._matvec, self._rmatvec = matvec, rmatvec

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``A x``."""
        return _run(self._matvec, x, self.codomain, "matvec")

    def transposed(self, y: torch.Tensor) -> torch.Tensor:
        """``A^T y``."""
        return _run(self._rmatvec, y, self.domain, "rmatvec")


@final
class _Torch(Operator):
    """A function that autograd sees through."""

    def __init__(self, function: Map, domain: Space, codomain: Space) -> None:
        self.function, self.domain, self.codomain = function, domain, codomain

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Call it and check the shape."""
        return _run(self.function, x, self.codomain, "function")


@final
class _LinearTorch(LinearOperator):
    """A linear function that autograd sees through."""

    def __init__(self, function: Map, domain: Space, codomain: Space) -> None:
        self.function, self.domain, self.codomain = function, domain, codomain

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Call it and check the shape."""
        return _run(self.function, x, self.codomain, "function")


def _run(function: Map, x: torch.Tensor, codomain: Space, argument: str) -> torch.Tensor:
    expected = (x.shape[0], *codomain.shape)
    if x.shape[0] == 0:
        return x.new_zeros(expected) + 0 * x.sum()
    out = function(x)
    if isinstance(out, torch.Tensor) and out.is_complex():
        out = _split(out, codomain)
    if not isinstance(out, torch.Tensor) or tuple(out.shape) != expected:
        got = f"shape {tuple(out.shape)}" if isinstance(out, torch.Tensor) else type(out).__name__
        raise InputError(
            argument,
            expected=f"a result of shape {expected} in {codomain}",
            got=got,
            fix="return one row per row of the input, of the space's shape"
            if isinstance(out, torch.Tensor)
            else "return a tensor; operators.black_box takes functions of numpy arrays",
        )
    return out


def _split(out: torch.Tensor, codomain: Space) -> torch.Tensor:
    """Real views of complex numbers, where the codomain is complex throughout."""
    if not codomain.homogeneous or not all(v.complex for v in codomain.variables.values()):
        return out
    z = out.reshape(out.shape[0], -1, *codomain.grid)
    return torch.stack([z.real, z.imag], 2).reshape(z.shape[0], -1, *codomain.grid)


def _columns(operator: Any, domain: Space, codomain: Space, check: bool) -> LinearOperator:
    """Adapt ``matvec`` and ``rmatvec`` on numpy columns, complex ones where there are complex variables."""
    for name in ("matvec", "rmatvec"):
        _callable(getattr(operator, name, None), "operator", f"an operator with {name}")
    left, right = embedding(codomain), embedding(domain)
    natural, shape = (left.shape[0], right.shape[0]), tuple(operator.shape)
    is_complex = np.dtype(operator.dtype or np.float64).kind == "c"
    if shape != natural and (is_complex or shape != (codomain.size, domain.size)):
        raise InputError(
            "operator",
            expected=f"shape {natural}, (values of the codomain, values of the domain)",
            got=shape,
            fix="match the spaces to the operator; complex values count once",
        )
    if is_complex and not all(v.complex for v in codomain.variables.values()):
        raise InputError(
            "operator",
            expected="a real operator onto real variables",
            got="a complex one",
            fix="declare the codomain's variables complex: Variable(dims, complex=True)",
        )
    through = shape == natural and natural != (codomain.size, domain.size)

    def call(name: str, x: torch.Tensor, out: Space, into: Any, back: Any) -> torch.Tensor:
        columns = x.reshape(x.shape[0], -1).T.double().cpu().numpy()
        columns = into @ columns if through else columns
        many = getattr(operator, {"matvec": "matmat", "rmatvec": "rmatmat"}[name], None)
        if many is not None:
            result = np.asarray(many(columns))
        else:
            result = np.stack([np.asarray(getattr(operator, name)(c)).reshape(-1) for c in columns.T], 1)
        result = back.conj().T @ result if through else result
        real = np.ascontiguousarray(result.real.T)
        return torch.from_numpy(real).to(x).reshape(x.shape[0], *out.shape)

    adapted = Adapted(
        lambda x: call("matvec", x, codomain, right, left),
        lambda y: call("rmatvec", y, domain, left, right),
        domain,
        codomain,
    )
    if check:
        _check_adjoint(adapted, "operator")
    return adapted


# -- what is claimed is tried ---------------------------------------------------------------------


def _random(space: Space, rows: int, purpose: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return Streams(0, range(rows), purpose=purpose).normal(space.shape, dtype=dtype, device=device)


def _home(function: Any) -> tuple[torch.dtype | None, torch.device]:
    """Where a module's parameters are; None where it has none."""
    values = [*getattr(function, "parameters", list)(), *getattr(function, "buffers", list)()]
    floating = [v for v in values if isinstance(v, torch.Tensor) and v.is_floating_point()]
    return (floating[0].dtype, floating[0].device) if floating else (None, torch.device("cpu"))


def _dtype(owner: Any, function: Map, shape: tuple[int, ...]) -> torch.dtype:
    """The widest of the float dtypes that a function runs in."""
    known, device = _home(owner)
    for dtype in (torch.float64, torch.float32) if known is None else (known,):
        try:
            function(torch.zeros((1, *shape), dtype=dtype, device=device))
        except RuntimeError as error:
            failure = error
        else:
            return dtype
    raise InputError(
        "function",
        expected=f"a function of tensors of shape {(1, *shape)}",
        got=f"{failure}",
        fix="check it on a batch of one state",
    ) from failure


def _try(function: Map, domain: Space, codomain: Space) -> None:
    """Refuse what would only show while sampling; other errors may be due to the states, and are left."""
    opaque = "stay in torch, or wrap numpy code with operators.black_box, which needs no gradient"
    for dtype in (torch.float64, torch.float32):
        start = _random(domain, 2, "trial", dtype, _home(function)[1])
        try:
            with torch.inference_mode(False), torch.enable_grad():
                leaf = start.clone().requires_grad_()
                x = leaf * 1  # unlike a leaf it can be written into, which is then seen
                out = _run(function, x, codomain, "function")
                wrote = not torch.equal(x, start)
                alone = _run(function, start[:1].clone().requires_grad_() * 1, codomain, "function")
                follows = wrote or (
                    out.requires_grad
                    and torch.autograd.grad(out.sum(), leaf, allow_unused=True)[0] is not None
                )
        except InputError:
            raise
        except Exception as error:
            if "call numpy()" in str(error):
                raise _unfit("one that autograd follows", "numpy inside", opaque) from error
            continue  # such as weights in the other dtype
        if wrote:
            raise _unfit(
                "one that leaves its input alone", "one that writes into its input", "clone it first"
            )
        if not follows:
            raise _unfit("one that autograd follows", "a result without gradient, as after .detach()", opaque)
        off, scale = (out[:1] - alone).detach().abs().nan_to_num(), alone.detach().abs().nan_to_num().max()
        if bool((off > (1e-6 if dtype == torch.float64 else 1e-2) * scale).any()):
            raise _unfit(
                "one that maps row by row",
                "another result for a row alone than in a batch of two",
                "keep the batch dim out of sums and flips; put modules into .eval()",
            )
        return


def _unfit(expected: str, got: str, fix: str) -> InputError:
    return InputError("function", expected=f"a function: {expected}", got=got, fix=fix)


def _check_linear(operator: _LinearTorch) -> None:
    dtype = _dtype(operator.function, operator.apply, operator.domain.shape)
    device = _home(operator.function)[1]
    x, z = _random(operator.domain, 2, "linearity", dtype, device).split(1)
    with torch.no_grad():
        whole = operator.apply(torch.cat([2 * x - 3 * z, 0 * x]))
        parts = 2 * operator.apply(x) - 3 * operator.apply(z)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    scale = parts.abs().max()
    if whole[1].abs().max() > tolerance * scale or not (whole[:1] - parts).abs().max() <= tolerance * scale:
        offset = float(whole[1].abs().max())
        raise InputError(
            "linear",
            expected="a linear function, f(2 x - 3 z) = 2 f(x) - 3 f(z)",
            got=f"one with f(0) up to {offset:.3g}"
            if offset > tolerance * float(scale)
            else "one that is not",
            fix="subtract f(0) from the function and the data, or pass linear=False",
        )


def _check_adjoint(operator: Adapted, argument: str) -> None:
    dtype = _dtype(None, operator.forward, operator.domain.shape)
    x = _random(operator.domain, 3, "adjoint x", dtype, torch.device("cpu"))
    y = _random(operator.codomain, 3, "adjoint y", dtype, torch.device("cpu"))
    ax, aty = operator.forward(x), operator.transposed(y)
    left, right = ((a * b).flatten(1).sum(1) for a, b in ((ax, y), (x, aty)))
    tolerance = 1e-6 if dtype == torch.float64 else 1e-3
    scale = ax.flatten(1).norm(dim=1) * y.flatten(1).norm(dim=1)
    if bool(((left - right).abs() <= tolerance * scale).all()):
        return
    factor = float(right[0] / left[0])
    constant = bool(((right - factor * left).abs() <= 1e-3 * right.abs()).all())
    raise InputError(
        argument,
        expected="the adjoint of matvec, <A x, y> = <x, A^T y>",
        got=f"one that is {factor:.4g} times too large"
        if constant
        else f"<A x, y> = {left[0]:.4g} and <x, A^T y> = {right[0]:.4g}",
        fix=f"divide it by {factor:.4g}"
        if constant
        else "transpose the map (and conjugate a complex one), or pass linear=False to from_torch",
    )


def _callable(value: Any, argument: str, expected: str = "a function") -> None:
    if not callable(value):
        raise InputError(argument, expected=expected, got=type(value).__name__, fix="pass one")
