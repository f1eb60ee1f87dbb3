"""A seeded generator of simple children's stories, the bundled model's only training data.

A story is one plot of `plots.PLOTS`, told about a cast that is drawn once and then kept: the same
names, pronouns, objects and places from start to end. A small model learns such text well,
because every later mention can be copied from an earlier one.

Template language, expanded in this order:

- ``<name>``: a line of `plots.MACROS`, drawn at random;
- ``[a|b|c]``: one of the alternatives, drawn at random (they nest);
- ``{slot}``: a value of the cast or of the plot, the same at every use.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from llama_pynq.train.plots import MACROS, PLOTS, Plot

NAMES = {
    ("child", "she"): ("Lily", "Mia", "Anna", "Rosie", "Emma", "Nora"),
    ("child", "he"): ("Tom", "Ben", "Sam", "Max", "Leo", "Jack"),
    ("animal", "she"): ("Dot", "Coco", "Hazel", "Poppy", "Daisy"),
    ("animal", "he"): ("Pip", "Milo", "Rusty", "Toby", "Oscar"),
}

# Homes of each kind of animal. Owls and turtles are reserved for the wise old helpers.
HOMES = {
    "fox": ("in a warm den under an oak tree", "in a den at the edge of the forest"),
    "rabbit": ("in a warm burrow under a hill", "in a burrow at the edge of the forest"),
    "bear": ("in a warm cave near the river", "in a cave at the edge of the forest"),
    "mouse": ("in a tiny hole under an oak tree", "in a tiny house behind the old mill"),
    "dog": ("in a small house near the forest", "on a farm near the river"),
    "cat": ("in a small house near the forest", "on a farm near the river"),
    "squirrel": ("high up in an oak tree", "in a warm nest at the edge of the forest"),
    "hedgehog": ("in a warm nest under a bush", "under an old apple tree"),
    "duck": ("in a warm nest by the pond", "on a farm near the river"),
    "frog": ("under a big green leaf by the pond", "beside a quiet pond"),
    "dragon": ("in a warm cave near the river", "in a cave on top of a hill"),
}
CHILD_HOMES = (
    "in a small house near the forest",
    "in a little house on a hill",
    "in a small village by the sea",
    "on a farm near the river",
)
TRAITS = ("little",) * 4 + ("kind", "curious", "brave", "cheerful", "clever", "gentle", "young")
COLOURS = ("red", "blue", "green", "yellow", "orange")
OBJECTS = ("ball", "kite", "boat", "drum", "wagon")
OUTDOORS = (
    "near the gate",
    "under a bush",
    "behind the big tree",
    "in the tall grass",
    "beside the path",
)
SPOTS = ("under the bed", "behind the door", *OUTDOORS)
DAYS = (
    "One day",
    "One sunny morning",
    "One warm morning",
    "One bright morning",
    "One fine day",
)
# No pronoun refers to parents or elders: keeping hero and friend apart is hard enough.
ELDERS = {"child": "Grandma", "animal": "the old owl"}
PRONOUNS = {"he": ("he", "him", "his"), "she": ("she", "her", "her")}

ABRUPT_SHARE = 0.12  # Probability that a child's story begins with the day, if its plot can.
MAX_WORDS = 220  # Longer draws are discarded, so a story fits the model's context twice.
_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_MACRO = re.compile(r"<(\w+)>")


@dataclass(frozen=True)
class Story:
    """One story, its plot and its slots.

    Attributes
    ----------
    text : str
    plot : str
        The name of its plot.
    slots : dict of str to str
        Value of every slot that the templates can use.
    genders : frozenset of {"he", "she"}
        The pronouns of the characters that appear.
    """

    text: str
    plot: str
    slots: dict[str, str]
    genders: frozenset[str]


def article(phrase: str) -> str:
    """Return the phrase with "a" or "an", by its first letter (enough for these word lists)."""
    return f"{'an' if phrase[0].lower() in 'aeiou' else 'a'} {phrase}"


def capital(phrase: str) -> str:
    """Return the phrase with its first letter in upper case."""
    return phrase[0].upper() + phrase[1:]


def _character(prefix: str, name: str, gender: str) -> dict[str, str]:
    """Return a character's slots: n/N its name, he/him/his its pronouns, each capitalised too."""
    he, him, his = PRONOUNS[gender]
    slots = {"n": name, "he": he, "him": him, "his": his}
    slots |= {key.capitalize(): capital(value) for key, value in slots.items()}
    return {prefix + key: value for key, value in slots.items()}


