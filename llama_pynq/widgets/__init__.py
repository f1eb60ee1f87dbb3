"""Notebook views, one per module.

A view shows the data, recorder or overlay that it is given, and never accesses the device itself.
Views are inline SVG and HTML without external scripts, for ipywidgets 7.7 and 8. This is the only
package of ``llama_pynq`` that imports ipywidgets.
"""

from llama_pynq.widgets.bars import Bars
from llama_pynq.widgets.inside_views import AttentionView, CacheView, ErrorView, LensView
from llama_pynq.widgets.layer_timing import LayerTiming
from llama_pynq.widgets.power_view import PowerView
from llama_pynq.widgets.prompt_panel import PromptPanel

__all__ = [
    "AttentionView",
    "Bars",
    "CacheView",
    "ErrorView",
    "LayerTiming",
    "LensView",
    "PowerView",
    "PromptPanel",
]
