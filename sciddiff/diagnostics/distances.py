"""How far two sets of draws are apart, and how far two exact sets of that size would be.

Sliced W1 sees any difference of law: ``SW1(a, b) = mean over u of the integral of |F_ua - F_ub|``,
with fixed unit directions u and F_ua the distribution function of the projected set. Gaussian W2 sees
means and covariances alone: ``W2g^2 = |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a^1/2 S_b S_a^1/2)^1/2)``.
Both are positive for two sets from one law. The size of that, the floor, is the unit they are quoted in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import torch

from sciddiff.errors import InputError
from sciddiff.random import Streams, check_seed

__all__ = ["floor", "gaussian_w2", "sliced_w1"]

Points: TypeAlias = "torch.Tensor | np.ndarray[Any, Any]"


def sliced_w1(a: Points, b: Points, *, directions: int = 100, seed: int = 0) -> float:
    """Mean over fixed directions of the exact one-dimensional W1 distance between two sets of points.

    Args:
        a: first set, ``(n, d)`` or ``(n, *shape)``.
        b: second set, ``(m, d)`` or ``(m, *shape)``; m may differ from n.
        directions: number of unit vectors, uniform on the sphere of the flattened space.
        seed: int in [0, 2**64); direction i depends on (seed, i, d) alone, so that figures at one seed
            compare.

    Returns:
        The distance, in the units of the points; computed in float64.

    Raises:
        InputError: a set is empty, not finite, complex, one-dimensional, or of another event size.

    Source: Bonneel, Rabin, Peyre and Pfister (2015), "Sliced and Radon Wasserstein barycenters of
    measures", section 3, with the order 1; in one dimension W1 is the area between the two
    distribution functions (Vallender, 1974).

    Example:
        >>> import numpy as np
        >>> a = np.linspace(0.0, 1.0, 5)[:, None]
        >>> round(sliced_w1(a, a + 3.0), 6)
        3.0
    """
    x, y = _two_sets(a, b, minimum=1)
    check_seed(seed)
    if isinstance(directions, bool) or not isinstance(directions, (int, np.integer)) or directions < 1:
        raise InputError("directions", expected="a positive int", got=repr(directions), fix="pass 100")
    u = Streams(seed, range(directions), purpose="sliced_w1 directions").normal(
        (x.shape[1],), dtype=torch.float64, device=x.device
    )
    u = u / torch.linalg.vector_norm(u, dim=1, keepdim=True)
    # A row is one direction, so that the sort runs over contiguous memory.
    return float(_w1(u @ x.T, u @ y.T).mean())


def _w1(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Area between the distribution functions of each row of ``(k, n)`` and ``(k, m)``: ``(k,)``."""
    values, order = torch.sort(torch.cat([x, y], dim=1), dim=1)
    n, m = x.shape[1], y.shape[1]
    # Whole numbers until the last division: F_x - F_y is then exactly 0 where it should be.
    jump = torch.where(order < n, m, -n)
    gap = jump.cumsum(dim=1)[:, :-1].abs().to(values.dtype) / (n * m)
    area: torch.Tensor = (gap * values.diff(dim=1)).sum(dim=1)
    return area


def gaussian_w2(a: Points, b: Points) -> float:
    """W2 distance between the Gaussians that have the sample means and covariances of two sets.

    With factors ``S_a = L_a L_a^T`` the covariance part is the orthogonal Procrustes distance
    ``min over orthogonal Q of |L_a - L_b Q|_F``. It is computed in that form: no matrix root, no
    difference of near-equal traces, and a covariance of any rank (fewer points than dimensions) is
    as good as another. Cost: ``O(r^2 d)`` with ``r = min(max(n, m), d)``.

    Args:
        a: first set, ``(n, d)`` or ``(n, *shape)``, n at least 2.
        b: second set, ``(m, d)`` or ``(m, *shape)``, m at least 2.

    Returns:
        The distance (not its square), in the units of the points; covariances are divided by n - 1;
        computed in float64.

    Raises:
        InputError: a set has fewer than 2 points, is not finite, complex, one-dimensional, or of another
            event size.

    Source: Dowson and Landau (1982), "The Frechet distance between multivariate normal distributions";
    the Procrustes form is Bhatia, Jain and Lim (2019), "On the Bures-Wasserstein distance
    between positive definite matrices", theorem 1.

    Example:
        >>> import numpy as np
        >>> a = np.array([[-1.0], [0.0], [1.0]])
        >>> round(gaussian_w2(a, 3.0 * a + 4.0), 6)  # means 0 and 4, sd 1 and 3
        4.472136
    """
    x, y = _two_sets(a, b, minimum=2)
    shift = x.mean(dim=0) - y.mean(dim=0)
    factor_x, factor_y = _factor(x), _factor(y)
    rank = max(factor_x.shape[0], factor_y.shape[0])
    factor_x, factor_y = _padded(factor_x, rank), _padded(factor_y, rank)
    u, _, vh = torch.linalg.svd(factor_x @ factor_y.T)
    bures = torch.linalg.matrix_norm(u.T @ factor_x - vh @ factor_y)
    return float(torch.hypot(torch.linalg.vector_norm(shift), bures))


