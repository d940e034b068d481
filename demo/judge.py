"""The judges: what a picture shows, where, whose hand drew it, and how far two pictures are apart in style.

All look through one network that learnt on photographs (`imagenet`); what is learnt here is how to read its features:
linear for subjects, two layers for the rest. Blocks of the network itself are trained on for the names of known hands
alone. A hand is a direction on a sphere, learned so that two scenes by one hand lie together and two hands apart, over
known hands, icon families and redrawn hands, so that it also tells hands it never saw. No judge has seen a generated
picture.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from .imagenet import WIDTHS, ImageNet, Retrained, load_imagenet
from .world.media import oklab
from .world.scenes import PLACE_NAMES, WHERE
from .world.sets import KNOWN_HANDS
from .world.subjects import SUBJECTS

WEIGHTS = Path(__file__).parent / "weights" / "judge.safetensors"
HANDS_WEIGHTS = WEIGHTS.with_name("hands.safetensors")
SIDE = 192
NEAR = 0.53  # half the side of what is looked at for one subject of two, in halves of the picture
LINES, THINGS = (0, 1, 3, 5, 8, 11), (8, 11, 15, 17)  # maps that tell how it is drawn, and what
WIDE = (*WIDTHS, 1280)  # channels of all maps
STROKES = range(3, 11)  # blocks that were trained on to name hands
COLOURS = 2 * (10 + 8 + 24)
GREY = 4 * sum(WIDE[m] for m in LINES)
LOOK = GREY + COLOURS
THING = 2 * sum(WIDE[m] for m in THINGS)


def windows(height: int, device: torch.device) -> Tensor:
    """Where to look, [2, H, H] weights that sum to one: everywhere, and in the middle."""
    axis = (torch.arange(height, device=device) + 0.5) / height * 2 - 1
    middle = torch.exp(-(((axis**2 + axis[:, None] ** 2) / 0.5) ** 2))
    both = torch.stack([torch.ones_like(middle), middle])
    return both / both.sum((1, 2), keepdim=True)


def summary(maps: Tensor) -> Tensor:
    """Means and spreads of maps [B, C, H, W] everywhere and in the middle, [B, 4 C]."""
    weights = windows(maps.shape[-1], maps.device)
    means = torch.einsum("bchw,nhw->bnc", maps, weights)
    squares = torch.einsum("bchw,nhw->bnc", maps.square(), weights)
    return torch.cat([means, (squares - means.square()).clamp_min(0).sqrt()], 1).flatten(1)


def colours(pictures: Tensor) -> Tensor:
    """Shares of lightness, chroma and hue (of what has chroma, pale or strong), [B, COLOURS]."""
    lab = functional.avg_pool2d(oklab(pictures), 4)
    light, chroma = lab[:, 0], lab[:, 1:].norm(dim=1)
    hue = torch.atan2(lab[:, 2], lab[:, 1]) / (2 * torch.pi) % 1
    parts = [_shares(light, 10, 1.0), _shares(chroma / 0.3, 8, 1.0)]
    around = _shares(hue, 12, 0.0)
    strong = (chroma / 0.12).clamp(0, 1)[:, None]
    parts += [around * (1 - strong), around * strong]
    everything = torch.cat(parts, 1)
    return torch.einsum("bchw,nhw->bnc", everything, windows(everything.shape[-1], lab.device)).flatten(1).sqrt()


def _shares(values: Tensor, count: int, ends: float) -> Tensor:
    """Soft membership of values [B, H, W] in `count` equal parts of [0, 1], [B, count, H, W]; `ends` 0: in a ring."""
    centres = torch.arange(count, device=values.device)[:, None, None] / (count - ends)
    off = (values[:, None] - centres).abs()
    off = off if ends else torch.minimum(off, 1 - off)
    return (1 - off * (count - ends)).clamp_min(0)


def grey(pictures: Tensor) -> Tensor:
    """Lightness alone, of even brightness and contrast, so that shapes are all there is to see."""
    light = oklab(pictures)[:, :1]
    mean, spread = light.mean((2, 3), keepdim=True), light.std((2, 3), keepdim=True)
    return (0.5 + 0.25 * (light - mean) / (spread + 0.02)).clamp(0, 1).expand(-1, 3, -1, -1)


def near(pictures: Tensor, relation: Tensor, which: int) -> Tensor:
    """The part of each picture [B, 3, H, W] where the first or second subject of a relation [B] belongs, enlarged."""
    at = torch.tensor(WHERE, device=pictures.device)[relation] * (1 if which == 0 else -1)
    at = at.clamp(NEAR - 1, 1 - NEAR)
    scale = torch.full_like(at[:, 0], NEAR)
    zero = torch.zeros_like(scale)
    move = torch.stack([scale, zero, at[:, 0], zero, scale, at[:, 1]], 1).view(-1, 2, 3)
    where = functional.affine_grid(move, [len(at), 3, SIDE, SIDE], align_corners=False)
    return functional.grid_sample(pictures, where, padding_mode="border", align_corners=False)


class Head(nn.Module):
    """Features, standardised, to logits or to a point; with `hidden` units, two layers."""

    def __init__(self, features: int, out: int, hidden: int = 0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))
        layers = [nn.Linear(features, hidden), nn.GELU(), nn.Dropout(0.2)] if hidden else []
        self.read = nn.Sequential(nn.Dropout(0.3), *layers, nn.Linear(hidden or features, out))

    def forward(self, features: Tensor) -> Tensor:
        return self.read(((features - self.mean) / self.spread).clamp(-6, 6))


class HandNamer(nn.Module):
    """Maps before block 3, [B, 24, 48, 48], to logits [B, 8] of the known hands.

    Means and spreads of three of its maps, and means of the last where each of four senses attends.
    """

    SEEN = (4, 7, 10)  # blocks whose maps are read
    SENSES = 4

    def __init__(self) -> None:
        super().__init__()
        widths = [WIDTHS[index + 1] for index in self.SEEN]
        features = 2 * sum(widths) + self.SENSES * widths[-1]
        self.blocks = Retrained(STROKES.start, STROKES.stop)
        self.attend = nn.Conv2d(widths[-1], self.SENSES, 1)
        self.norm = nn.LayerNorm(features)
        layers = nn.Linear(features, 128), nn.GELU(), nn.Dropout(0.2), nn.Linear(128, len(KNOWN_HANDS))
        self.read = nn.Sequential(nn.Dropout(0.3), *layers)

    def forward(self, maps: Tensor) -> Tensor:
        behind = self.blocks(maps)
        seen = [behind[index - STROKES.start].float() for index in self.SEEN]
        rows = []
        for each in seen:
            mean = each.mean((2, 3))
            rows += [mean, (each.square().mean((2, 3)) - mean.square()).clamp_min(1e-6).sqrt()]
        where = self.attend(seen[-1]).flatten(2).softmax(-1)
        rows.append(torch.einsum("bkn,bcn->bkc", where, seen[-1].flatten(2)).flatten(1))
        return self.read(self.norm(torch.cat(rows, 1)))


class Judge(nn.Module):
    """All pictures are [B, 3, H, W] in [0, 1]; sizes other than 192 x 192 are brought to it."""

    def __init__(self) -> None:
        super().__init__()
        self.subject = Head(THING, len(SUBJECTS))
        self.place = Head(LOOK, len(PLACE_NAMES) + 1, 128)
        self.named_hand = HandNamer()
        self.hand, self.line, self.manner = Head(LOOK, 64, 256), Head(GREY, 64, 256), Head(LOOK, 64, 256)

    def subjects(self, pictures: Tensor) -> Tensor:
        """Log-probabilities [B, 72] of the one subject that each picture shows."""
        return self.subject(things(pictures)).log_softmax(1)

    def pairs(self, pictures: Tensor, relation: Tensor) -> Tensor:
        """Log-probabilities [B, 2, 72] of the first and second subject, looked for where the relation [B] puts them."""
        return torch.stack([self.subjects(near(sized(pictures), relation, which)) for which in (0, 1)], 1)

    def places(self, pictures: Tensor) -> Tensor:
        """Log-probabilities [B, 7] of the places; the last is an even ground."""
        return self.place(looks(pictures)).log_softmax(1)

    def named_hands(self, pictures: Tensor) -> Tensor:
        """Log-probabilities [B, 8] of the known hands."""
        return seen(pictures, lambda maps, _: self.named_hand(maps[STROKES.start])).log_softmax(1)

    def hands(self, pictures: Tensor) -> Tensor:
        """Whose hand: unit vectors [B, 64]."""
        return functional.normalize(self.hand(looks(pictures)), dim=1)

    def geometry(self, pictures: Tensor) -> Tensor:
        """Whose hand, by the picture's lightness alone, whatever its brightness and contrast: unit vectors [B, 64]."""
        return functional.normalize(self.line(lines(pictures)), dim=1)

    def style(self, pictures: Tensor) -> Tensor:
        """Hand, medium and colours together: unit vectors [B, 64]."""
        return functional.normalize(self.manner(looks(pictures)), dim=1)


