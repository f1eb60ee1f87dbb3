"""Prompt panel: stream the tokens of a prompt and show the probability of each."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ipywidgets as widgets

from llama_pynq.energy import Energy, EnergyMeter
from llama_pynq.engine.llama import Llama
from llama_pynq.engine.results import Generation, StreamToken
from llama_pynq.engine.sampling import SamplingParams
from llama_pynq.engine.watchers import watch_loads
from llama_pynq.errors import RequestError
from llama_pynq.widgets.notice import STATUS_CLASS, VIEW_CLASS, Notice, plain_text
from llama_pynq.widgets.svg import escape, shade
from llama_pynq.widgets.worker import Pacer, Worker

ALTERNATIVES = 5
MAX_SEED = 2**53 - 1
"""Largest integer that JavaScript represents exactly; random seeds are smaller."""
_CHUNK = 128
"""Tokens per piece of text: full pieces stay as sent, only the last piece is sent again."""

_CALL_SECONDS = 0.1
"""Seconds per kernel call: text is not shown more often, and shorter calls cost throughput."""

_AT_ONCE = 0.1
"""Seconds: a text expected to be faster shows no start state (empty text, other buttons)."""

_SHADES = 10  # CSS classes: an inline style would double the bytes sent per token
_STYLE = """<style>
.llama-text { display: block !important; position: relative; background: #fff; color: #222;
  white-space: pre-wrap; overflow: visible !important; padding: 8px 8px 52px 8px; line-height: 1.9;
  min-height: 90px; border: 1px solid #bbb; }
.llama-text .widget-html, .llama-text .widget-html-content { display: inline !important;
  position: static !important; overflow: visible !important; height: auto !important;
  line-height: inherit !important; margin: 0 !important; white-space: pre-wrap; }
.llama-text .widget-html > .widget-label { display: none !important; }
.llama-token { padding: 1px 0; }
.llama-token:hover, .llama-token:focus { outline: 2px solid #222; }
.llama-token > .llama-tip { display: none; }
.llama-token:hover > .llama-tip, .llama-token:focus > .llama-tip { display: block;
  position: absolute; left: 0; right: 0; bottom: 0; background: #222; color: #fff;
  padding: 4px 8px; font-size: 12px; line-height: 1.5; white-space: normal; z-index: 2; }
.llama-unsure { text-decoration: underline dotted; }
.llama-unlikely { text-decoration: underline solid; }
.llama-prompt { color: #555; font-weight: bold; }
""" + "\n".join(
    f".llama-shade{i} {{ background: {paper}; color: {ink}; }}"
    for i in range(_SHADES + 1)
    for paper, ink in [shade(0.6 * i / _SHADES)]
) + "</style>"  # fmt: skip

_COPY = (
    "var t=this.parentNode.querySelector('textarea');t.hidden=false;t.select();"
    "document.execCommand('copy');t.hidden=true;this.textContent='Copied'"
)

_PACES = [("as fast as it comes", 0.0), ("20 tokens a second", 20.0), ("5 tokens a second", 5.0)]


def _open_token(p: float) -> str:
    """Return the opening tag: a shade, and an underline that needs no colour.

    The underline is solid if the token was unlikely, dotted if the model was unsure.
    """
    underline = " llama-unlikely" if p < 0.1 else " llama-unsure" if p < 0.5 else ""
    classes = f"llama-token llama-shade{round((1 - p) * _SHADES)}{underline}"
    return f"<span class='{classes}' tabindex='0'>"


# Precomputed by thousandths: a token shows six probabilities, and formatting delays the device.
_PERCENT = [f"{i / 1000:.1%}" for i in range(1001)]
_OPEN_TOKEN = [_open_token(i / 1000) for i in range(1001)]


def token_html(token: StreamToken, name: Callable[[int], str]) -> str:
    """Return a token as HTML: text shaded by its probability, alternatives in a tooltip.

    Parameters
    ----------
    token : StreamToken
    name : callable
        Returns the text of a token id, as HTML with visible spaces.
    """
    text = escape(token.text)
    if token.logprob is None or token.logprob.logprob is None:
        return text
    exp, own = math.exp, token.logprob.token
    thousandths = round(1000 * min(exp(token.logprob.logprob), 1.0))
    others = "\u2002·\u2002".join([
        f"{name(i)} {_PERCENT[round(1000 * min(exp(value), 1.0))]}"
        for i, value in token.logprob.top.items()
    ])  # fmt: skip
    return (
        f"{_OPEN_TOKEN[thousandths]}{text}<span class='llama-tip' role='tooltip'>{name(own)} had "
        f"{_PERCENT[thousandths]}\u2002|\u2002most probable: {others}</span></span>"
    )


def visible(text: str) -> str:
    """Return a token's text as HTML, with visible spaces and line ends."""
    return escape(text.replace("\n", "⏎").replace(" ", "␣") or "∅")


@dataclass
class Run:
    """One generated text in the panel's history.

    Attributes
    ----------
    prompt, text : str
    settings : SamplingParams
        The arguments of `generate`, with the seed that was used.
    result : Generation
    model : str
        `Llama.summary` of the model that generated it.
    """

    prompt: str
    text: str
    settings: SamplingParams
    result: Generation
    model: str = ""

    @property
    def label(self) -> str:
        """Line of this run in the list."""
        n, rate = len(self.result.tokens), self.result.tokens_per_second
        begin = " ".join((self.prompt + self.text).split())[:26]
        speed = "" if rate is None else f", {rate:,.0f} tokens/s"
        return f"seed {self.settings.seed}, {n} tokens{speed}: {begin}…"


class PromptPanel(widgets.VBox):
    """Panel with a prompt, sampling controls, the streamed text, and the runs so far.

    The panel follows the overlay's model: once another one is loaded, limits and token names are
    the new model's, and the texts so far are marked as the earlier one's.

    Parameters
    ----------
    overlay : LlamaOverlay
        Must have a model loaded. The panel uses `stream_tokens`, `describe`, `closed` and the
        model's configuration, notes and tokenizer.
    power : PowerRecorder, optional
        A running recorder; the panel then shows the energy.
    prompt : str

    Attributes
    ----------
    runs : list of Run
        Newest last.
    """

    def __init__(
        self, overlay: Any, power: EnergyMeter | None = None, prompt: str = "Once upon a time"
    ) -> None:
        self._worker = Worker()  # first: ipywidgets calls close() even if __init__ fails
        if not hasattr(overlay, "stream_tokens") or not hasattr(overlay, "describe"):
            raise RequestError(f"{type(overlay).__name__} given: give the overlay, not its model")
        if power is not None and not hasattr(power, "sample"):
            raise RequestError(
                f"power is {type(power).__name__}: give a PowerRecorder that records"
            )
        self._overlay, self._power = overlay, power
        self._chunks = [widgets.HTML()]  # reused: creating a widget takes longer than a token
        self.runs: list[Run] = []
        self._llama: Llama = overlay.llama.model
        self._model = self._llama.summary
        self._names = _Names(self._llama)
        self._text_of = ""  # the model that the text is of; empty: there is no text
        c = self._llama.config
        wide = {"style": {"description_width": "110px"}, "layout": widgets.Layout(width="330px")}
        self.prompt = widgets.Textarea(
            prompt, placeholder="Type how the text begins", rows=2, description="prompt",
            style=wide["style"], layout=widgets.Layout(width="670px"),
        )  # fmt: skip
        most = max(1, c.seq_len)
        self.max_new_tokens = widgets.IntSlider(min(256, most), 1, most, description="max tokens",
                                                **wide)  # fmt: skip
        self.temperature = widgets.FloatSlider(0.8, min=0, max=2, step=0.05,
                                               description="temperature", **wide)  # fmt: skip
        self.top_k = widgets.IntSlider(0, 0, min(100, c.vocab_size), description="top-k (0: off)",
                                       **wide)  # fmt: skip
        self.top_p = widgets.FloatSlider(0.9, min=0.05, max=1, step=0.05,
                                         description="top-p (1: off)", **wide)  # fmt: skip
        self.seed = widgets.BoundedIntText(1, min=0, max=MAX_SEED, description="seed", **wide)
        self.new_seed = widgets.Checkbox(True, description="another seed each time", indent=False,
                                         layout=widgets.Layout(width="200px"))  # fmt: skip
        self.pace = widgets.Dropdown(options=_PACES, value=0.0, description="pace", **wide)
        self.generate = widgets.Button(description="Generate", button_style="primary", icon="play")
        self.stop = widgets.Button(description="Stop", disabled=True, icon="stop")
        self.status = widgets.HTML("Ready.")
        self.text = widgets.Box(self._chunks)
        self.text.add_class("llama-text")
        self.status.add_class(STATUS_CLASS)
        self._about = widgets.HTML(_STYLE + self._facts())
        self._earlier = widgets.HTML()
        self.history = widgets.Select(options=[], rows=3, description="runs",
                                      style=wide["style"],
                                      layout=widgets.Layout(width="670px"))  # fmt: skip
        self.again = widgets.Button(description="Run again", disabled=True, icon="repeat")
        self.copy = widgets.HTML()
        self.generate.on_click(lambda _: self.start())
        self.stop.on_click(lambda _: self._worker.stop.set())
        self.again.on_click(lambda _: self._repeat())
        self.history.observe(self._choose, names="index")
        super().__init__([
            self._about,
            self.prompt,
            widgets.HBox([self.max_new_tokens, self.temperature]),
            widgets.HBox([self.top_k, self.top_p]),
            widgets.HBox([self.seed, self.new_seed]),
            widgets.HBox([self.pace, self.generate, self.stop]),
            self.status,
            widgets.HTML(Notice("the buttons have").html),
            self.history,
            widgets.HBox([self.again, self.copy]),
            widgets.HTML(_LEGEND),
            self._earlier,
            self.text,
        ])  # fmt: skip
        self.add_class(VIEW_CLASS)
        watch_loads(self._loaded)

    __repr__ = plain_text

    # ---- the model -------------------------------------------------------------------

    def _facts(self) -> str:
        """Return device and model as HTML."""
        return (
            "<div style='color:var(--jp-ui-font-color1,#222)'>"
            f"<b>{escape(self._overlay.describe())}</b><br>model: {escape(self._model)}</div>"
        )

    def _loaded(self, llama: Llama) -> None:
        self.follow()

    def follow(self) -> None:
        """Show the model that is loaded on the overlay now; do nothing if there is none.

        Loading a model calls it, and so does each text that is begun.
        """
        llama = None if self._overlay.closed else self._overlay.llama.loaded_model
        if llama is None or llama is self._llama:
            return
        self._llama, self._names = llama, _Names(llama)
        if llama.summary == self._model:
            return  # loaded again
        self._model = llama.summary
        self._about.value = _STYLE + self._facts()
        self.max_new_tokens.max = max(1, llama.config.seq_len)  # a larger value becomes this one
        self.top_k.max = min(100, llama.config.vocab_size)
        if not self._worker.busy:
            self.status.value = "Another model is loaded. Ready."
        self._mark_text()
        self._list_runs(self.history.index)

    def _mark_text(self) -> None:
        """Say above the text if it is of another model than the loaded one."""
        mark = ""
        if self._text_of not in ("", self._model):
            mark = (
                f"<small role='note'><b>Text of an earlier model</b>: {escape(self._text_of)}"
                "</small>"
            )
        if self._earlier.value != mark:
            self._earlier.value = mark

    # ---- running ---------------------------------------------------------------------

    @property
    def settings(self) -> SamplingParams:
        """The controls' settings."""
        return SamplingParams(
            max_new_tokens=self.max_new_tokens.value,
            temperature=self.temperature.value,
            top_k=self.top_k.value,
            top_p=self.top_p.value,
            seed=None if self.new_seed.value else self.seed.value,
            logprobs=min(ALTERNATIVES, self._llama.config.vocab_size),
        )

    def start(self, settings: SamplingParams | None = None) -> None:
        """Generate a text; do nothing during a generation.

        Parameters
        ----------
        settings : SamplingParams, optional
            Default: the controls'.
        """
        self._follow_quietly()
        prompt, chosen, pace = self.prompt.value, settings or self.settings, self.pace.value
        power = self._power if not pace else None  # a paced text's energy would include the pauses
        show = _Shown(self, prompt, chosen.max_new_tokens, power, paced=pace > 0)
        show.at_once = not pace and self._expected_seconds(prompt, chosen) < _AT_ONCE
        try:
            if self._worker.run(lambda: self._generate(prompt, chosen, pace, show)):
                if not show.at_once:
                    show.begin()  # while the device already works
        except BaseException:  # Ctrl-C too: else the worker waits for begin() for ever
            show.release()
            raise

    def _follow_quietly(self) -> None:
        """Follow the model; the text itself reports what is wrong with the overlay."""
        with contextlib.suppress(Exception):
            self.follow()

    def _expected_seconds(self, prompt: str, settings: SamplingParams) -> float:
        """Estimate a text's seconds from the model's last run; infinite if there is none."""
        last = self.runs[-1] if self.runs and self.runs[-1].model == self._model else None
        rate = last.result.tokens_per_second if last is not None else None
        if last is None or rate is None:
            return math.inf
        reading = last.result.prompt_seconds * max(1.0, len(prompt) / max(1, len(last.prompt)))
        return reading + settings.max_new_tokens / rate

    def wait(self) -> None:
        """Wait until the text is complete."""
        self._worker.wait()

    def close(self) -> None:
        """Stop the generation and close the panel."""
        self._worker.stop.set()
        self._worker.wait()
        super().close()

    def _chunk(self, i: int) -> widgets.HTML:
        """Return the widget of the i-th piece of the text; it may still hold the previous text."""
        if i == len(self._chunks):
            first = self._chunks[0]
            self._chunks.append(widgets.HTML(layout=first.layout, style=first.style))
        return self._chunks[i]

    def _generate(
        self, prompt: str, settings: SamplingParams, pace: float, show: _Shown
    ) -> None:  # fmt: skip
        """Generate one text, until it ends or Stop is pressed; runs in the worker's thread."""
        finished: list[Generation] = []
        model = self._model
        try:
            tokens = self._overlay.stream_tokens(
                prompt, params=settings, power=show.power, on_finish=finished.append,
                call_seconds=_CALL_SECONDS,
            )  # fmt: skip
            try:
                for token in tokens:
                    show.add(token)
                    if self._worker.stop.wait(1 / pace) if pace else self._worker.stop.is_set():
                        break
            finally:
                tokens.close()
            show.finish(finished[0] if finished else None)
            if finished:
                self._remember(prompt, settings, finished[0], model)
        except Exception as error:  # nothing else would report an exception of a thread
            show.fail(error)
        finally:
            if show.begun:
                self.stop.disabled, self.generate.disabled = True, False
            self.again.disabled = not self.runs

    # ---- history ---------------------------------------------------------------------

    def _remember(
        self, prompt: str, settings: SamplingParams, result: Generation, model: str
    ) -> None:
        self.seed.value = result.seed
        chosen = replace(settings, seed=result.seed)
        self.runs.append(Run(prompt, result.text, chosen, result, model))
        self._list_runs(len(self.runs) - 1)

    def _list_runs(self, chosen: int | None) -> None:
        if chosen is None:
            return
        labels = [
            f"{i}. {'' if run.model == self._model else 'earlier model, '}{run.label}"
            for i, run in enumerate(self.runs, 1)
        ]
        self.history.unobserve(self._choose, names="index")  # setting options selects index 0
        with self.history.hold_sync():
            self.history.options = labels
            self.history.index = chosen
        self.history.observe(self._choose, names="index")
        self._choose()

    def _choose(self, _: object = None) -> None:
        index = self.history.index
        if index is None:
            return
        run = self.runs[index]
        self.copy.value = (
            f"<span><textarea hidden>{escape(run.prompt + run.text)}</textarea>"
            f'<button class="jupyter-button" onclick="{_COPY}">Copy the text</button></span>'
        )

    def _repeat(self) -> None:
        if self.history.index is not None:
            run = self.runs[self.history.index]
            self.prompt.value = run.prompt
            self.start(run.settings)


class _Names(dict[int, str]):
    """Texts of a model's tokens, as HTML, each made once."""

    def __init__(self, llama: Llama) -> None:
        super().__init__()
        self._piece = llama.tokenizer.piece

    def __missing__(self, token: int) -> str:
        self[token] = visible(self._piece(token).decode("utf-8", "replace"))
        return self[token]


class _Shown:
    """Display of one text in the panel, with rate-limited updates."""

    def __init__(
        self, panel: PromptPanel, prompt: str, most: int, power: EnergyMeter | None, paced: bool
    ) -> None:
        self.power = power
        self._panel, self._most, self._paced = panel, most, paced
        # The emulated device keeps every core busy: each message delays it.
        self._pacer, self._status_pacer, self._energy_pacer = Pacer(8), Pacer(4), Pacer(1)
        self._pacer.due()  # `begin` sends the first update
        self._count = 0
        self._started, self._begin = time.perf_counter(), 0.0
        self._energy = ""
        self._names, self._model = panel._names, panel._model
        self._prompt = f"<span class='llama-prompt'>{escape(prompt)}</span>"
        self._parts, self._pieces = [self._prompt], 1
        self.at_once = False
        """Whether the text will probably be complete before a start state could be seen."""
        self._begun = threading.Event()

    @property
    def begun(self) -> bool:
        """Whether the panel shows the start state, or gave it up (`release`)."""
        return self._begun.is_set()

    def begin(self) -> None:
        """Show the start state: an empty text, Generate disabled, Stop enabled.

        Runs in the thread that called `start`; in the worker if an `at_once` text takes longer.
        """
        panel = self._panel
        try:
            panel.generate.disabled, panel.stop.disabled = True, False
            panel._chunk(0).value = self._prompt
            self._show_pieces()
            panel.status.value = self._progress("Reading the prompt…")
        finally:
            self.release()

    def release(self) -> None:
        """Unblock the worker, which waits for the start state."""
        self._begun.set()

    def _progress(self, words: str) -> str:
        """Return a progress bar and words as one HTML value: each message delays the emulator."""
        return (
            f"<progress max='{self._most}' value='{self._count}' style='width: 220px; "
            f"margin-right: 8px; vertical-align: middle'></progress>{words}"
        )

    def add(self, token: StreamToken) -> None:
        if token.token is not None:
            self._count += 1
            self._begin = self._begin or time.perf_counter()
        self._parts.append(token_html(token, self._names.__getitem__))
        if (self._paced or not token.more) and self._pacer.due():
            self._send()

    def _send_text(self) -> None:
        """Send the last piece of the text as a whole."""
        if not self._parts:
            return
        self._panel._chunk(self._pieces - 1).value = "".join(self._parts)
        self._show_pieces()
        if len(self._parts) >= _CHUNK:
            self._parts, self._pieces = [], self._pieces + 1

    def _show_pieces(self) -> None:
        """Show exactly the pieces of this text, none of the previous one."""
        panel = self._panel
        panel._text_of = self._model
        panel._mark_text()
        if len(panel.text.children) != self._pieces:
            panel.text.children = panel._chunks[: self._pieces]

    def _await_begin(self) -> None:
        """Wait for the start state: no text may be sent before."""
        if not self.at_once:
            self._begun.wait()

    def _send(self) -> None:
        panel = self._panel
        if self.at_once and not self.begun:
            self.begin()
        self._await_begin()
        self._send_text()
        if not self._status_pacer.due():
            return
        seconds = time.perf_counter() - self._begin
        rate = f", {(self._count - 1) / seconds:,.0f} tokens/s" if self._count > 1 else ""
        if self._paced:
            panel.status.value = self._progress(
                f"{self._count} of at most {self._most} tokens, at the pace chosen"
            )
            return
        if self.power is not None and self._energy_pacer.due():
            # Measured rails only: a modelled board's energy comes with the finished text.
            used = self.power.energy(self._started, time.perf_counter())
            self._energy = f", {used.joules:.3g} J" if isinstance(used, Energy) else ""
        panel.status.value = self._progress(
            f"{self._count} of at most {self._most} tokens{rate}{self._energy} so far (measured)"
        )

    def finish(self, out: Generation | None) -> None:
        self._await_begin()
        self._send_text()
        if out is None:
            self._panel.status.value = self._progress("Stopped before the first token.")
            return
        if out.finish_reason != "closed":
            self._count = self._most  # the bar is full, though the text may be shorter
        rate = out.tokens_per_second
        speed = "" if rate is None else f", {rate:,.1f} tokens/s (measured, host's clock)"
        ends = {"stop": "the text ended", "length": "at the limit", "closed": "stopped"}
        self._panel.status.value = self._progress(
            f"{len(out.tokens)} tokens{speed}, first after {out.prompt_seconds * 1e3:.0f} ms; "
            f"{ends[out.finish_reason]}.{self._energy_of(out)}"
        )

    def _energy_of(self, out: Generation) -> str:
        if isinstance(out.energy, Energy):
            joules = out.energy.joules_per_token
            return f"<br>{joules:.3g} J a token ({out.energy.kind}: {escape(out.energy.source)})"
        if self._panel._power is None:
            return ""
        why = (
            out.energy_note
            if self.power is not None
            else "only at full pace: the pauses would count"
        )
        return f"<br>No energy: {escape(why)}"

    def fail(self, error: Exception) -> None:
        self._await_begin()
        self._panel.text.children = self._panel.text.children[:1]
        self._panel._chunk(0).value = ""
        self._panel._text_of = ""
        self._panel._mark_text()
        if getattr(self._panel._overlay, "closed", False):
            self._panel.status.value = (
                "<b role='alert'>The overlay is closed.</b> Run the notebook's first code cell "
                "again, and then this panel's."
            )
            return
        self._panel.status.value = (
            f"<b role='alert'>{escape(type(error).__name__)}:</b> {escape(error)}"
        )


_LEGEND = (
    "<small>Shade: how improbable the token was. Underlined: solid below 10%, dotted below 50%. "
    "Point at a token, or go to it with Tab, to see the alternatives.</small>"
)
