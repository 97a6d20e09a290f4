"""A prior over latents and a decoder: ``x = G(h)``, ``p(h | y) ~ p(h) p(y | A(G(h)))``, and draws of ``x``.

The decoder is a part of the operator, so that every method works on latents as it does on states, and guidance goes
through the decoder. A linear decoder under a linear operator stays linear: with a Gaussian prior of latents that is
probabilistic PCA, whose posterior is exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import torch

from sciddiff.errors import InputError
from sciddiff.operators.base import Operator, compose
from sciddiff.priors.base import Prior
from sciddiff.spaces import Space

if TYPE_CHECKING:
    import xarray as xr

    from sciddiff.methods.base import Method
    from sciddiff.noise import Noise
    from sciddiff.posterior import Posterior
    from sciddiff.solvers.base import Solver

__all__ = ["LatentPosterior", "LatentPrior"]


@final
class LatentPrior:
    """Data ``x = decoder(h)`` of latents ``h`` with a prior.

    Not itself a `Prior`: it has no denoiser of ``x``. Vahdat et al. (2021, arXiv 2106.05931) train such priors; guidance
    through the decoder is that of Rout et al. (2023, arXiv 2307.00619) without their gluing term.

    Args:
        prior: over the latents.
        decoder: an operator from the latents to the data; of a network by `operators.from_torch`.
        encoder: an operator from the data to the latents, for `encode`; None where there is none.

    Raises:
        InputError: if the spaces do not fit.

    Example:
        >>> import sciddiff as sd
        >>> latents, space = sd.Space({"h": 2}), sd.Space({"x": 5})
        >>> prior = sd.GaussianPrior(latents, sd.covariance.white((2,)))
        >>> decoder = sd.operators.Matrix(latents, space, [[1, 0], [1, 1], [0, 1], [0, 2], [1, 2]])
        >>> latent = LatentPrior(prior, decoder)
        >>> seen = sd.operators.Points.at_indices(space, [[0], [4]])
        >>> latent.given([0.5, 1.0], seen, sd.noise.Gaussian(0.1)).sample(3, seed=0)["u"].shape
        (3, 5)
    """

    def __init__(self, prior: Prior, decoder: Operator, encoder: Operator | None = None) -> None:
        _check_operator("decoder", decoder, prior.space, None)
        if encoder is not None:
            _check_operator("encoder", encoder, decoder.codomain, prior.space)
        self.prior, self.decoder, self.encoder = prior, decoder, encoder

    @property
    def space(self) -> Space:
        """The data."""
        return self.decoder.codomain

    def __repr__(self) -> str:
        return f"LatentPrior({self.prior!r} -> {self.space})"

    def given(
        self,
        y: Any,
        operator: Operator,
        noise: Noise,
        *,
        missing: str = "refuse",
        batch_dim: str | None = None,
    ) -> LatentPosterior:
        """Condition on an observation of the data; see `Prior.given` for the arguments and errors."""
        through = self.through(operator)
        return LatentPosterior(
            self, self.prior.given(y, through, noise, missing=missing, batch_dim=batch_dim)
        )

    def through(self, operator: Operator) -> Operator:
        """An operator on the data as one on the latents, linear where it and the decoder are."""
        _check_operator("operator", operator, self.space, None)
        return compose(operator, self.decoder)

    def sample(
        self,
        n: int,
        *,
        seed: int,
        solver: Solver | None = None,
        steps: int | None = None,
        chunk: int | None = None,
    ) -> xr.Dataset:
        """Decoded draws of the prior; see `Prior.sample`."""
        return self.decode(self.prior.sample(n, seed=seed, solver=solver, steps=steps, chunk=chunk))

    def encode(self, x: Any) -> xr.Dataset:
        """The latents of one labelled state, or of many along "sample".

        Raises:
            InputError: without an encoder, or if ``x`` does not fit its domain.
        """
        if self.encoder is None:
            raise InputError("x", expected="a prior with an encoder", got=repr(self), fix="pass encoder=")
        out: xr.Dataset = self.encoder(x)
        return out

    def decode(self, latents: xr.Dataset) -> xr.Dataset:
        """Labelled latents as labelled data: leading dims, their labels and the attrs are kept."""
        own = self.prior.space
        first = latents[next(iter(own.variables))]
        lead = [str(d) for d in first.dims if d not in own.sizes]
        sizes = [first.sizes[d] for d in lead]
        flat = (
            latents.stack({"row": lead}).reset_index("row", drop=True) if lead else latents.expand_dims("row")
        )
        flat = flat.drop_vars([c for c in flat.coords if "row" in flat[c].dims])
        h = own.tensor(flat, batch_dim="row", dtype=self.prior.dtype, device=self.prior.device)
        with torch.inference_mode(False), torch.no_grad():
            parts = h.split(max(1, 2**21 // self.space.size))
            x = torch.cat([self.decoder.apply(part) for part in parts])
        labels = {d: latents[d].values for d in lead if d in latents.coords}
        out = self.space.dataset(x.reshape(*sizes, *self.space.shape), lead, labels)
        out.attrs.update(latents.attrs)
        return out


@final
class LatentPosterior:
    """A `LatentPrior`, conditioned; its draws are decoded.

    Args:
        prior: the prior.
        latent: the posterior over latents, whose own ``sample`` draws latents, and whose ``log_likelihood`` takes them.
    """

    def __init__(self, prior: LatentPrior, latent: Posterior) -> None:
        self.prior, self.latent = prior, latent

    def __repr__(self) -> str:
        return f"LatentPosterior({self.latent!r} -> {self.prior.space})"

    def given(
        self,
        y: Any,
        operator: Operator,
        noise: Noise,
        *,
        missing: str = "refuse",
        batch_dim: str | None = None,
    ) -> LatentPosterior:
        """Condition on one more observation of the data; see `Prior.given`."""
        through = self.prior.through(operator)
        return LatentPosterior(
            self.prior, self.latent.given(y, through, noise, missing=missing, batch_dim=batch_dim)
        )

    def sample(
        self,
        n: int,
        method: Method | None = None,
        *,
        solver: Solver | None = None,
        steps: int | None = None,
        seed: int,
        chunk: int | None = None,
        progress: bool | None = None,
    ) -> xr.Dataset:
        """Draws of the data given the observations; see `Posterior.sample`."""
        latents = self.latent.sample(
            n, method, solver=solver, steps=steps, seed=seed, chunk=chunk, progress=progress
        )
        return self.prior.decode(latents)


def _check_operator(name: str, operator: object, domain: Space, codomain: Space | None) -> None:
    if not isinstance(operator, Operator):
        raise InputError(
            name,
            expected="an Operator",
            got=type(operator).__name__,
            fix="wrap a network with operators.from_torch(net, domain, codomain)",
        )
    for what, want, got in (("on", domain, operator.domain), ("into", codomain, operator.codomain)):
        difference = None if want is None else want.difference(got)
        if difference is not None:
            raise InputError(
                name,
                expected=f"an operator {what} {want}",
                got=difference,
                fix="build it between the space of the latents and that of the data",
            )
