"""The sets of drawings: which package of the npm registry holds each, at which version, under which licence.

A *hand* is one studio's way of drawing everything: an emoji family, or one weight of an icon family. Nothing of these
packages is committed; training and benchmarks fetch them (`fetch`). Sets under share-alike licences stay out.
"""

from __future__ import annotations

from typing import NamedTuple


class DrawingSet(NamedTuple):
    """A package `@iconify-json/NAME`; `integrity` is the registry's hash of its archive, as package locks hold it."""

    name: str
    version: str
    integrity: str
    author: str
    licence: str  # SPDX


SETS = {
    drawings.name: drawings
    for drawings in (
        DrawingSet(
            "twemoji", "1.2.5",
            "sha512-uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
            "Twitter", "CC-BY-4.0",
        ),
        DrawingSet(
            "noto", "1.2.9",
            "sha512-DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
            "Google Inc", "Apache-2.0",
        ),
        DrawingSet(
            "noto-v1", "1.2.5",
            "sha512-/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
            "Google Inc", "Apache-2.0",
        ),
        DrawingSet(
            "fluent-emoji", "1.2.7",
            "sha512-D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
            "Microsoft Corporation", "MIT",
        ),
        DrawingSet(
            "fluent-emoji-flat", "1.2.6",
            "sha512-RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
            "Microsoft Corporation", "MIT",
        ),
        DrawingSet(
            "fluent-emoji-high-contrast", "1.2.6",
            "sha512-esqhZPpkrF7sNX3NsLoh8KW64okEr/bzko7WNnFP+qTJGAqDPDYjp0925yxuivXy3HtVQB8xhIKu3+Nq1byX5w==",
            "Microsoft Corporation", "MIT",
        ),
        DrawingSet(
            "emojione", "1.2.3",
            "sha512-T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
            "Emoji One", "CC-BY-4.0",
        ),
        DrawingSet(
            "emojione-monotone", "1.2.1",
            "sha512-cZSNcPsuiAD6HCzCh/2dYKGh3pNI0jJlxBxQWfC33cQsPtqYZqulGBvlkThXYNvDl8VxgVHT9u+izyX/yeEIkA==",
            "Emoji One", "CC-BY-4.0",
        ),
        DrawingSet(
            "fxemoji", "1.2.2",
            "sha512-UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
            "Mozilla", "Apache-2.0",
        ),
        DrawingSet(
            "streamline-emojis", "1.2.4",
            "sha512-iNr9T9XuZVTyQPJO8ZlLxBzPkpi7qMl+z1l0C31vpEMqhPMelth3n7CeWQYtixdetDPdI81yeG4ROqjWpYJE6A==",
            "Streamline", "CC-BY-4.0",
        ),
        DrawingSet(
            "ph", "1.2.2",
            "sha512-PgkEZNtqa8hBGjHXQa4pMwZa93hmfu8FUSjs/nv4oUU6yLsgv+gh9nu28Kqi8Fz9CCVu4hj1MZs9/60J57IzFw==",
            "Phosphor Icons", "MIT",
        ),
        DrawingSet(
            "solar", "1.2.13",
            "sha512-/ZWb6xRib6pzxD/qTkKWYhuzSU2yu0bY+EN0spgtz1NM3d5f4eYueQZpL3PfCdsg5uVfm4Ldtt3cAyQL+YI8/Q==",
            "480 Design", "CC-BY-4.0",
        ),
        DrawingSet(
            "material-symbols", "1.2.98",
            "sha512-ycgn080/EGstyYcJFu+HN0TYI+ts/KFPb+An0dzpwZit4M/BoFO9U54BwBmrS2Qo/3g9NYV4Y/g1BT425tNgEw==",
            "Google", "Apache-2.0",
        ),
    )
}  # fmt: skip

# What a caption calls each hand. The last two draw fewer subjects and are held out of all training.
HANDS = {
    "twemoji": "bold",
    "noto": "soft",
    "noto-v1": "blob",
    "fluent-emoji": "glossy",
    "fluent-emoji-flat": "flat",
    "fluent-emoji-high-contrast": "ink",
    "emojione": "round",
    "emojione-monotone": "stamp",
    "fxemoji": "simple",
    "streamline-emojis": "outlined",
}
HELD_OUT_HANDS = ("fxemoji", "streamline-emojis")
KNOWN_HANDS = tuple(name for name in HANDS if name not in HELD_OUT_HANDS)
ONE_COLOUR = ("fluent-emoji-high-contrast", "emojione-monotone")  # hands that know black only, and take any colour

# Icon families without any colour: hand -> (what stands before a subject's name, what behind it), in one set each.
ICON_FAMILIES = {
    "ph": {name: ("", ending) for name, ending in zip(
        ("thin", "light", "regular", "bold", "fill", "duotone"),
        ("-thin", "-light", "", "-bold", "-fill", "-duotone"), strict=True,
    )},
    "solar": {name: ("", f"-{name}") for name in (
        "linear", "outline", "broken", "bold", "bold-duotone", "line-duotone",
    )},
    "material-symbols": {name: ("", ending) for name, ending in zip(
        ("outlined", "rounded", "sharp", "filled", "filled rounded", "filled sharp"),
        ("-outline", "-outline-rounded", "-outline-sharp", "", "-rounded", "-sharp"), strict=True,
    )},
}  # fmt: skip
