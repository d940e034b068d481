"""What is drawn: 72 plain subjects that all known hands draw, among them look-alikes, and the words for them."""

from __future__ import annotations

# Names as the sets have them, by kind.
KINDS = {
    "animals": (
        "dog wolf cat lion tiger horse cow-face pig elephant mouse rabbit fox bear panda koala chicken penguin duck "
        "owl frog turtle whale dolphin fish octopus snail butterfly honeybee spider"
    ),
    "plants": "cactus evergreen-tree palm-tree sunflower rose tulip mushroom",
    "food": (
        "red-apple pear lemon tangerine banana grapes strawberry pineapple carrot hamburger pizza doughnut cookie "
        "birthday-cake ice-cream teacup-without-handle"
    ),
    "vehicles": "automobile bus tram locomotive bicycle fire-engine airplane rocket sailboat",
    "buildings": "house castle tent",
    "things": "umbrella balloon guitar violin candle key crown top-hat",
}
SUBJECTS = tuple(name for names in KINDS.values() for name in names.split())

# What captions call those whose own names no one would type.
CALLED = {
    "cow-face": "cow",
    "honeybee": "bee",
    "evergreen-tree": "fir tree",
    "red-apple": "apple",
    "teacup-without-handle": "teacup",
    "automobile": "car",
    "locomotive": "train",
}
WORDS = tuple(CALLED.get(name, name.replace("-", " ")) for name in SUBJECTS)
UNCOUNTED = {"grapes"}  # words that take no "a"

# A tenth that no model is trained on, spread over the kinds; most have look-alikes that are trained on.
HELD_OUT_SUBJECTS = ("wolf", "penguin", "dolphin", "tulip", "pear", "doughnut", "castle", "violin")
KNOWN_SUBJECTS = tuple(name for name in SUBJECTS if name not in HELD_OUT_SUBJECTS)

# Half of the known ones: those that the judge recognises most often in what the shipped UNet paints of each by four
# hands, chosen by that alone before any choice of layers was compared. Benchmarks of what sharing costs paint these.
WELL_DRAWN = tuple(
    name
    for name in SUBJECTS
    if name
    in "lion horse cow-face pig fox panda turtle octopus spider cactus evergreen-tree palm-tree sunflower rose "
    "mushroom red-apple tangerine banana pineapple carrot hamburger pizza cookie birthday-cake bus bicycle fire-engine "
    "umbrella balloon guitar crown top-hat".split()
)

# The dozen of which the judge is surest in eight pictures of each, one by each known hand (`bench subjects --scenes
# 640 --settings 3x8`), chosen by that alone.
BEST_DRAWN = tuple(
    name
    for name in SUBJECTS
    if name
    in "lion bear octopus evergreen-tree rose red-apple tangerine hamburger birthday-cake bus crown top-hat".split()
)

EASIEST_FIRST = (*WELL_DRAWN, *(name for name in KNOWN_SUBJECTS if name not in WELL_DRAWN))

LOOK_ALIKES = (
    ("dog", "wolf"), ("cat", "lion"), ("lion", "tiger"), ("mouse", "rabbit"), ("bear", "panda"), ("bear", "koala"),
    ("duck", "chicken"), ("duck", "penguin"), ("whale", "dolphin"), ("fish", "whale"), ("rose", "tulip"),
    ("red-apple", "pear"), ("red-apple", "tangerine"), ("lemon", "tangerine"), ("doughnut", "cookie"), ("bus", "tram"),
    ("tram", "locomotive"), ("fire-engine", "bus"), ("house", "castle"), ("guitar", "violin"),
)  # fmt: skip


def rows_of(names: tuple[str, ...]) -> list[int]:
    """Indices into SUBJECTS."""
    return [SUBJECTS.index(name) for name in names]
