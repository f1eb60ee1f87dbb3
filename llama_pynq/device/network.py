"""What a driver raises if a board on the network does not answer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from llama_pynq.errors import ConnectionLost


class _Networked(Protocol):
    device: Any
    network_errors: tuple[type[Exception], ...]


_D = TypeVar("_D", bound=_Networked)
_P = ParamSpec("_P")
_R = TypeVar("_R")


def over_network(
    method: Callable[Concatenate[_D, _P], _R],
) -> Callable[Concatenate[_D, _P], _R]:
    """Raise ConnectionLost if a board on the network does not answer."""

    @functools.wraps(method)
    def wrapped(self: _D, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return method(self, *args, **kwargs)
        except self.network_errors as error:
            code = getattr(error, "code", str)()
            raise ConnectionLost(
                f"{self.device.name} does not answer ({getattr(code, 'name', code)}). See that the "
                "board is on, that the network reaches it and that PYNQ.remote's server runs "
                "there, and repeat the call. If the board was restarted meanwhile, open the "
                "overlay again: what it held is lost"
            ) from error

    return wrapped
