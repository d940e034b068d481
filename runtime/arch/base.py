"""The interface to one family of models: its attention layers, and how they are recorded and replaced.

Everything else in this pack knows layers by name (`LayerId`) and tokens by their place; only the files of this folder
know modules. A new family is one file beside this one and a line in `registry`; `qwen.py` is the shortest example.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import nn

from ...engine.joint_style import Cure
from ...engine.layers import LayerId
from ...engine.style import EITHER, KEEP
from .rotation import Rotation


class Attend(Protocol):
    """The attention of one layer's call, with everything that other packs have put there."""

    def __call__(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        bias: torch.Tensor | None,
        rows: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Output for q; `bias` is None or [1, keys], added to every query's logits; `rows` are those of the call."""
        ...


Receive = Callable[[LayerId, str, torch.Tensor], None]
"""(layer, feature, tokens [rows, image tokens, channels]): what a layer projects, after the norm, before rotation."""


@dataclass(frozen=True)
class Projected:
    """What one attention layer has projected in one call: q, k and v [rows, ..., tokens, channels].

    Tokens of the picture being painted stand at `image`, those of the prompt at `text` (none in self-attention); the
    picture's tokens are `grid` (frames, rows, columns). `rotation` is what the model has turned q and k by. `attend` is
    the attention to call. When `whole`, it knows neither a bias nor a part of the rows: it is `earlier`, another pack's
    attn1 replace, and `underneath` is the attention that would run without it. `changed` says that another node's patch
    has put other rows in the place of the call's, `reordered` that one has put the picture's tokens in another order.
    `bias` tells what a mask adds to logits, [rows or 1, heads or 1, queries or 1, keys], or None.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    attend: Attend
    image: slice = field(default_factory=lambda: slice(None))
    text: slice = field(default_factory=lambda: slice(0, 0))
    grid: tuple[int, int, int] | None = None
    rotation: Rotation | None = None
    whole: bool = False
    earlier: Callable[..., torch.Tensor] | None = None
    underneath: Attend | None = None
    changed: bool = False
    reordered: bool = False
    bias: Callable[[], torch.Tensor | None] = lambda: None

    @property
    def placed(self) -> bool:
        """Whether the picture's tokens stand row by row in `grid`."""
        tokens = self.q[..., self.image, :].shape[-2]
        return self.grid is not None and not self.reordered and math.prod(self.grid) == tokens

    @property
    def plane(self) -> tuple[int, int]:
        """Rows and columns of the picture's tokens, which every transformer's call has."""
        assert self.grid is not None
        return self.grid[1:]

    def of_picture(self, feature: str) -> torch.Tensor:
        """q, k or v of the picture's tokens, as they were before the rotation."""
        tokens = getattr(self, feature)[..., self.image, :]
        if self.rotation is None or feature == "v":
            return tokens
        return self.rotation.at(self.image).undo(tokens)

    def plain(self) -> torch.Tensor:
        """The layer's own attention."""
        return self.attend(self.q, self.k, self.v, None)


Operator = Callable[[Projected], torch.Tensor]
"""Replaces a layer's attention; the output has the layout that `Projected.attend` returns."""


Family = TypeVar("Family", bound="Architecture")


class Architecture(ABC):
    """What is known of one family of models. An instance serves one network, a model's `diffusion_model`."""

    name: ClassVar[str]
    """The family, as its users call it."""

    sharing: ClassVar[str] = EITHER
    """Where the family's published method shares attention: where q's or k's gate is open, or where both are."""
    adain_v: ClassVar[bool] = False
    """Whether the family's published method also moves the moments of the values."""
    position: ClassVar[str] = KEEP
    """What keeps a reference's tokens apart from the picture's own; rotary models need something."""
    text_refined: ClassVar[bool] = False
    """Whether text is worked on before it meets the picture, so that padding cannot be left out of it afterwards."""
    text_joined: ClassVar[bool] = False
    """Whether text stands in one softmax with the picture: twice the text then weighs twice as much."""

    def __init__(self, network: nn.Module) -> None:
        self.network: Any = network
        """Its attributes are known to its family only."""

    @classmethod
    @abstractmethod
    def matches(cls, network: nn.Module) -> bool:
        """Whether a network belongs to this family."""

    def on(self: Family, network: nn.Module) -> Family:
        """The same family for another network, such as the copy of a model that a second GPU runs."""
        network = uncompiled(network)
        return self if network is self.network else type(self)(network)

    @property
    @abstractmethod
    def layers(self) -> tuple[LayerId, ...]:
        """The self-attention layers (joint ones too) in forward order."""

    @abstractmethod
    def projection(self, layer: LayerId, feature: str) -> str:
        """The name inside the network of the weight that projects q, k or v; where one makes all three, that one."""

    @abstractmethod
    def parameters(self, layer: LayerId) -> tuple[str, ...]:
        """The names inside the network of all weights of the block that a layer stands in, for gates of LoRA."""

    @property
    def text_layers(self) -> tuple[LayerId, ...]:
        """The layers whose block attends to the prompt's text, there or in cross-attention, in forward order."""
        return self.layers

    @abstractmethod
    def subject_layers(self, levels: int) -> tuple[LayerId, ...]:
        """Those of `text_layers` in which subjects are looked for unless the user names others.

        `levels` is how many of the finest resolutions are taken, in families that have several.
        """

    @abstractmethod
    def writing(self, layer: LayerId) -> Callable[[torch.Tensor], torch.Tensor]:
        """The projection by which attention to text [rows, tokens, heads * channels] enters the picture's stream."""

    def width(self, layer: LayerId) -> int:
        """Channels of the layer's queries, all heads."""
        return self.network.get_submodule(self.projection(layer, "q").removesuffix(".weight")).out_features

    @abstractmethod
    def recording(self, features: Sequence[str], receive: Receive) -> AbstractContextManager[None]:
        """Inside the block every call of the network gives `receive` what its layers project, by forward hooks.

        The results of the network stay the same bit for bit. No hook is left when the block ends.
        """

    @abstractmethod
    def intercepted(
        self, options: dict[str, Any], operators: Mapping[LayerId, Operator]
    ) -> AbstractContextManager[dict[str, Any]]:
        """`transformer_options` for one model call inside the block, in which the given layers' attention is replaced.

        Layers without an operator run as if nobody were there. Nothing is left when the block ends.
        """

    def replaced(self, options: dict[str, Any]) -> tuple[LayerId, ...]:
        """The layers whose attention another pack has replaced whole, in a call with these `transformer_options`."""
        return ()

    def cure(self, position: str, projected: Projected) -> Cure:
        """What a way of `position` (KEEP, SHIFT, UNTWIST) does to a reference's rotated keys; KEEP without rotation."""
        return keep


def keep(keys: torch.Tensor) -> torch.Tensor:
    """The reference's keys where they are."""
    return keys


@contextmanager
def removed_afterwards(handles: list[Any]) -> Iterator[list[Any]]:
    """Hook handles, appended inside the block, that are all removed when it ends."""
    try:
        yield handles
    finally:
        for handle in handles:
            handle.remove()


def uncompiled(module: nn.Module) -> nn.Module:
    """The module itself where `torch.compile` has wrapped it."""
    return getattr(module, "_orig_mod", module)


def parameters_under(network: nn.Module, prefix: str) -> tuple[str, ...]:
    """The names of all parameters of a network that begin with `prefix`."""
    return tuple(name for name, _ in network.named_parameters() if name.startswith(prefix))
