"""Neural priors: a network that corrects a skip path, and networks that were trained elsewhere.

One network serves every noise level. With ``F`` the network, ``log(sigma)/4`` its time,

    D(z, sigma) = skip(z, sigma) + c_out(sigma) F(inputs, log(sigma)/4)

where the skip path is the best linear guess: ``z`` times a number (Karras et al. 2022, arXiv 2206.00364,
table 1), or the exact denoiser ``D_G`` of a Gaussian fitted to the data, so that the network has to
learn only what is not Gaussian. ``c_out`` is the root mean square error of that guess, so ``F`` and its
target are of order one at every sigma, and a network that returns 0 is a sound denoiser.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Self, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from sciddiff.covariance import Covariance, Joint, joint, white
from sciddiff.errors import InputError
from sciddiff.networks import Backbone
from sciddiff.priors.base import Normalisation, Prior, level, sigma_range
from sciddiff.priors.covariates import Covariates, Told, tell
from sciddiff.priors.gaussian import GaussianPrior
from sciddiff.priors.paths import Path, coefficients, path
from sciddiff.random import Streams
from sciddiff.spaces import Space

__all__ = ["NetworkPrior", "NeuralPrior", "OnGaussian", "Plain", "Preconditioning", "largest_eigenvalue"]

Network = Callable[[Tensor, Tensor], Tensor]


class Preconditioning(ABC):
    """How a network becomes a denoiser: the skip path, the scales and the channels that the network sees.

    Attributes:
        space: the states.
        reference: covariance ``C`` of the noise.
        inputs: number of channels that the network sees; it returns as many, or only the state's.
    """

    inputs: int

    def __init__(self, space: Space, reference: Covariance) -> None:
        self.space, self.reference = space, reference
        self.channels = len(space.components) if space.homogeneous else 1
        self.noise = float(reference.variance().mean())

    @abstractmethod
    def c_out(self, sigma: Tensor) -> Tensor:
        """Root mean square error of the skip path, per value of a state; float64, of sigma's shape."""

    @abstractmethod
    def split(self, z: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The skip path and what the network sees, ``(batch, inputs, *grid)``."""

    def denoise(self, network: Network, z: Tensor, sigma: Tensor) -> Tensor:
        """``D(z, sigma)``; sigma is a float64 number or ``(batch,)``, positive."""
        skip, inputs = self.split(z, sigma)
        time = (sigma.log() / 4).to(z).expand(len(z))
        out = network(inputs, time)
        if out.shape not in (inputs.shape, inputs[:, : self.channels].shape):
            raise _wrong_output(tuple(inputs.shape), tuple(out.shape))
        correction = self.inside(out[:, : self.channels].reshape(z.shape))
        return skip + _column(self.c_out(sigma), z) * correction

    def inside(self, x: Tensor) -> Tensor:
        """``x`` projected onto the range of ``C``, where the states are."""
        return x if self.reference.rank == self.space.size else self.reference.apply(self.reference.solve(x))

    def view(self, z: Tensor) -> Tensor:
        """States with a channel axis, ``(batch, channels, *grid)``."""
        return z if self.channels > 1 else z.unsqueeze(1)


@final
class Plain(Preconditioning):
    """EDM's preconditioning for data of variance one: with ``s^2 = sigma^2 tr(C)/size``, table 1 of Karras et al.

    ``c_skip = 1/(1 + s^2)``, ``c_out = s/sqrt(1 + s^2)``, ``c_in = 1/sqrt(1 + s^2)``.
    """

    def __init__(self, space: Space, reference: Covariance) -> None:
        super().__init__(space, reference)
        self.inputs = self.channels

    def c_out(self, sigma: Tensor) -> Tensor:
        """``s/sqrt(1 + s^2)``."""
        square = sigma**2 * self.noise
        return (square / (1 + square)).sqrt()

    def split(self, z: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """``c_skip z`` and ``c_in z``."""
        total = 1 + sigma**2 * self.noise
        return _column(1 / total, z) * z, self.view(_column(total.rsqrt(), z) * z)


@final
class OnGaussian(Preconditioning):
    """The skip path is ``D_G``, the denoiser of a Gaussian; the network sees ``z`` and ``D_G`` at unit variance.

    With ``C = T T^T``, ``Sigma = T diag(lambda) T^T`` and ``a_k`` the mean square of column k of ``T``,
    ``c_out^2 = sum_k a_k sigma^2 lambda_k/(lambda_k + sigma^2)``, the mean variance of ``Cov_G``.
    """

    def __init__(self, space: Space, gaussian: GaussianPrior) -> None:
        super().__init__(space, gaussian.reference)
        self.inputs = 2 * self.channels
        self.gaussian = gaussian
        spectrum: Any = gaussian.joint
        if not hasattr(spectrum, "eigenvalues"):
            raise InputError(
                "gaussian",
                expected="a Gaussian whose denoiser costs the same at every noise level",
                got="one with a sparse precision, which is solved anew at each",
                fix="use covariance.spectral, graph, dense or diagonal",
            )
        # T is the frame times an orthonormal basis, or its own columns
        square = spectrum.basis.columns**2 if spectrum.frame is None else (spectrum.frame**2)[None]
        weights = square.sum(0).reshape(-1) / space.size
        kept = weights * spectrum.eigenvalues.reshape(-1) > 0
        self.weights = weights[kept].double().cpu()
        self.eigenvalues = spectrum.eigenvalues.reshape(-1)[kept].double().cpu()
        self.data = float(self.weights @ self.eigenvalues)

    def c_out(self, sigma: Tensor) -> Tensor:
        """``sqrt(tr Cov_G(sigma) / size)``."""
        return self.moments(sigma)[0].sqrt()

    def split(self, z: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """``D_G`` and the pair of ``z`` and ``D_G``, each divided by its standard deviation."""
        skip = self.gaussian.denoise(z, sigma)
        total, explained = self.data + sigma**2 * self.noise, self.moments(sigma)[1]
        seen = _column(total.rsqrt(), z) * z, _column(explained.rsqrt(), z) * skip
        return skip, torch.cat([self.view(part) for part in seen], 1)

    def moments(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Mean variances of ``x0`` given ``z`` and of ``D_G``, which add up to that of ``x0``."""
        lam, weights = self.eigenvalues.to(sigma.device), self.weights.to(sigma.device)
        square = sigma[..., None] ** 2
        share = lam / (lam + square)
        return (square * share) @ weights, (lam * share) @ weights


@final
class NeuralPrior(Prior):
    """A prior whose denoiser is a network on top of a linear skip path; made by `train`.

    Args:
        network: ``F(x, time)`` on ``x (batch, channels, *grid)`` and ``time (batch,)``, of x's shape. With a Gaussian
            it sees twice the channels of a state, and the first half of what it returns is used.
        space: the states; variables on different dims come to the network as ``(batch, 1, size)``.
        normalisation: of the states; None with a Gaussian, which brings its own.
        gaussian: the Gaussian of the skip path, on the same space.
        reference: covariance ``C`` of the noise in normalised units; default white, or the Gaussian's.
        largest: largest eigenvalue of ``C^+ Sigma`` of the data, see `largest_eigenvalue`; the Gaussian's
            where that is larger.
        sigma_min: lowest noise level of samplers.
        sigma_max: highest noise level; default ``20 sqrt(largest)``.
        law: covariance in normalised units of a Gaussian that was fitted beside the skip path of EDM, for methods that ask
            for `gaussian_covariance`; not with ``gaussian``.
        season: mean of each calendar month, for priors over anomalies; see `Prior.season`.
        covariates: the drivers whose channels the network sees behind the others. Such a prior has no denoiser before
            it is told what they are, see `driven`.
        history: what the trainer recorded, columns by name; `plot.loss` draws it.

    Raises:
        InputError: if the network does not take or return such shapes, spaces differ, or sigma_max
            is below ``5 sqrt(largest)``.

    Example:
        >>> from sciddiff.networks import MLP
        >>> gaussian = GaussianPrior(Space({"i": 3}), white((3,)), dtype=torch.float32)
        >>> prior = NeuralPrior(MLP(features=6, width=8, depth=1), gaussian.space, gaussian=gaussian)
        >>> z = torch.ones(2, 3)
        >>> bool((prior.denoise(z, 2.0) == gaussian.denoise(z, 2.0)).all())
        True
    """

    def __init__(
        self,
        network: nn.Module,
        space: Space,
        normalisation: Normalisation | None = None,
        *,
        gaussian: GaussianPrior | None = None,
        reference: Covariance | None = None,
        largest: float | None = None,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        law: Covariance | None = None,
        season: Tensor | None = None,
        covariates: Covariates | None = None,
        history: Mapping[str, Sequence[Any]] | None = None,
    ) -> None:
        if not isinstance(network, nn.Module):
            raise InputError(
                "network",
                expected="a torch.nn.Module",
                got=type(network).__name__,
                fix="use Prior.from_network for a plain function",
            )
        self.network, self.space, self.gaussian = network, space, gaussian
        self.dtype, self.device = _placed(network, None, None)
        units, self.reference = _units(space, normalisation, gaussian, reference)
        self.normalisation = Normalisation(units.mean.to(self.device), units.scale.to(self.device))
        self.preconditioning: Preconditioning = (
            Plain(space, self.reference) if gaussian is None else OnGaussian(space, gaussian)
        )
        if law is not None and gaussian is not None:
            raise InputError(
                "law", expected="none beside a Gaussian, which is the law", got="one", fix="leave it out"
            )
        self.fitted: Joint | None = None if law is None else joint(law, self.reference)
        if gaussian is not None:
            self.fitted = gaussian.joint
        candidates = [] if largest is None else [largest]
        candidates += [] if self.fitted is None else [self.fitted.largest]
        if not candidates or not all(v > 0 and math.isfinite(v) for v in candidates):
            raise InputError(
                "largest",
                expected="the largest eigenvalue of the data's covariance, a positive number",
                got=largest,
                fix="measure it with largest_eigenvalue(z, reference), or give a fitted Gaussian",
            )
        self.largest = float(max(candidates))
        spread = math.sqrt(space.size / max(self.reference.rank, 1))
        self.sigma_min, self.sigma_max = sigma_range(self.largest, spread, sigma_min, sigma_max)
        self.season = season
        self.history = {name: list(values) for name, values in (history or {}).items()}
        self.covariates = covariates
        _try(self)

    def denoise(self, z: Tensor, sigma: float | Tensor) -> Tensor:
        """``skip + c_out F`` for ``(batch, *shape)``; sigma is positive, a number or ``(batch,)``.

        Raises:
            InputError: on another dtype than the network's, a wrong shape, a sigma that is not positive, or a prior
                whose drivers are not known yet.
        """
        value = _levels(sigma, _checked(z, self))
        if self.covariates is not None:
            names = list(self.covariates.units)
            raise InputError(
                "prior",
                expected=f"a prior that knows its drivers {names}",
                got="one that does not",
                fix="use prior.driven(covariates), with their values on the dates of the prior",
            )
        with evaluating(self.network):
            return self.preconditioning.denoise(self.network, z, value)

    def driven(self, covariates: Any) -> NeuralPrior:
        """The prior of states under these drivers, an ordinary prior; made by `train` with ``covariates``.

        Args:
            covariates: all drivers on the labels of the prior's space: xarray, pandas with the drivers as columns,
                or an array ``(k, *grid)``.

        Raises:
            InputError: if the prior has no drivers, on other names, units or dates than its own, and on a hole.
        """
        if self.covariates is None:
            raise InputError(
                "prior", expected="a prior with drivers", got="one without", fix="train it with covariates="
            )
        u = self.covariates.read(covariates, self.space)
        shift, mean = self.covariates.shift(u), self.normalisation.mean
        moved = None if shift is None else mean + shift.reshape(self.space.shape).to(mean)
        other = self.relabel(self.space, moved)
        other.network = Told(self.network, u.to(self.device, self.dtype)).eval()
        other.covariates = None
        return other

    def gaussian_covariance(self, sigma: float) -> Covariance | None:
        """``Cov[z0 | z]`` under the fitted Gaussian; None without one."""
        return None if self.fitted is None else self.fitted.covariance(sigma)

    def relabel(self, space: Space, mean: Tensor | None = None) -> Self:
        """See `Prior.relabel`."""
        other = super().relabel(space, mean)
        other.gaussian = None if self.gaussian is None else self.gaussian.relabel(space, mean)
        return other

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """See `Prior.to`; the network is copied unless it stays as it is."""
        other = super().to(device, dtype)
        if (other.device, other.dtype) != (self.device, self.dtype):
            other.network = copy.deepcopy(self.network).to(other.device, other.dtype)
        return other


@final
class NetworkPrior(Prior):
    """A network that was trained elsewhere, on any Gaussian path, as a prior in sigma.

    At noise level ``s``, the network is called on ``x_t = alpha(t) z`` at the time ``t`` whose
    noise-to-signal ratio is ``s``, and what it returns becomes ``D``; see `sciddiff.priors.paths`.

    Args:
        net: ``net(x, time)``, of x's shape.
        space: the states.
        predicts: what it returns: "noise", "x0", "velocity" (``d x_t/dt``; for "flow", ``n - x0``),
            "score" (of ``x_t``) or "v" (``alpha n - sigma x0``).
        path: "vp", "subvp", "ve", "cosine", "flow", or a `Path` with the constants of its training.
        sigma_max: highest noise level; at least 5 times the largest standard deviation of the data in
            normalised units (see `largest_eigenvalue`). A little less gives samples that are too wide, far less
            ones that are too narrow. It is checked on the denoiser's slope about 0: at ``sigma_max``, ``J`` has the
            eigenvalues ``lambda / (lambda + sigma_max^2)`` of a prior with covariance ``lambda C``, the largest of which is
            found by six power iterations on differences, and refused above 1/20 (1/26 is 5 standard deviations;
            the rest is room for the network's own error).
        sigma_min: lowest noise level; default 0.01, the first of DDPM's thousand levels, or the path's own.
        normalisation: ``x = mean + scale z`` for the ``z`` that the network was trained on; default: none.
        reference: covariance ``C`` of the noise that it was trained with; default white.
        time: from ``t`` in [0, 1], float64 ``(batch,)``, to what the net expects; e.g.
            ``lambda t: (999 * t).round().long()`` for one that counts steps.
        channel_axis: whether the net takes ``(batch, channels, *grid)`` also where a state has one channel;
            False passes states as they are, ``(batch, *space.shape)``.
        dtype: of the states; only for a net without parameters, default float64.
        device: of the states; only for a net without parameters, default the CPU.

    Raises:
        InputError: on an unknown path or prediction, levels that the path does not reach, a net
            that does not return x's shape, or a sigma_max that is too small for what the net has learnt.

    Example:
        >>> net = lambda x, t: torch.zeros_like(x)
        >>> prior = Prior.from_network(net, Space({"i": 4}), predicts="x0", path="vp", sigma_max=80.0)
        >>> prior.denoise(torch.ones(2, 4, dtype=torch.float64), 1.0).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        net: Network,
        space: Space,
        *,
        predicts: str,
        path: str | Path,
        sigma_max: float,
        sigma_min: float | None = None,
        normalisation: Normalisation | None = None,
        reference: Covariance | None = None,
        time: Callable[[Tensor], Tensor] | None = None,
        channel_axis: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if not callable(net):
            raise InputError(
                "net", expected="a function of (x, time)", got=type(net).__name__, fix="pass the network"
            )
        self.network, self.space, self.predicts, self.path = net, space, predicts, _path(path)
        self.dtype, self.device = _placed(net, dtype, device)
        self.time, self.channel_axis = time, channel_axis
        one = torch.ones((), dtype=torch.float64)
        self.normalised = normalisation is not None
        units = Normalisation(0 * one, one) if normalisation is None else normalisation
        self.normalisation = Normalisation(units.mean.to(self.device), units.scale.to(self.device))
        self.reference = white(space.shape) if reference is None else reference
        _same_shape(self.reference, space)
        low = max(0.01, self.path.levels[0]) if sigma_min is None else sigma_min
        self.sigma_min, self.sigma_max = sigma_range(0.0, 1.0, low, sigma_max)
        coefficients(self.path, predicts, self.path.time(torch.tensor([self.sigma_min, self.sigma_max])))
        _try(self)
        _check_top(self)

    def denoise(self, z: Tensor, sigma: float | Tensor) -> Tensor:
        """``a z + b F(alpha z, t)`` for ``(batch, *shape)``; sigma is a number or ``(batch,)``.

        Raises:
            InputError: on another dtype than the network's, a wrong shape, or a level outside the path.
        """
        t = self.path.time(_levels(sigma, _checked(z, self)))
        a, b = coefficients(self.path, self.predicts, t)
        x = _column(self.path.alpha(t), z) * z
        axis = self.channel_axis and not (self.space.homogeneous and len(self.space.components) > 1)
        when = t.expand(len(z)) if self.time is None else self.time(t.expand(len(z)))
        when = when.to(z) if when.is_floating_point() else when.to(z.device)
        with evaluating(self.network):
            out = self.network(x.unsqueeze(1) if axis else x, when)
        if out.shape != (x.unsqueeze(1) if axis else x).shape:
            raise _wrong_output(tuple((x.unsqueeze(1) if axis else x).shape), tuple(out.shape))
        out = out.reshape(z.shape)
        if self.predicts == "score":
            out = self.reference.apply(out)
        return _column(a, z) * z + _column(b, z) * out

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """See `Prior.to`; a module is copied unless it stays as it is."""
        other = super().to(device, dtype)
        if isinstance(self.network, nn.Module) and (other.device, other.dtype) != (self.device, self.dtype):
            other.network = copy.deepcopy(self.network).to(other.device, other.dtype)
        return other


def largest_eigenvalue(z: Tensor, reference: Covariance, *, iterations: int = 200) -> float:
    """Largest eigenvalue of ``C^+ Sigma`` of normalised states ``(n, *shape)``, from below, to about 1 %.

    Power iteration on the n-by-n matrix ``Z C^+ Z^T / (n - 1)`` of the centred states, which is never formed.

    Raises:
        InputError: on fewer than two states, or states outside the range of ``C``.

    Example:
        >>> z = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> round(largest_eigenvalue(z, white((2,))), 6)    # 18/3
        6.0
    """
    if len(z) < 2:
        raise InputError("data", expected="at least 2 states", got=len(z), fix="pass more data")
    z = z.double() - z.double().mean(0)
    if reference.rank < math.prod(reference.shape):
        outside = (z - reference.apply(reference.solve(z))).abs().max()
        if float(outside) > 1e-6 * float(z.abs().max()):
            raise InputError(
                "reference",
                expected="a reference noise whose range holds the data",
                got="data outside it",
                fix="choose a reference noise that is positive wherever the data vary",
            )
    u = torch.from_numpy(np.random.Generator(np.random.Philox(0)).standard_normal(len(z))).to(z)
    value = 0.0
    for _ in range(iterations):
        u = u / u.norm()
        step = reference.solve((u @ z.flatten(1)).reshape(1, *z.shape[1:]))
        u = z.flatten(1) @ step.flatten() / (len(z) - 1)
        previous, value = value, float(u.norm())
        if value <= previous * (1 + 1e-5):
            break
    return value


def _units(
    space: Space,
    normalisation: Normalisation | None,
    gaussian: GaussianPrior | None,
    reference: Covariance | None,
) -> tuple[Normalisation, Covariance]:
    """The normalisation and reference noise of a prior, from its Gaussian where it has one."""
    if gaussian is None:
        if normalisation is None:
            raise InputError(
                "normalisation",
                expected="a Normalisation, or a fitted Gaussian",
                got="neither",
                fix="pass Normalisation.fit(data, space)",
            )
        reference = white(space.shape) if reference is None else reference
        _same_shape(reference, space)
        return normalisation, reference
    if normalisation is not None or reference is not None:
        raise InputError(
            "normalisation" if normalisation is not None else "reference",
            expected="nothing beside a Gaussian, which brings its own",
            got="one",
            fix="leave it out",
        )
    difference = gaussian.space.difference(space)
    if difference is not None:
        raise InputError(
            "gaussian", expected=f"a Gaussian on {space}", got=difference, fix="fit it on the same space"
        )
    return gaussian.normalisation, gaussian.reference


def _same_shape(reference: Covariance, space: Space) -> None:
    if tuple(reference.shape) != space.shape:
        raise InputError(
            "reference",
            expected=f"a covariance on shape {space.shape}",
            got=reference.shape,
            fix="build it with the shape of the space",
        )


def _path(name: str | Path) -> Path:
    return path(name)


def _placed(
    network: Network, dtype: torch.dtype | None, device: torch.device | str | None
) -> tuple[torch.dtype, torch.device]:
    """Dtype and device of a network's real parameters, or those given for one without."""
    if isinstance(network, nn.Module):
        for parameter in network.parameters():
            if parameter.is_floating_point():
                if dtype not in (None, parameter.dtype):
                    raise InputError(
                        "dtype",
                        expected=f"{parameter.dtype}, as the network's parameters are",
                        got=dtype,
                        fix="leave it out, or convert the network first",
                    )
                return parameter.dtype, parameter.device
    return dtype or torch.float64, torch.device(device or "cpu")


def _levels(sigma: float | Tensor, z: Tensor) -> Tensor:
    """Noise levels in float64, 0-d or ``(batch,)``, positive."""
    value = torch.as_tensor(sigma, dtype=torch.float64)
    level(value, z)
    if not bool((value > 0).all()) or not bool(torch.isfinite(value).all()):
        raise InputError(
            "sigma",
            expected="positive noise levels",
            got=sigma,
            fix="a network has no value at sigma = 0, where D(z) = z",
        )
    return value.to(z.device) if value.ndim else value


def _column(c: Tensor, z: Tensor) -> Tensor:
    """A coefficient in the states' dtype, broadcast on them."""
    return c.to(z) if c.ndim == 0 else c.to(z).reshape(-1, *(1,) * (z.ndim - 1))


def _checked(z: Tensor, prior: NeuralPrior | NetworkPrior) -> Tensor:
    """``z``, or `InputError` if it is not a batch of states in the prior's dtype."""
    if z.dtype != prior.dtype or tuple(z.shape[1:]) != prior.space.shape or z.ndim == 0:
        raise InputError(
            "z",
            expected=f"{prior.dtype} states of shape (batch, {', '.join(map(str, prior.space.shape))})",
            got=f"{z.dtype} of shape {tuple(z.shape)}",
            fix="convert the prior with prior.to(dtype=...), or the states",
        )
    return z


def _try(prior: NeuralPrior | NetworkPrior) -> None:
    """Call the denoiser once on two states, so that a network that does not fit is refused at once.

    Built-in networks are called without memory or compute, on the meta device.
    """
    z = torch.zeros((2, *prior.space.shape), dtype=prior.dtype, device=prior.device)
    sigma = torch.tensor([prior.sigma_min, prior.sigma_max], dtype=torch.float64)
    try:
        with torch.no_grad():
            if isinstance(prior, NeuralPrior) and isinstance(prior.network, Backbone):
                net = partial(functional_call, prior.network, _on_meta(prior.network))
                seen = _blank(prior, lambda *a: net(a))
                out = prior.preconditioning.denoise(seen, z.to("meta"), sigma.to("meta"))
            elif isinstance(prior, NeuralPrior):
                with evaluating(prior.network):
                    out = prior.preconditioning.denoise(_blank(prior, prior.network), z, sigma)
            else:
                out = prior.denoise(z, sigma)
    except (InputError, RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(
            "network",
            expected=f"a network for states of {prior.space} in {prior.dtype}",
            got=f"{type(error).__name__}: {error}",
            fix="see the docstring for the shapes that it is called with",
        ) from error
    if out.dtype != prior.dtype:
        raise InputError(
            "network", expected=f"{prior.dtype} out of {prior.dtype}", got=out.dtype, fix="keep the dtype"
        )


def _blank(prior: NeuralPrior, network: Network) -> Network:
    """The network, told drivers of zero where it has any."""
    if prior.covariates is None:
        return network
    return tell(network, torch.zeros(1, len(prior.covariates.units), *prior.space.grid))


def _check_top(prior: NetworkPrior) -> None:
    """Refuse a sigma_max at which the denoiser still follows its input: ``|J|`` over 1/20.

    Steps are as long as the noise, for which a network of any precision was trained.
    """
    top, streams = prior.sigma_max, Streams(0, [0], purpose="largest slope")
    step, slope = prior.noise(streams), 0.0
    with torch.no_grad():
        for _ in range(6):
            length = step.norm()
            if not float(length) > 0:
                return
            step = step * (top * math.sqrt(prior.space.size) / length)
            ahead, behind = prior.denoise(torch.cat([step, -step]), top).split(1)
            out = (ahead - behind) / 2
            # along the direction itself: errors that are not the prior's covariance do not add up
            slope = float((step * out).sum() / (step * step).sum())
            step = out
    if slope > 1 / 20:
        raise InputError(
            "sigma_max",
            expected="at least 5 times the largest standard deviation of what the network has learnt",
            got=f"{top:g}, about {math.sqrt(1 / slope - 1) if slope < 1 else 0:.2g} times it",
            fix="raise it, or pass the normalisation and the units that the network was trained in",
        )


def _on_meta(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.to("meta") for name, tensor in network.state_dict().items()}


def _wrong_output(given: tuple[int, ...], returned: tuple[int, ...]) -> InputError:
    return InputError(
        "network",
        expected=f"an output of shape {given}, that of its input",
        got=returned,
        fix="return one value for each value of x",
    )


@contextmanager
def evaluating(network: Network) -> Iterator[None]:
    """Evaluation mode for as long as it takes; every module gets its own mode back."""
    modules: list[nn.Module] = []
    if isinstance(network, nn.Module) and network.training:
        modules = [module for module in network.modules() if module.training]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module in modules:
            module.training = True