def _cast(plot: Plot, rng: random.Random) -> dict[str, str]:
    """Draw hero and friend; return their slots and the name of the opening."""
    world = rng.choice(plot.worlds)
    genders = [rng.choice(("he", "she")) for _ in range(2)]
    if world == "animal":
        kinds = rng.sample([kind for kind in HOMES if kind not in plot.without], 2)
        home = rng.choice(HOMES[kinds[0]])
    else:
        kinds = ["boy" if gender == "he" else "girl" for gender in genders]
        home = rng.choice(CHILD_HOMES)
    name = rng.choice(NAMES[world, genders[0]])
    friend = rng.choice([other for other in NAMES[world, genders[1]] if other != name])
    trait = rng.choice(TRAITS)
    opening = world
    if plot.pair:
        opening = f"pair_{world}"
    elif world == "child" and rng.random() < ABRUPT_SHARE and plot.begins_with_day:
        opening = "abrupt"
    return {
        **_character("", name, genders[0]),
        **_character("f", friend, genders[1]),
        "en": ELDERS[world],
        "eN": capital(ELDERS[world]),
        "k": kinds[0],
        "a_k": article(kinds[0]),
        "fk": kinds[1],
        "a_fk": article(kinds[1]),
        "tk": f"{trait} {kinds[0]}",
        "a_tk": article(f"{trait} {kinds[0]}"),
        "A_tk": capital(article(f"{trait} {kinds[0]}")),
        "friend": f"{friend} the {kinds[1]}" if world == "animal" else friend,
        "home": home,
        "opening": opening,
    }


def _world(plot: Plot, rng: random.Random) -> dict[str, str]:
    """Draw the day, the object, the places and the plot's own slots."""
    slots = {
        "day": rng.choice(DAYS),
        "colour": rng.choice(COLOURS),
        "thing": rng.choice(OBJECTS),
        "out": rng.choice(OUTDOORS),
    }
    slots |= zip(("s1", "s2", "s3"), rng.sample(SPOTS, 3), strict=True)
    for options in plot.draws:
        slots |= rng.choice(options)
    slots["a_o"] = article(f"{slots['colour']} {slots['thing']}")
    return slots


def _expand(template: str, rng: random.Random) -> str:
    """Replace every macro and every bracket of alternatives."""
    while match := _MACRO.search(template):
        line = rng.choice(MACROS[match[1]])
        template = template[: match.start()] + line + template[match.end() :]
    while match := _CHOICE.search(template):
        line = rng.choice(match[1].split("|"))
        template = template[: match.start()] + line + template[match.end() :]
    return template


def compose(rng: random.Random) -> Story:
    """Draw a plot and a cast and tell the story.

    Parameters
    ----------
    rng : random.Random
        The only source of chance: the same state gives the same story.

    Returns
    -------
    Story
    """
    while True:
        told = _tell(rng.choice(PLOTS), rng)
        if len(told.text.split()) <= MAX_WORDS:
            return told


def _tell(plot: Plot, rng: random.Random) -> Story:
    """Tell one plot about a newly drawn cast."""
    slots = _cast(plot, rng) | _world(plot, rng)
    beats = plot.beats
    if slots["opening"] == "abrupt":
        # Start at "One day, ...", without the hero's introduction.
        beats = beats[0 if beats[0].startswith("{day}") else 1 :]
    else:
        beats = (f"<open_{slots['opening']}>", *beats)
    template = " ".join(_expand(beat, rng) for beat in beats)
    # Twice: the values of a plot's own slots may contain slots of the cast.
    text = template.format_map(slots).format_map(slots)
    genders = {slots["he"], slots["fhe"]} if "{f" in template else {slots["he"]}
    return Story(text, plot.name, slots, frozenset(genders))


def story(rng: random.Random) -> str:
    """Return one story of 90 to 220 words in one paragraph.

    Parameters
    ----------
    rng : random.Random
        The only source of chance: the same state gives the same story.
    """
    return compose(rng).text
