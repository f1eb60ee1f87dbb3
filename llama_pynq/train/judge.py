"""Sample stories from the exported model and count those that are coherent throughout.

``python -m llama_pynq.train.judge DIR`` samples from the int8 file with the project's NumPy model.
A story counts if the generator can produce it: it must match one plot word for word, and every
use of a name, a pronoun, a colour, an object or a place must agree with the others. Good sentences
that no plot contains count as failures, so the share is a lower bound.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import count
from pathlib import Path

import numpy as np

from llama_pynq.checkpoint.load import load_checkpoint
from llama_pynq.kernel.reference import FloatModel
from llama_pynq.tokenizer.load import load_tokenizer
from llama_pynq.train import stories
from llama_pynq.train.plots import MACROS, PLOTS, Plot
from llama_pynq.train.stories import HOMES, NAMES, PRONOUNS, article, capital
from llama_pynq.train.tokenizer import BOS, EOS
from llama_pynq.utils.files import user_path

PROMPTS = (
    "",
    "Once upon a time",
    "The little fox",
    "Lily and Tom",
    "In a small village",
    "A brave dog",
    "One day",
    "There was once",
    "A little girl",
    "Far away",
    "The little dragon",
    "Once upon a time, there was a little mouse",
    "Once upon a time, there were two friends",
)

_TOKEN = re.compile(r"<(\w+)>|\{(\w+)\}|([\[|\]])")
_WORLDS = {name: key for key, pool in NAMES.items() for name in pool}
_CHILDREN = {"girl": "she", "boy": "he"}


def _values(plot: Plot) -> dict[str, list[str]]:
    """Return every value that each slot of a plot can have."""
    kinds = [*_CHILDREN, *HOMES]
    homes = [home for pool in HOMES.values() for home in pool]
    values: dict[str, list[str]] = {
        "n": [*_WORLDS],
        "fn": [*_WORLDS],
        "friend": [*_WORLDS, *(f"{name} the {kind}" for name in _WORLDS for kind in HOMES)],
        "en": [*stories.ELDERS.values()],
        "k": kinds,
        "fk": kinds,
        "tk": [f"{trait} {kind}" for trait in dict.fromkeys(stories.TRAITS) for kind in kinds],
        "home": [*homes, *stories.CHILD_HOMES],
        "day": [*stories.DAYS],
        "colour": [*stories.COLOURS],
        "thing": [*stories.OBJECTS],
        "out": [*stories.OUTDOORS],
    }
    values |= {slot: [*stories.SPOTS] for slot in ("s1", "s2", "s3")}
    for index, slot in enumerate(("he", "him", "his")):
        values[slot] = values["f" + slot] = [forms[index] for forms in PRONOUNS.values()]
    for options in plot.draws:
        values |= {slot: [option[slot] for option in options] for slot in options[0]}
    things = [f"{colour} {thing}" for colour in values["colour"] for thing in values["thing"]]
    for slot, phrases in (("k", kinds), ("fk", kinds), ("tk", values["tk"]), ("o", things)):
        values[f"a_{slot}"] = [article(phrase) for phrase in phrases]
    for slot, name in {
        **{slot: slot.capitalize() for slot in ("n", "he", "him", "his")},
        **{slot: slot[0] + slot[1:].capitalize() for slot in ("fn", "fhe", "fhim", "fhis")},
        **{"en": "eN", "a_tk": "A_tk"},
    }.items():
        values[name] = [capital(value) for value in values[slot]]
    return values


@cache
def _pattern(index: int, abrupt: bool) -> re.Pattern[str]:
    """Return the regular expression of a plot; each use of a slot is a group ``slot__number``."""
    plot, numbers = PLOTS[index], count()
    values = _values(plot)

    def expression(template: str) -> str:
        parts, at = [], 0
        for match in _TOKEN.finditer(template):
            parts.append(re.escape(template[at : match.start()]))
            macro, slot, bracket = match.groups()
            if macro:
                parts.append(f"(?:{'|'.join(map(expression, MACROS[macro]))})")
            elif slot:
                # Longest alternative first: "Dot the bear" before "Dot".
                lines = sorted(dict.fromkeys(values[slot]), key=len, reverse=True)
                parts.append(f"(?P<{slot}__{next(numbers)}>{'|'.join(map(expression, lines))})")
            else:
                parts.append({"[": "(?:", "|": "|", "]": ")"}[bracket])
            at = match.end()
        return "".join(parts) + re.escape(template[at:])

    beats = plot.beats
    if abrupt:
        beats = beats[0 if beats[0].startswith("{day}") else 1 :]
    else:
        openings = [f"open_pair_{world}" if plot.pair else f"open_{world}" for world in plot.worlds]
        beats = (f"[{'|'.join(f'<{opening}>' for opening in openings)}]", *beats)
    return re.compile(r"\ ".join(map(expression, beats)))


def _person(prefix: str, name: str) -> Iterable[tuple[str, str]]:
    """Yield the facts implied by the name of the hero (prefix "") or the friend (prefix "f")."""
    world, gender = _WORLDS[name]
    yield from ((prefix + "name", name), ("world", world), (prefix + "gender", gender))


def _kind(prefix: str, phrase: str) -> Iterable[tuple[str, str]]:
    """Yield the facts implied by a phrase such as "a little fox" or "a kind girl"."""
    kind = phrase.rpartition(" ")[2]
    yield prefix + "kind", kind
    yield "world", "child" if kind in _CHILDREN else "animal"
    if kind in _CHILDREN:
        yield prefix + "gender", _CHILDREN[kind]


def _facts(slot: str, value: str) -> Iterable[tuple[str, str]]:
    """Yield the facts that one use of a slot implies about the story."""
    prefix = slot[0] if slot[0] == "f" else ""
    bare = slot.removeprefix(prefix).lower()
    if bare == "n":
        yield from _person(prefix, value)
    elif slot == "friend":
        name, _, kind = value.partition(" the ")
        yield from _person("f", name)
        if kind:
            yield from _kind("f", kind)
    elif bare in ("he", "him", "his"):
        yield prefix + "gender", "he" if value.lower() in PRONOUNS["he"] else "she"
    elif slot in ("k", "a_k", "tk", "a_tk", "A_tk"):
        yield from _kind("", value)
    elif slot in ("fk", "a_fk"):
        yield from _kind("f", value)
    elif slot == "a_o":
        *_, colour, thing = value.split()
        yield from (("colour", colour), ("thing", thing))
    elif slot in ("en", "eN"):
        yield "world", "child" if value == stories.ELDERS["child"] else "animal"
    else:
        yield slot, value


def _consistent(plot: Plot, uses: Iterable[tuple[str, str]]) -> bool:
    """Whether all uses of the slots imply the same facts, and the facts fit each other."""
    facts: dict[str, str] = {}
    for slot, value in uses:
        for fact, what in _facts(slot, value):
            if facts.setdefault(fact, what) != what:
                return False
    if facts["name"] == facts.get("fname"):
        return False
    homes = HOMES.get(facts.get("kind", ""), stories.CHILD_HOMES)
    if facts.get("home", homes[0]) not in homes:
        return False
    # Slots that a plot draws together must have the values of one option.
    return all(
        any(
            all(_tells(value, facts.get(slot, value)) for slot, value in option.items())
            for option in options
        )
        for options in plot.draws
    )


def _tells(template: str, text: str) -> bool:
    """Whether the text matches the template, with any word in each slot."""
    return text == template or bool(
        re.fullmatch(re.sub(r"\\{\w+\\}", r"\\w+", re.escape(template)), text)
    )


def accepts(text: str) -> str | None:
    """Return the name of the plot that can produce the text, or None.

    Parameters
    ----------
    text : str
        One whole story.
    """
    for index, plot in enumerate(PLOTS):
        for abrupt in (False, True) if plot.begins_with_day and not plot.pair else (False,):
            if match := _pattern(index, abrupt).fullmatch(text):
                groups = match.groupdict().items()
                uses = [(group.partition("__")[0], value) for group, value in groups if value]
                if _consistent(plot, uses):
                    return plot.name
    return None


def sample(
    folder: Path, prompts: Sequence[str], temperature: float, top_p: float, seed: int
) -> list[str]:
    """Sample one story for each prompt, in one batch.

    Parameters
    ----------
    folder : Path
        Contains ``stories.bin`` and ``tokenizer.bin``.
    prompts : sequence of str
    temperature : float
        0 is greedy.
    top_p : float
        Sample from the most probable tokens that together reach this probability.
    seed : int
    """
    tokenizer = load_tokenizer(folder / "tokenizer.bin")
    with load_checkpoint(folder / "stories.bin") as checkpoint:
        model = FloatModel(checkpoint)
    rng = np.random.default_rng(seed)
    rows = [tokenizer.encode(prompt) for prompt in prompts]
    live = list(range(len(rows)))
    for position in range(model.config.seq_len - 1):
        if not live:
            break
        tokens = [rows[row][position] for row in live]
        logits = model.forward(tokens, [position] * len(live), live)
        still = []
        for row, scores in zip(live, logits, strict=True):
            if position + 1 == len(rows[row]):
                token = _draw(scores.astype(np.float64), temperature, top_p, rng)
                if token in (BOS, EOS):
                    continue
                rows[row].append(token)
            still.append(row)
        live = still
    return [tokenizer.decode(row) for row in rows]


def _draw(logits: np.ndarray, temperature: float, top_p: float, rng: np.random.Generator) -> int:
    """Draw a token from logits (vocab_size,)."""
    if temperature == 0:
        return int(logits.argmax())
    p = np.exp((logits - logits.max()) / temperature)
    p /= p.sum()
    order = np.argsort(-p)
    order = order[: int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1]
    return int(rng.choice(order, p=p[order] / p[order].sum()))


def main(argv: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m llama_pynq.train.judge", description=__doc__)
    parser.add_argument("folder", help="folder with stories.bin and tokenizer.bin")
    parser.add_argument("--count", type=int, default=260, help="stories to sample (260)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (0.8)")
    parser.add_argument("--top-p", type=float, default=0.9, help="(0.9)")
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    parser.add_argument("--show", type=int, default=0, help="stories to print")
    parser.add_argument("--prompt", action="append", help="replace the default prompts; repeatable")
    options = parser.parse_args(argv)
    prompts = options.prompt or PROMPTS
    asked = [prompts[index % len(prompts)] for index in range(options.count)]
    texts = sample(
        user_path(options.folder), asked, options.temperature, options.top_p, options.seed
    )
    plots = [accepts(text) for text in texts]
    for text, plot in list(zip(texts, plots, strict=True))[: options.show]:
        print(f"[{plot or 'not coherent'}] {text}\n")
    good = sum(plot is not None for plot in plots)
    print(f"{good} of {len(texts)} stories are coherent throughout; {len(set(texts))} are distinct")


if __name__ == "__main__":
    main()
