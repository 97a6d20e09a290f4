"""What to cite for a result: the papers behind the method, the solver and the library, as BibTeX."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from sciddiff.errors import InputError

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["citation"]


def citation(draws: xr.Dataset | None = None) -> str:
    """The BibTeX of what a result used: this library, the method, those inside it, and the solver.

    Args:
        draws: what `Posterior.sample` or `Prior.sample` returned, also after `save` and `load`; None for the
            library alone.

    Raises:
        InputError: if the dataset does not say what it was made with.

    Example:
        >>> print(citation())  # doctest: +ELLIPSIS
        @software{sciddiff, title={sciddiff: inverse problems with diffusion priors}, ...}
    """
    ours = (
        "@software{sciddiff, title={sciddiff: inverse problems with diffusion priors}, "
        f"author={{{{sciddiff developers}}}}, version={{{version('sciddiff')}}}}}"
    )
    if draws is None:
        return ours
    references = getattr(draws, "attrs", {}).get("references")
    if not isinstance(references, str):
        raise InputError(
            "draws",
            expected="a result of `sample`, whose attrs hold 'references'",
            got=type(draws).__name__,
            fix="pass the dataset itself; arithmetic on it drops attrs unless xr.set_options(keep_attrs=True)",
        )
    return "\n\n".join([ours, references] if references else [ours])
