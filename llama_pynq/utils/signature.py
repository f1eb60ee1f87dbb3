"""Methods that pass their arguments on: help and completion show the arguments they take."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")


def delegates_to(
    target: Callable[Concatenate[Any, _P], _R],
) -> Callable[[Callable[..., _R]], Callable[Concatenate[Any, _P], _R]]:
    """Give a method the signature and docstring of the method that it calls.

    Parameters
    ----------
    target : callable
        A method, or a function whose first argument stands where ``self`` does.

    Examples
    --------
    >>> class Overlay:
    ...     @delegates_to(Llama.generate)
    ...     def generate(self, *args, **kwargs):
    ...         return self.model.generate(*args, **kwargs)
    """

    def decorate(method: Callable[..., _R]) -> Callable[Concatenate[Any, _P], _R]:
        signature = inspect.signature(target)
        first, *others = signature.parameters.values()
        method.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[first.replace(name="self", annotation=first.empty), *others]
        )
        method.__doc__ = target.__doc__
        return method

    return decorate