def _factor(x: torch.Tensor) -> torch.Tensor:
    """``L^T`` of shape ``(min(n, d), d)`` with ``L L^T`` the sample covariance of x."""
    centred: torch.Tensor = (x - x.mean(dim=0)) / (x.shape[0] - 1) ** 0.5
    if x.shape[0] <= x.shape[1]:
        return centred
    factor: torch.Tensor = torch.linalg.qr(centred, mode="r").R
    return factor


def _padded(factor: torch.Tensor, rank: int) -> torch.Tensor:
    """The factor with rows of zeros up to ``rank`` rows."""
    return torch.nn.functional.pad(factor, (0, 0, 0, rank - factor.shape[0]))


def floor(
    draw_exact: Callable[[int, int], Points],
    n: int,
    distance: Callable[[Points, Points], float],
    *,
    pairs: int = 20,
    seed: int = 0,
) -> float:
    """Median distance between two independent exact sets of n draws: the best that n draws can do.

    A sampler's distance to n exact draws divided by this floor is 1 for a perfect sampler.

    Args:
        draw_exact: ``draw_exact(n, seed)`` returns n independent exact draws, ``(n, d)`` or
            ``(n, *shape)``; it is called with ``2 * pairs`` different seeds.
        n: draws in a set.
        distance: ``distance(a, b)``, the same estimator as the one to be judged, for example `sliced_w1`.
        pairs: number of pairs of sets.
        seed: int in [0, 2**64); pair i depends on (seed, i) alone.

    Returns:
        The median over the pairs, in the units of the distance.

    Raises:
        InputError: n or pairs is not a positive int, or ``draw_exact`` returns another number of draws.

    Example:
        >>> import numpy as np
        >>> exact = lambda n, seed: np.random.default_rng(seed).normal(size=(n, 1))
        >>> 0.0 < floor(exact, 1000, sliced_w1) < 0.1
        True
    """
    for name, value in (("n", n), ("pairs", pairs)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise InputError(name, expected="a positive int", got=repr(value), fix=f"pass {name}=20")
    generators = Streams(seed, range(pairs), purpose="floor pairs").numpy()
    distances = []
    for generator in generators:
        # 63 bits: torch and numpy both take such a seed.
        first, second = (int(s) for s in generator.integers(0, 2**63, size=2))
        a, b = draw_exact(n, first), draw_exact(n, second)
        if a.shape[0] != n or b.shape[0] != n:
            raise InputError(
                "draw_exact",
                expected=f"{n} draws along the first axis",
                got=f"shapes {tuple(a.shape)} and {tuple(b.shape)}",
                fix="return exactly n draws from draw_exact(n, seed)",
            )
        distances.append(distance(a, b))
    return float(np.median(distances))


def _two_sets(a: Points, b: Points, *, minimum: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Both sets as float64 ``(n, d)`` on one device, checked."""
    x, y = _flat("a", a, minimum), _flat("b", b, minimum)
    if np.shape(a)[1:] != np.shape(b)[1:]:
        raise InputError(
            "b",
            expected=f"points of shape {tuple(np.shape(a)[1:])}, as in `a`",
            got=f"points of shape {tuple(np.shape(b)[1:])}",
            fix="pass two sets of points of one space",
        )
    return x, y.to(x.device)


def _flat(name: str, value: Points, minimum: int) -> torch.Tensor:
    if not isinstance(value, torch.Tensor) and np.asarray(value).dtype.kind not in "biufc":
        raise InputError(
            name, expected="numbers", got=f"dtype {np.asarray(value).dtype}", fix="pass an array"
        )
    points = value.detach() if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
    if points.ndim < 2 or points.shape[0] < minimum or points.numel() == 0:
        raise InputError(
            name,
            expected=f"an array (n, d) of at least {minimum} points",
            got=f"shape {tuple(points.shape)}",
            fix="put the points along the first axis; a set of numbers is x[:, None]",
        )
    if points.is_complex():
        raise InputError(
            name,
            expected="real points",
            got=str(points.dtype),
            fix="pass torch.view_as_real(x), or its parts",
        )
    flat = points.reshape(points.shape[0], -1).to(torch.float64)
    if not bool(torch.isfinite(flat).all()):
        bad = int((~torch.isfinite(flat).all(dim=1)).sum())
        raise InputError(
            name,
            expected="finite points",
            got=f"{bad} of {flat.shape[0]} points with NaN or infinite entries",
            fix="look for the draws that diverged before measuring a distance",
        )
    return flat
