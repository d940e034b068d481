"""Structure gates: how much of a ControlNet's residuals enters the UNet, by slot and noise level.

A residual slot is an input block of the UNet: its ControlNet residual is added to the skip connection that the block
opens, which the output block at the other end consumes (slot i of N goes to output block N - 1 - i). The middle block's
residual is a slot of its own. SD1.5 has 12 slots and the middle, SDXL 9 and the middle.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from .gates import ToSigma, layer_count
from .gates.policies import lowest
from .gates.policies.soft import soft_weights
from .grammar import GrammarError
from .layers import LayerId
from .profile import SensitivityProfile
from .texts import quoted
from .windows import ROUNDING, percent_of


class NotRankable(ValueError):
    """Residual slots that no profile can rank; `why` is a clause."""

    def __init__(self, why: str) -> None:
        super().__init__(f"This model's residual slots cannot be ranked, as {why}.")
        self.why = why


class SlotsDiffer(ValueError):
    """Weights by hand for `found` slots, written as `text`, and a model with `slots`."""

    def __init__(self, found: int, slots: int, text: str) -> None:
        super().__init__(
            f"There are {found} weights besides the middle one and this model has {slots} residual slots: write "
            f"{slots}, such as 1x{slots} ({quoted(text.strip())})."
        )
        self.found, self.slots, self.text = found, slots, text


Residuals = dict[str, list[torch.Tensor | None]]
"""What a ControlNet returns: "output" (to skips), "middle" and "input" (T2I adapters: to the block's own output)."""

PARTS = ("input", "middle", "output")
LONGEST = 1_000  # characters of weights by hand
MOST_SLOTS = 999  # more than any model has
HIGHEST = 10.0  # weight; the same as ComfyUI's apply nodes allow
_EXAMPLE = "write for instance 1x3 0.5x3 0x3 m1"


class SlotLayout(NamedTuple):
    """The slots of one UNet: its self-attention `layers`, and in `feeds[i]` those that slot i reaches first.

    A transformer has no skip connections and no middle: `parts` are its residual lists with a slot for each block, in
    the order in which blocks run. A residual enters the stream there and every later block sees it, so it feeds none.
    """

    layers: tuple[LayerId, ...]
    feeds: tuple[tuple[LayerId, ...], ...]
    parts: tuple[tuple[str, int], ...] = ()

    @property
    def slots(self) -> int:
        """Slots without the middle one."""
        return len(self.feeds)


class SlotWeights(NamedTuple):
    """A factor for the residual of every slot, and for the middle one."""

    skips: tuple[float, ...]
    middle: float

    def times(self, factor: float) -> SlotWeights:
        return SlotWeights(tuple(weight * factor for weight in self.skips), self.middle * factor)


def slot_layout(slots: int, layers: Sequence[LayerId]) -> SlotLayout:
    """The layout of a UNet with as many input blocks as `slots` and these self-attention layers.

    An output block without attention passes its skip on, so such a slot counts for the next output block that has some,
    and behind the last of those for that one.
    """
    attending = sorted({layer.number for layer in layers if layer.block == "output"})
    feeds = []
    for slot in range(slots):
        consumer = slots - 1 - slot
        reached = next((number for number in attending if number >= consumer), max(attending, default=None))
        feeds.append(tuple(layer for layer in layers if layer[:2] == ("output", reached)))
    return SlotLayout(tuple(layers), tuple(feeds))


def slot_scores(profile: SensitivityProfile, sigma: float, layout: SlotLayout) -> torch.Tensor:
    """Scores [slots] at a noise level: the mean over the layers each slot feeds and over the measured features.

    Lower = the slot feeds layers that are more sensitive to what the profile measures.
    Raises LayersDiffer when the profile belongs to another architecture, NotRankable when slots feed no layer.
    """
    if layout.parts:
        raise NotRankable("it is not known which layers of a transformer a residual reaches")
    if not all(layout.feeds):
        raise NotRankable("the UNet's output blocks have no attention")
    by_layer = torch.stack([profile.at(sigma, feature) for feature in profile.features]).double().mean(0)
    in_order = dict(zip(layout.layers, by_layer[profile.aligned(layout.layers)], strict=True))
    return torch.stack([torch.stack([in_order[layer] for layer in fed]).mean() for fed in layout.feeds])


class StructureGate(ABC):
    """Weights of residuals by slot and noise level. Immutable, so that branches of a graph can share one."""

    @abstractmethod
    def weights(self, sigma: float, layout: SlotLayout, to_sigma: ToSigma) -> SlotWeights:
        """Raises SlotsDiffer, LayersDiffer or NotRankable when the gate was made for another kind of model."""


@dataclass(frozen=True)
class PaperSchedule(StructureGate):
    """Every residual for the first share `kept` of the schedule, then the middle one alone, times `middle`.

    Conditional Balance's structure control: the official code's lambda_t is 1 - kept (arXiv 2412.19853). A step counts
    by where it begins; one that begins where the share ends is past it, so that 0.25 is one of four even steps: there
    too, where such a step is at t = 999 lambda_t and every t under 1000 lambda_t is past it.
    """

    kept: float
    middle: float = 1.0

    def weights(self, sigma: float, layout: SlotLayout, to_sigma: ToSigma) -> SlotWeights:
        if self.holds(sigma, to_sigma):
            return SlotWeights((1.0,) * layout.slots, 1.0)
        return SlotWeights((0.0,) * layout.slots, self.middle)

    def holds(self, sigma: float, to_sigma: ToSigma) -> bool:
        """Whether a step that begins at this noise level is in the share."""
        return sigma > to_sigma(self.kept) * ROUNDING

    def in_steps(self, levels: Sequence[float], to_sigma: ToSigma) -> tuple[int, float]:
        """How many of a run's steps, which begin at falling `levels`, are in the share; in percent, where that ends."""
        count = sum(self.holds(level, to_sigma) for level in levels)
        return count, 1.0 if count == len(levels) else percent_of(levels[count], to_sigma)


@dataclass(frozen=True)
class RankedSlots(StructureGate):
    """At each noise level the share `kept` of the slots that feed the least sensitive layers.

    `softness` is the width of the edge in standard deviations of the slots' scores; 0 keeps slots whole or not at all.
    Of equal slots the deeper one stays: it holds the coarser structure. The middle residual is not ranked.
    """

    profile: SensitivityProfile
    kept: float
    softness: float = 0.0
    middle: float = 1.0

    def weights(self, sigma: float, layout: SlotLayout, to_sigma: ToSigma) -> SlotWeights:
        sensitivity = -slot_scores(self.profile, sigma, layout).flip(0)  # deepest first
        count = layer_count(self.kept, layout.slots)
        if self.softness > 0:
            chosen = soft_weights(sensitivity, count, self.softness)
        else:
            chosen = lowest(sensitivity, count)
        return SlotWeights(tuple(chosen.flip(0).tolist()), self.middle)


@dataclass(frozen=True)
class WrittenSlots(StructureGate):
    """Weights by hand, the same at every noise level; `text` is what they were read from."""

    written: SlotWeights
    text: str

    def weights(self, sigma: float, layout: SlotLayout, to_sigma: ToSigma) -> SlotWeights:
        found, slots = len(self.written.skips), layout.slots
        if found != slots:
            raise SlotsDiffer(found, slots, self.text)
        return self.written


@dataclass(frozen=True)
class ScaledStructure(StructureGate):
    """Another gate's weights times `strength`."""

    gate: StructureGate
    strength: float

    def weights(self, sigma: float, layout: SlotLayout, to_sigma: ToSigma) -> SlotWeights:
        return self.gate.weights(sigma, layout, to_sigma).times(self.strength)


def scaled(gate: StructureGate, strength: float) -> StructureGate:
    """`gate` times `strength`; 1 changes nothing."""
    return gate if strength == 1 else ScaledStructure(gate, strength)


def parse_weights(text: str) -> WrittenSlots:
    """Read weights by hand: one number per slot from the first input block on, `m1` for the middle.

    `0.5x3` stands for three of 0.5. Blanks or commas part the numbers; the middle is 1 unless it is named. `1x9 m1` is
    all of SDXL, `1x12 m1` of SD1.5. Raises GrammarError where the text leaves the grammar.
    """
    if len(text) > LONGEST:
        raise GrammarError(text, LONGEST, f"Weights end after {LONGEST:,} characters; these go on", _EXAMPLE)
    skips: list[float] = []
    middle, at = None, _after_gap(text, 0)
    while at < len(text):
        term = _TERM.match(text, at)
        if term is None:
            raise GrammarError(text, at, "Expected a weight", _EXAMPLE)
        weight = _weight(text, term)
        if term["middle"] is None:
            skips += [weight] * int(term["times"] or 1)
        elif middle is None and term["times"] is None:
            middle = weight
        else:
            raise GrammarError(text, at, "The middle has one weight", _EXAMPLE)
        if len(skips) > MOST_SLOTS:
            raise GrammarError(text, at, f"There are more than {MOST_SLOTS} weights", _EXAMPLE)
        at = _after_gap(text, term.end())
    if not skips:
        raise GrammarError(text, 0, "Expected a weight for each slot", _EXAMPLE)
    return WrittenSlots(SlotWeights(tuple(skips), 1.0 if middle is None else middle), text)


_TERM = re.compile(r"(?P<middle>m\s*)?(?P<weight>\d*\.\d+|\d+\.?)(?:\s*[x*]\s*(?P<times>\d{1,3}))?(?![\w.])", re.I)


def _after_gap(text: str, at: int) -> int:
    gap = re.compile(r"[\s,]+").match(text, at)
    return at if gap is None else gap.end()


def _weight(text: str, term: re.Match[str]) -> float:
    weight = float(term["weight"])
    if weight > HIGHEST:
        raise GrammarError(text, term.start("weight"), f"A weight is at most {HIGHEST:g}", _EXAMPLE)
    return weight


def stream_layout(parts: Sequence[tuple[str, int]]) -> SlotLayout:
    """The layout of a transformer with these residual lists and as many blocks for each."""
    return SlotLayout((), ((),) * sum(blocks for _, blocks in parts), tuple(parts))


def gate_stream(residuals: Residuals, weights: SlotWeights, layout: SlotLayout) -> Residuals:
    """A transformer's residuals under their slots' weights, as `gate_residuals` does; a list may be shorter."""
    gated: Residuals = {**residuals, **{part: list(residuals.get(part, ())) for part in PARTS}}
    first = 0
    for part, blocks in layout.parts:
        own = weights.skips[first : first + blocks]
        gated[part] = [_times(one, weight) for one, weight in zip(gated[part], own, strict=False)]
        first += blocks
    return gated


def gate_residuals(residuals: Residuals, weights: SlotWeights) -> Residuals:
    """The residuals under their slots' weights, in fresh lists; the tensors themselves are not written to.

    A residual of weight 1 is the very same tensor, one of weight 0 is None. The UNet takes from the end of a list: the
    last of "output" belongs to the last input block, the last of "input" to the first.
    """
    gated = dict(residuals)
    for part in PARTS:
        slots = residuals.get(part, ())
        gated[part] = [_times(one, _weight_of(part, place, len(slots), weights)) for place, one in enumerate(slots)]
    return gated


def _weight_of(part: str, place: int, length: int, weights: SlotWeights) -> float:
    if part == "middle":
        return weights.middle
    slot = place + len(weights.skips) - length if part == "output" else length - 1 - place
    return weights.skips[slot] if 0 <= slot < len(weights.skips) else 1.0  # nothing reads beyond the UNet's blocks


def _times(residual: torch.Tensor | None, weight: float) -> torch.Tensor | None:
    if residual is None or weight == 0:
        return None
    return residual if weight == 1 else residual * weight