def style_distance(a: Tensor, b: Tensor) -> Tensor:
    """Angle between unit vectors over pi, in [0, 1]; broadcasts over leading axes."""
    return (a * b).sum(-1).clamp(-1, 1).arccos() / torch.pi


def sized(pictures: Tensor) -> Tensor:
    if pictures.shape[-1] == SIDE:
        return pictures.float().clamp(0, 1)
    return functional.interpolate(pictures.float(), (SIDE, SIDE), mode="bilinear", antialias=True).clamp(0, 1)


def seen(
    pictures: Tensor, read: Callable[[list[Tensor], Tensor], Tensor], dtype: torch.dtype = torch.float32
) -> Tensor:
    """What `read` makes of the network's maps, a few pictures at a time so that they stay in the processor's cache."""
    net: ImageNet = load_imagenet(str(pictures.device), dtype)
    with torch.no_grad():
        parts = (sized(part) for part in pictures.split(8 if pictures.device.type == "cpu" else 256))
        return torch.cat([read([m.float() for m in net(part)], part) for part in parts])


def thing_of(maps: list[Tensor], _: Tensor) -> Tensor:
    return torch.cat([_means(maps[m]) for m in THINGS], 1)


def look_of(maps: list[Tensor], pictures: Tensor) -> Tensor:
    return torch.cat([line_of(maps, pictures), colours(pictures)], 1)


