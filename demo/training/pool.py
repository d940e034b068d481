"""What is trained on: pairs of scenes in one style, composed by the block, the oldest block renewed every few steps.

Which block stands where follows from the number of steps alone, so that a training that goes on after a stop sees what
it would have seen without one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from demo.autoencoder import Autoencoder
from demo.nets import CELLS
from demo.world import scenes
from demo.world.atlas import Atlas
from demo.world.words import Vocabulary

CHUNK = {"cuda": 640, "cpu": 12}  # pictures composed at once: all on a GPU, few where they must stay in the cache


@dataclass
class World:
    """Where scenes are drawn from."""

    atlas: Atlas
    small: Atlas
    vocabulary: Vocabulary
    subjects: tuple[str, ...]
    device: str
    dtype: torch.dtype
    seed: int
    repeated: float = 0.0  # share of pairs that show the same twice, in other poses and layouts
    often: tuple[str, ...] = ()  # subjects that three of four blocks keep to; none: every block shows any

    def dice(self, number: int) -> torch.Generator:
        """Chance that depends on the block's number alone."""
        return torch.Generator(self.device).manual_seed(1_000_003 * (self.seed + 1) + number)

    def subjects_of(self, number: int) -> tuple[str, ...]:
        """What block `number` shows."""
        return self.often if self.often and number % 4 else self.subjects

    def pictures(self, specs: scenes.Specs) -> tuple[Tensor, Tensor, Tensor]:
        """Bytes: pictures [B, 3, H, W], masks by cell [B, 2, 24, 24], edge maps [B, H, W]."""
        drawn, masks, edges = [], [], []
        for part in torch.arange(len(specs), device=self.device).split(CHUNK[self.device]):
            scene = scenes.composed(specs[part], self.atlas, self.small)
            drawn.append(scenes.laid(scene.picture, specs.medium[part], specs.style[part]))
            masks.append(scenes.latent_masks(scene.masks, CELLS))
            edges.append(scenes.contours(scene))
        return tuple((255 * torch.cat(part)).round().byte() for part in (drawn, masks, edges))


@dataclass
class Pairs:
    """N pairs of scenes in one style."""

    latents: Tensor  # [N, 2, 8, 24, 24]
    strayed: Tensor  # [N, 8, 24, 24]: the second's scene in another style
    masks: Tensor  # [N, 2, 2, 24, 24] bytes: each picture's first and second subject
    subject: Tensor  # [N, 2, 2]
    captions: Tensor  # [N, 2, 77]
    sheet_captions: Tensor  # [N, 77]: of both side by side
    edges: Tensor  # [N, 2, 192, 192] bytes, or [N, 0] where no one needs them

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, rows: Tensor) -> Pairs:
        return Pairs(*(getattr(self, f.name)[rows] for f in fields(self)))


@torch.no_grad()
def drawn_pairs(world: World, vae: Autoencoder, count: int, number: int, with_edges: bool) -> Pairs:
    """Block `number` of `count` pairs."""
    dice = world.dice(number)
    subjects = world.subjects_of(number)
    first = scenes.random_specs(count, dice, subjects=subjects)
    second = scenes.random_specs(count, dice, subjects=subjects).in_style_of(first)
    if world.repeated:
        second = second.showing(first, torch.rand(count, generator=dice, device=dice.device) < world.repeated)
    astray = in_other_styles(second, dice)
    pictures, masks, edges = world.pictures(scenes.joined(first, second, astray))
    latents = torch.cat([encode_bytes(vae, part, world.dtype) for part in pictures.split(CHUNK[world.device])])
    chance = torch.Generator().manual_seed(world.seed + 7919 * number)
    texts = [captioned(first, 0.2, chance), captioned(second, 0.5, chance)]
    sheets = scenes.diptych_captions(first, torch.rand(count, generator=chance) >= 0.3)
    rows = [world.vocabulary.rows(part).to(world.device) for part in (*texts, sheets)]
    return Pairs(
        torch.stack([latents[:count], latents[count : 2 * count]], 1),
        latents[2 * count :],
        torch.stack([masks[:count], masks[count : 2 * count]], 1),
        torch.stack([first.subject, second.subject], 1),
        torch.stack(rows[:2], 1),
        rows[2],
        torch.stack([edges[:count], edges[count : 2 * count]], 1) if with_edges else edges[:count, :0, 0],
    )


