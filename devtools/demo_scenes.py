"""What the demo workflows and figures paint: sizes, sampling, words that the demo model knows, references."""

from __future__ import annotations

SIDE = 192  # pixels
SAMPLING = {"steps": 12, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
SEED = 5
REFERENCE = {"hand": "ink", "medium": "plain", "seed": 4, "scenes": "a house in the mountains"}
"""Whose style the workflows take, as inputs of Paint Demo Pictures."""
SHOWS = "a house in the mountains, ink drawing"
OTHER = REFERENCE | {"hand": "round", "medium": "watercolor"}
OTHER_SHOWS = "a house in the mountains, round drawing, watercolor style"
PROMPTS = ("a bear in the forest", "a bus in the city", "an octopus by the sea", "a rose in the hills")
"""Of subjects that the model draws best. They name no style, so all of it comes from the reference."""
PROMPT = PROMPTS[0]
TEXTURE = {"hand": "flat", "medium": "engraving", "seed": 4, "scenes": "a house in the mountains"}
TEXTURE_SHOWS = "a house in the mountains, flat drawing, engraving style"
TRANSFORMED = "a rose in the hills"
"""What the demo transformer paints, and after which picture."""

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

SUBJECT = {"prompt": "a bear in the city, flat drawing", "phrase": "bear", "surroundings": "city"}
SURROUNDINGS = {"hand": "flat", "medium": "plain", "seed": 4, "scenes": "a rose in the city"}
"""The picture that Keep My Subject's and Grad-SAM Blend's demos put their subject into."""

EDGES = {"hand": "flat", "medium": "plain", "seed": 11, "scenes": "\n".join(PROMPTS)}
"""Pictures whose edge maps give the structure."""

REPAINTED = {"hand": "flat", "medium": "plain", "seed": 4, "scenes": "a house in the hills"}
"""The picture that is walked back to its noise, and held to in layout and colours."""
INSTEAD = "a house in the mountains, ink drawing"
"""What it is painted as again."""
TWO_PROMPTS = "a bear in the forest, flat drawing", "a bus by the sea, flat drawing"

RECORDED_STYLES = ("flat", "glossy", "ink")
RECORDED_SUBJECTS = ("fox", "house", "mushroom")
"""What a recorded series paints, by the sea."""
