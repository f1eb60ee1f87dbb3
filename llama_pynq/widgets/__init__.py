"""Views for notebooks, one in each file. They are given data; none reaches into the device.

Drawn as inline SVG and HTML with no script from anywhere, for ipywidgets 7.7 and 8. Importing
this package loads ipywidgets, and nothing else of ``llama_pynq`` does.
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