def in_other_styles(specs: scenes.Specs, dice: torch.Generator) -> scenes.Specs:
    """The same scenes in other styles; half of them by the same hand, in other colours and another medium."""
    other = scenes.random_specs(len(specs), dice)
    strayed = specs.in_style_of(other)
    same_hand = torch.rand(len(specs), generator=dice, device=dice.device) < 0.5
    has_colours = (specs.colour != scenes.NOTHING) & (other.colour == scenes.NOTHING)
    recoloured = torch.where(has_colours, specs.colour, torch.where(specs.colour == scenes.NOTHING, -1, other.colour))
    return replace(
        strayed,
        hand=torch.where(same_hand, specs.hand, other.hand),
        colour=torch.where(same_hand, recoloured, other.colour),
    )


def encode_bytes(vae: Autoencoder, pictures: Tensor, dtype: torch.dtype) -> Tensor:
    return vae.encode((pictures.to(dtype) / 127.5 - 1).contiguous(memory_format=torch.channels_last))


def captioned(specs: scenes.Specs, unnamed: float, chance: torch.Generator) -> list[str]:
    """Captions in which words are left out at random, one in ten altogether; the style in a share `unnamed`."""
    subject, place, style, anything = torch.rand(4, len(specs), generator=chance)
    said = anything >= 0.1
    return scenes.captions(
        specs.to("cpu"), scenes.Named(said & (subject >= 0.06), said & (place >= 0.06), said & (style >= unnamed))
    )


class Pool:
    """`blocks` blocks of `size` things each, drawn by `draw(number)`; one is renewed with every `pause`th step."""

    def __init__(self, draw: Callable[[int], Pairs | Tensor], blocks: int, size: int, pause: int = 1) -> None:
        self.draw, self.blocks, self.size, self.pause = draw, blocks, size, pause
        self.content: Pairs | Tensor | None = None

    def fill(self, step: int) -> None:
        """As it stands after `step` steps."""
        renewals = step // self.pause
        for place in range(self.blocks):
            ahead = (renewals - 1 - place) // self.blocks if renewals > place else -1
            self._put(place, self.draw(place + self.blocks * (ahead + 1)))

    def renew(self, step: int) -> None:
        """What step `step` renews: the oldest block makes room for a new one, once in `pause` steps."""
        if (step + 1) % self.pause == 0:
            number = step // self.pause
            self._put(number % self.blocks, self.draw(self.blocks + number))

    def rows(self, count: int) -> Tensor:
        return torch.randint(self.blocks * self.size, (count,), device=self._tensors(self.content)[0].device)

    @staticmethod
    def _tensors(things: Pairs | Tensor) -> list[Tensor]:
        return [things] if isinstance(things, Tensor) else [getattr(things, f.name) for f in fields(things)]

    def _put(self, place: int, block: Pairs | Tensor) -> None:
        new = self._tensors(block)
        if self.content is None:
            empty = [part.new_zeros((self.blocks * self.size, *part.shape[1:])) for part in new]
            self.content = empty[0] if isinstance(block, Tensor) else Pairs(*empty)
        for whole, part in zip(self._tensors(self.content), new, strict=True):
            whole[place * self.size : (place + 1) * self.size] = part


def new_pool(
    world: World, vae: Autoencoder, options: argparse.Namespace, blocks: int, with_edges: bool = False
) -> Pool:
    """Of pairs, empty until it is filled."""

    def draw(number: int) -> Pairs:
        return drawn_pairs(world, vae, options.renew, number, with_edges)

    return Pool(draw, blocks, options.renew, options.pause)
