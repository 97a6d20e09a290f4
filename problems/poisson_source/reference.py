"""The exact posterior of a Gaussian source seen through a linear solve at point sensors (kriging).

Written with scipy alone, apart from the operator's adjoint, so that it shares no code with the samplers:
``mean = K A^T S^-1 y`` and ``var = diag K - diag(K A^T S^-1 A K)`` with ``S = A K A^T + r I``.
"""

from __future__ import annotations

import numpy as np
import scipy.fft
import scipy.linalg

__all__ = ["kriging"]


def kriging(
    eigenvalues: np.ndarray, rows: np.ndarray, y: np.ndarray, noise_sd: float
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior means ``(cases, n, n)`` and the one standard deviation ``(n, n)``.

    Args:
        eigenvalues: of the prior covariance ``K`` in the orthonormal DCT-II, ``(n, n)``.
        rows: the rows of ``A``, ``(sensors, n, n)``.
        y: observations ``(cases, sensors)``.
        noise_sd: standard deviation of their noise.
    """

    def transform(x: np.ndarray) -> np.ndarray:
        return scipy.fft.dctn(x, axes=(-2, -1), norm="ortho")

    ka = scipy.fft.idctn(eigenvalues * transform(rows), axes=(-2, -1), norm="ortho")
    flat = ka.reshape(len(rows), -1)
    s = rows.reshape(len(rows), -1) @ flat.T
    factor = scipy.linalg.cho_factor((s + s.T) / 2 + noise_sd**2 * np.eye(len(rows)), lower=True)
    mean = (scipy.linalg.cho_solve(factor, y.T).T @ flat).reshape(-1, *eigenvalues.shape)
    half = scipy.linalg.solve_triangular(factor[0], flat, lower=True)
    # diag K: every DCT mode's square, weighted
    n = eigenvalues.shape[0]
    squares = scipy.fft.idct(np.eye(n), axis=0, norm="ortho") ** 2
    prior_variance = squares @ eigenvalues @ squares.T
    variance = prior_variance - (half**2).sum(0).reshape(eigenvalues.shape)
    return mean, np.sqrt(np.maximum(variance, 0.0))
