"""What an attribution method is, and the register that widgets, tooltips and checks read."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

if TYPE_CHECKING:
    from ..question import Question


class Method:
    """One way to measure where phrases act. A new one is a subclass under `@register`, in a file of this folder.

    `name` is what widgets offer, and `about` is what their tooltip says of it. `levels` is how many of the model's
    finest resolutions "auto" takes layers from. `sees_areas` tells whether it works on a prompt that is confined to an
    area, and `fallback` names the method that stands in where no gradient can be had.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    levels: ClassVar[int] = 2
    sees_areas: ClassVar[bool] = False
    fallback: ClassVar[str] = ""

    def maps(self, question: Question) -> torch.Tensor:
        """Importance [phrases, B, h, w] of every phrase at every position of the latent, in any unit."""
        raise NotImplementedError


METHODS: dict[str, Method] = {}
"""Every method by its name, in the order of the widget."""


def register(method: type[Method]) -> type[Method]:
    """Offer a method everywhere. Raises ValueError when another one has its name."""
    if method.name in METHODS:
        raise ValueError(f"Two attribution methods are called '{method.name}'.")
    METHODS[method.name] = method()
    return method