def line_of(maps: list[Tensor], _: Tensor) -> Tensor:
    return torch.cat([summary(maps[m]) for m in LINES], 1)


def whole_of(maps: list[Tensor], pictures: Tensor) -> Tensor:
    """How it is drawn and what is shown, [B, LOOK + THING]."""
    return torch.cat([look_of(maps, pictures), thing_of(maps, pictures)], 1)


def _means(maps: Tensor) -> Tensor:
    return torch.einsum("bchw,nhw->bnc", maps, windows(maps.shape[-1], maps.device)).flatten(1)


def things(pictures: Tensor) -> Tensor:
    """Features for what is shown, [B, THING]: means in the middle and everywhere."""
    return seen(pictures, thing_of)


def looks(pictures: Tensor) -> Tensor:
    """Features for how it is drawn, in colour, [B, LOOK]."""
    return seen(pictures, look_of)


def lines(pictures: Tensor) -> Tensor:
    """Features for how it is drawn, in grey, [B, GREY]."""
    return seen(grey(sized(pictures)), line_of)


def load_judge(device: str | torch.device = "cpu") -> Judge:
    judge = Judge()
    heads = {name: weight for name, weight in load_file(WEIGHTS).items() if not name.startswith("named_hand.")}
    hands = {f"named_hand.{name}": weight for name, weight in load_file(HANDS_WEIGHTS).items()}
    judge.load_state_dict({name: weight.float() for name, weight in (heads | hands).items()})
    return judge.eval().requires_grad_(False).to(device)
