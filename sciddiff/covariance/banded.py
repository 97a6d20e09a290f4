"""The variances of a banded precision matrix, without its inverse.

With ``Q = L D L^T``, L unit lower triangular of bandwidth b, the entries of ``Sigma = Q^-1`` within the band follow from
those below and to the right of them (Takahashi, Fagan and Chin 1973; Rue and Held 2005, "Gaussian Markov random
fields", section 12.1), with ``l = L_{j+1..j+b, j}`` and ``M`` the block of Sigma at ``j+1..j+b``:

    ``Sigma_{j+1..j+b, j} = -M l``,        ``Sigma_jj = 1/D_j + l^T M l``
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["inverse_diagonal"]

# from this bandwidth on solving for blocks of unit vectors is as fast
_WIDEST = 256


def inverse_diagonal(matrix: Any) -> np.ndarray | None:
    """The diagonal of the inverse of a sparse symmetric positive definite matrix; None where it is not banded.

    Args:
        matrix: scipy sparse ``(n, n)``.

    Returns:
        ``(n,)``, in ``O(n b^2)``, with b the bandwidth in reverse Cuthill-McKee order.

    Example:
        >>> import scipy.sparse as sp
        >>> inverse_diagonal(sp.diags([2.0, 4.0]).tocsc())
        array([0.5 , 0.25])
    """
    from scipy.linalg import cholesky_banded
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    order = reverse_cuthill_mckee(matrix.tocsr(), symmetric_mode=True)
    turned = matrix.tocsr()[order][:, order].tocoo()
    n, width = turned.shape[0], int(np.abs(turned.row - turned.col).max(initial=0))
    if width > _WIDEST:
        return None
    bands = np.zeros((width + 1, n))
    lower = turned.row >= turned.col
    bands[turned.row[lower] - turned.col[lower], turned.col[lower]] = turned.data[lower]
    factor = cholesky_banded(bands, lower=True)
    columns, least = factor[1:] / factor[0], factor[0] ** -2
    out = np.empty(n)
    # the block of Sigma at j .. j + b, of which the last rows are zero beyond the end
    block = np.zeros((width + 1, width + 1))
    for j in range(n - 1, -1, -1):
        column = columns[:, j]
        inner = block[:width, :width]
        beside = -inner @ column
        now = np.empty_like(block)
        now[1:, 1:], now[0, 1:], now[1:, 0] = inner, beside, beside
        now[0, 0] = least[j] - column @ beside
        out[j], block = now[0, 0], now
    diagonal = np.empty(n)
    diagonal[order] = out
    return diagonal
