"""Views that follow the loaded model: they are told of each load, in this process.

A view holds data, not the device, so it cannot ask. Callbacks are held weakly: a view that is gone
hears nothing, and is not kept alive.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_pynq.engine.llama import Llama

_watchers: list[weakref.WeakMethod[Callable[[Llama], None]]] = []
_last = ""


def watch_loads(callback: Callable[[Llama], None]) -> None:
    """Call a bound method with every model that is loaded from now on, in the loading thread.

    Parameters
    ----------
    callback : bound method
        Held weakly. An exception of it becomes a warning.
    """
    _watchers.append(weakref.WeakMethod(callback))


def loaded_last() -> str:
    """Return `Llama.summary` of the model loaded last in this process; empty if none was."""
    return _last


def model_loaded(llama: Llama) -> None:
    """Tell every watcher of a model that was loaded.

    Parameters
    ----------
    llama : Llama
    """
    global _last
    _last = llama.summary
    for watcher in list(_watchers):
        callback = watcher()
        if callback is None:
            _watchers.remove(watcher)
            continue
        try:
            callback(llama)
        except Exception as error:  # of a view: the model is loaded all the same
            warnings.warn(f"a view cannot show the new model: {error}", stacklevel=3)
