"""What the demo workflows and figures paint: sizes, sampling, words that the demo model knows, references."""

from __future__ import annotations

SIDE = 192  # pixels
SAMPLING = {"steps": 12, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
SEED = 5
STYLE = "glossy drawing, comic style"
REFERENCE = {"hand": "glossy", "medium": "comic", "seed": 4, "scenes": "a house in the mountains"}
"""Whose style the workflows take, as inputs of Paint Demo Pictures."""
SHOWS = f"a house in the mountains, {STYLE}"
OTHER = REFERENCE | {"seed": 8, "scenes": "a mushroom in the forest"}
SCENES = ("a fox in the forest", "a sailboat by the sea", "an owl in the city", "a panda in the hills")
PROMPTS = tuple(f"{scene}, {STYLE}" for scene in SCENES)
PROMPT = PROMPTS[1]

CLUSTERS = (  # name, hand, medium
    ("flat", "flat", "plain"),
    ("glossy", "glossy", "plain"),
    ("ink", "ink", "plain"),
    ("comic", "bold", "comic"),
    ("engraving", "soft", "engraving"),
    ("watercolor", "round", "watercolor"),
)
CLUSTER_SCENES = (
    "a fox in the hills",
    "a house in the city",
    "a strawberry by the sea",
    "a mushroom in the forest",
    "a bear in the mountains",
)

SUBJECT = {"prompt": "a bear in the hills, flat drawing", "phrase": "bear", "surroundings": "hills"}
SURROUNDINGS = {"hand": "flat", "medium": "plain", "seed": 4, "scenes": "a house in the hills"}
"""The picture that Keep My Subject's and Grad-SAM Blend's demos put their subject into."""

EDGES = {"hand": "flat", "medium": "plain", "seed": 11, "scenes": "\n".join(SCENES)}
"""Pictures whose edge maps give the structure."""

REPAINTED = {"hand": "flat", "medium": "plain", "seed": 4, "scenes": "a house in the hills"}
"""The picture that is walked back to its noise, and held to in layout and colours."""
INSTEAD = "a house in the mountains, ink drawing"
"""What it is painted as again."""
TWO_PROMPTS = "a fox in the forest, flat drawing", "a sailboat by the sea, flat drawing"

RECORDED_STYLES = ("flat", "glossy", "ink")
RECORDED_SUBJECTS = ("fox", "house", "mushroom")
"""What a recorded series paints, by the sea."""
