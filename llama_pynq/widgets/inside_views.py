"""Views of the model's internals: attention, logit lens, quantisation error, KV cache."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import ipywidgets as widgets
import numpy as np

from llama_pynq.errors import RequestError
from llama_pynq.measure.lens import CacheUse, Lens
from llama_pynq.widgets.notice import VIEW_CLASS, Notice, of_model, plain_text
from llama_pynq.widgets.svg import INK, PALE, Drawing, colour, escape, shade, ticks

_THUMB = 56
_FRAME = "<div style='background:#fff;color:#222;padding:6px;max-width:940px;overflow-x:auto'>"


def _picture(values: np.ndarray) -> str:
    """Return values from 0 to 1 as a base64-encoded PNG, white to dark blue."""
    from matplotlib.image import imsave

    data = io.BytesIO()
    imsave(data, values, cmap="Blues", vmin=0, vmax=1, format="png")
    return base64.b64encode(data.getvalue()).decode("ascii")


def _shown(piece: str) -> str:
    return piece.replace(" ", "·").replace("\n", "⏎") or "∅"


class AttentionView(widgets.VBox):
    """Attention weights: a thumbnail of every head, and the selected head enlarged.

    Parameters
    ----------
    weights : (n_layers, n_heads, n, n) float32
        From `lens.attention`.
    pieces : sequence of str
        The n tokens' texts.
    source : str
        Origin of the weights, shown below the picture.
    model : str, optional
        The model, `Inside.model`: the view says so when another one is loaded. Default: the model
        that was loaded last.
    """

    def __init__(
        self, weights: np.ndarray, pieces: Sequence[str], source: str, model: str = ""
    ) -> None:
        if weights.ndim != 4 or weights.shape[2:] != (len(pieces),) * 2:
            raise RequestError(
                f"weights of shape {weights.shape} and {len(pieces)} pieces: give weights of "
                "(n_layers, n_heads, n, n), and one piece for each of the n tokens"
            )
        self._weights, self._pieces = weights, list(pieces)
        self._source = f"<p style='font-size:11px;color:#555'>{escape(source)}</p>{of_model(model)}"
        n_layers, n_heads = weights.shape[:2]
        slider = {"layout": widgets.Layout(width="320px")}
        self.layer = widgets.IntSlider(0, 0, n_layers - 1, description="layer", **slider)
        self.head = widgets.IntSlider(0, 0, n_heads - 1, description="head", **slider)
        self._pictures = [[_picture(head) for head in layer] for layer in weights]
        self._drawn = widgets.HTML()
        for control in (self.layer, self.head):
            control.observe(self._draw, names="value")
        self._notice = Notice("the sliders have", model, self._draw)
        self._draw()
        super().__init__([widgets.HBox([self.layer, self.head]), self._drawn])
        self.add_class(VIEW_CLASS)

    __repr__ = plain_text

    def _draw(self, _: object = None) -> None:
        layer, head = self.layer.value, self.head.value
        self._drawn.value = self._notice.html + (
            f"{_FRAME}{self._thumbnails(layer, head)}{self._large(layer, head)}{self._source}</div>"
        )

    def _thumbnails(self, layer: int, head: int) -> str:
        n_layers, n_heads = self._weights.shape[:2]
        step = _THUMB + 8
        label = f"Attention thumbnails of {n_layers} layers with {n_heads} heads"
        drawing = Drawing(70 + step * n_heads, 24 + step * n_layers, label)
        for h in range(n_heads):
            drawing.text(70 + step * h + _THUMB / 2, 14, f"head {h}", size=10, anchor="middle")
        for i in range(n_layers):
            y = 20 + step * i
            drawing.text(64, y + _THUMB / 2, f"layer {i}", size=10, anchor="end")
            for h in range(n_heads):
                x, here = 70 + step * h, (i, h) == (layer, head)
                drawing.mark(
                    f"<image x='{x}' y='{y}' width='{_THUMB}' height='{_THUMB}' "
                    "style='image-rendering:pixelated' preserveAspectRatio='none' "
                    f"href='data:image/png;base64,{self._pictures[i][h]}'/>"
                )
                drawing.box(x - 1, y - 1, _THUMB + 2, _THUMB + 2, edge=INK if here else "#bbbbbb",
                            title=f"layer {i}, head {h}")  # fmt: skip
                if here:
                    drawing.box(x - 3, y - 3, _THUMB + 6, _THUMB + 6, edge=INK)
        return drawing.render()

    def _large(self, layer: int, head: int) -> str:
        weights, n = self._weights[layer, head], len(self._pieces)
        cell = max(10, min(26, 640 // n))
        left = 110
        label = f"Attention of layer {layer}, head {head}"
        drawing = Drawing(left + cell * n + 20, 130 + cell * n, label)
        drawing.text(4, 16, f"Layer {layer}, head {head}: each row is a query, its cells sum to 1",
                     size=13, bold=True)  # fmt: skip
        for i, piece in enumerate(self._pieces):
            drawing.text(left - 6, 118 + cell * (i + 0.7), _shown(piece)[:14], size=10,
                         anchor="end")  # fmt: skip
            drawing.text(left + cell * (i + 0.7), 112, _shown(piece)[:10], size=10, turn=-60)
            for j in range(i + 1):
                value = float(weights[i, j])
                drawing.box(
                    left + cell * j, 118 + cell * i, cell, cell, fill=shade(value)[0],
                    edge="#dddddd",
                    title=f"{_shown(piece)} ← {_shown(self._pieces[j])}: {value:.1%}",
                )  # fmt: skip
                if cell >= 22 and value >= 0.095:
                    drawing.text(left + cell * (j + 0.5), 118 + cell * (i + 0.68),
                                 f"{value * 100:.0f}", size=9, anchor="middle",
                                 ink=shade(value)[1])  # fmt: skip
        return drawing.render()


def _framed(picture: str, source: str, model: str) -> str:
    """Return a picture with what stands below it, as HTML."""
    return (
        f"{_FRAME}{picture}<p style='font-size:11px;color:#555'>{escape(source)}</p>"
        f"{of_model(model)}</div>"
    )


class LensView(widgets.HTML):
    """Logit lens: the classifier's most probable token after every layer, and its probability.

    Parameters
    ----------
    lens : Lens
    pieces : sequence of str
        Texts of the tokens read, one per column.
    source : str
        Origin of the lens, shown below the table.
    """

    def __init__(self, lens: Lens, pieces: Sequence[str], source: str) -> None:
        if lens.tokens.shape[1] != len(pieces):
            raise RequestError(f"a lens of {lens.tokens.shape[1]} tokens for {len(pieces)} pieces")
        depth = len(lens.pieces)
        names = ["embedding", *(f"after layer {i}" for i in range(depth - 1))]
        head = "".join(f"<th>{escape(_shown(piece))}</th>" for piece in pieces)
        rows = []
        for level in reversed(range(depth)):
            cells = []
            for piece, p in zip(lens.pieces[level], lens.probability[level]):
                paper, ink = shade(float(p))
                cells.append(
                    f"<td title='{escape(_shown(piece))}: {p:.1%}' style='background:{paper};"
                    f"color:{ink};padding:2px 5px;text-align:center'>{escape(_shown(piece))}"
                    f"<br><small>{p:.0%}</small></td>"
                )
            rows.append(
                f"<tr><th style='text-align:right'>{names[level]}</th>{''.join(cells)}</tr>"
            )
        self._picture = _framed(
            f"<p><b>Logit lens</b>: the most probable next token after each token (top "
            "row), if the layer were the last</p><table style='font-size:11px;border-collapse:"
            f"collapse'><tr><th></th>{head}</tr>{''.join(rows)}</table>",
            source,
            lens.model,
        )
        self._notice = Notice("", lens.model, self._draw)
        super().__init__(self._picture)

    def _draw(self) -> None:
        self.value = self._notice.html + self._picture

    __repr__ = plain_text


class ErrorView(widgets.HTML):
    """Chart of the quantisation error after the embedding and after each layer.

    Parameters
    ----------
    error : (n_layers + 1, n) float32
        From `lens.quantization_error`.
    source : str
        Origin of the error, shown below the chart.
    model : str, optional
        As for `AttentionView`.
    """

    def __init__(self, error: np.ndarray, source: str, model: str = "") -> None:
        depth, width, height, left = len(error), 640, 230, 60
        drawing = Drawing(width, height + 20, "Quantisation error by layer")
        drawing.text(4, 16, "Residual stream: relative difference from float32", size=13,
                     bold=True)  # fmt: skip
        top = float(error.max()) * 1.1 or 1.0
        foot, scale = height - 30, (height - 70) / top
        for value in ticks(top, 4):
            y = foot - value * scale
            drawing.line([(left, y), (width - 10, y)], ink="#dddddd")
            drawing.text(left - 6, y + 4, f"{value * 100:g}%", size=10, anchor="end", ink=PALE)
        room = (width - left - 10) / depth
        for level, values in enumerate(error):
            x = left + room * (level + 0.5)
            mean, most = float(values.mean()), float(values.max())
            drawing.box(x - 12, foot - mean * scale, 24, mean * scale, fill=colour(0), edge=INK,
                        title=f"mean {mean:.3%}, largest {most:.3%}")  # fmt: skip
            drawing.line([(x - 12, foot - most * scale), (x + 12, foot - most * scale)], width=2)
            name = "embedding" if level == 0 else f"layer {level - 1}"
            drawing.text(x, foot + 14, name, size=10, anchor="middle")
        drawing.text(left, height + 10, "bar: mean over positions; line: maximum", size=11,
                     ink=PALE)  # fmt: skip
        self._picture = _framed(drawing.render(), source, model)
        self._notice = Notice("", model, self._draw)
        super().__init__(self._picture)

    def _draw(self) -> None:
        self.value = self._notice.html + self._picture

    __repr__ = plain_text


class CacheView(widgets.VBox):
    """KV cache occupancy by slot, with a slider for the tokens in slot 0.

    Parameters
    ----------
    use : CacheUse
        From `lens.cache_use`.
    """

    def __init__(self, use: CacheUse) -> None:
        self._use = use
        first = use.used[0] if use.used else 0
        self.tokens = widgets.IntSlider(
            first, 0, use.seq_len, description="tokens", layout=widgets.Layout(width="480px")
        )
        self._drawn = widgets.HTML()
        self.tokens.observe(self._draw, names="value")
        self._notice = Notice("the slider has", use.model, self._draw)
        self._draw()
        super().__init__([self.tokens, self._drawn])
        self.add_class(VIEW_CLASS)

    __repr__ = plain_text

    def _draw(self, _: object = None) -> None:
        use = self._use
        used = [self.tokens.value, *use.used[1:]] + [0] * (use.slots - max(len(use.used), 1))
        width, left = 640, 60
        drawing = Drawing(width + 80, 52 + 26 * use.slots, "KV cache occupancy by slot")
        n_bytes = sum(used) * use.position_bytes
        drawing.text(
            4, 16, f"KV cache, {use.kv_format}: {n_bytes / 2**20:.2f} of "
            f"{use.total_bytes / 2**20:.2f} MiB in use", size=13, bold=True,
        )  # fmt: skip
        drawing.text(4, 34, f"{use.position_bytes:,} bytes per position over all layers and heads "
                     "(computed from the layout)", ink=PALE)  # fmt: skip
        for slot, n in enumerate(used):
            y = 44 + 26 * slot
            drawing.text(left - 6, y + 14, f"slot {slot}", size=11, anchor="end")
            drawing.box(left, y, width - left, 18, edge=INK)
            drawing.box(left, y, (width - left) * n / use.seq_len, 18, style=0,
                        title=f"slot {slot}: {n} of {use.seq_len} positions")  # fmt: skip
            drawing.text(width + 6, y + 14, f"{n}/{use.seq_len}", size=11)
        frame = f"{_FRAME}{drawing.render()}{of_model(use.model)}</div>"
        self._drawn.value = self._notice.html + frame
