"""What is drawn: 120 plain subjects that all known hands draw, among them look-alikes, and the words for them."""

from __future__ import annotations

# Names as the sets have them, by kind.
KINDS = {
    "animals": (
        "dog wolf cat lion tiger horse cow-face pig elephant mouse rabbit fox bear panda koala chicken penguin duck "
        "owl frog crocodile turtle snake dragon whale dolphin fish blowfish octopus snail butterfly ant honeybee "
        "lady-beetle spider scorpion bat crab shark eagle deer camel"
    ),
    "plants": "cactus evergreen-tree deciduous-tree palm-tree sunflower rose tulip mushroom",
    "food": (
        "red-apple green-apple pear peach lemon tangerine banana watermelon grapes strawberry pineapple cherries "
        "tomato avocado eggplant carrot bread croissant cheese-wedge hamburger pizza hot-dog taco doughnut cookie "
        "birthday-cake ice-cream teacup-without-handle wine-glass"
    ),
    "vehicles": (
        "automobile taxi bus trolleybus tram locomotive bicycle motorcycle tractor fire-engine ambulance airplane "
        "helicopter rocket sailboat speedboat ship"
    ),
    "buildings": "house castle church tent fountain",
    "things": (
        "anchor umbrella balloon guitar violin trumpet drum candle key hammer crown top-hat glasses soccer-ball "
        "basketball trophy bed telephone camera"
    ),
}
SUBJECTS = tuple(name for names in KINDS.values() for name in names.split())

# What captions call those whose own names no one would type.
CALLED = {
    "cow-face": "cow",
    "honeybee": "bee",
    "lady-beetle": "ladybug",
    "evergreen-tree": "fir tree",
    "deciduous-tree": "round tree",
    "red-apple": "apple",
    "cheese-wedge": "cheese",
    "teacup-without-handle": "teacup",
    "automobile": "car",
    "blowfish": "pufferfish",
}
WORDS = tuple(CALLED.get(name, name.replace("-", " ")) for name in SUBJECTS)
UNCOUNTED = {"grapes", "cherries", "glasses", "bread", "cheese"}  # words that take no "a"

# A tenth that no model is trained on, spread over the kinds; most have look-alikes that are trained on.
HELD_OUT_SUBJECTS = (
    "wolf", "penguin", "dolphin", "spider", "tulip", "pear", "taco", "doughnut", "trolleybus", "speedboat", "castle",
    "violin",
)  # fmt: skip
KNOWN_SUBJECTS = tuple(name for name in SUBJECTS if name not in HELD_OUT_SUBJECTS)

LOOK_ALIKES = (
    ("dog", "wolf"), ("cat", "lion"), ("lion", "tiger"), ("mouse", "rabbit"), ("bear", "panda"), ("bear", "koala"),
    ("duck", "chicken"), ("whale", "dolphin"), ("fish", "blowfish"), ("shark", "dolphin"), ("snake", "dragon"),
    ("ant", "spider"), ("honeybee", "lady-beetle"), ("evergreen-tree", "deciduous-tree"), ("rose", "tulip"),
    ("red-apple", "green-apple"), ("red-apple", "tomato"), ("pear", "green-apple"), ("lemon", "tangerine"),
    ("peach", "tangerine"), ("doughnut", "cookie"), ("bread", "croissant"), ("automobile", "taxi"),
    ("bus", "trolleybus"), ("tram", "trolleybus"), ("fire-engine", "ambulance"), ("bicycle", "motorcycle"),
    ("sailboat", "speedboat"), ("house", "church"), ("guitar", "violin"), ("soccer-ball", "basketball"),
)  # fmt: skip


def rows_of(names: tuple[str, ...]) -> list[int]:
    """Indices into SUBJECTS."""
    return [SUBJECTS.index(name) for name in names]
