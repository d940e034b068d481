"""Figures that are charts: what gates open, over layers, residuals and the schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby

import numpy as np
import torch
from PIL import Image

from conditional_balance.engine.conditioning import power_cosine, shifted_sigmas
from conditional_balance.engine.gate_texts import block_weights
from conditional_balance.engine.gates import CombinedGate, LayerGate, RankedGate, ScaledGate, WrittenGate, mean_weights
from conditional_balance.engine.gates.policies import Static
from conditional_balance.engine.grammar import parse
from conditional_balance.engine.layers import LayerId
from conditional_balance.engine.profile import SensitivityProfile
from conditional_balance.engine.profile_file import load
from conditional_balance.engine.structure import PaperSchedule, RankedSlots, StructureGate, parse_weights, slot_layout
from conditional_balance.render.gate_map import sampled, spread_sigmas, standard_sigma

from .. import demo_scenes
from ..contact import grids
from ..graph import Graph
from ..studio import Studio, figure
from .profiles import geometry_of, published

SLOTS = 6  # residuals of the demo model besides the middle one
STEPS = 48  # columns of a chart over the schedule


# Gates


@figure("CBSelectLayers")
def selected(studio: Studio, graph: Graph) -> Image.Image:
    profile = published()
    return _maps({f"style amount {amount:g}": RankedGate(profile, amount) for amount in (0.2, 0.43, 0.7)}, profile)


@figure("CBLayerGate")
def written(studio: Studio, graph: Graph) -> Image.Image:
    texts = ("o1.4-9, o2", "all, -m", "o1, o2:0.5")
    return _maps({text: WrittenGate(parse(text)) for text in texts}, published())


@figure("CBCombineGates")
def combined(studio: Studio, graph: Graph) -> Image.Image:
    profile = published()
    ranked, by_hand = RankedGate(profile, 0.43), WrittenGate(parse("o1, o3-5"))
    both = {name: CombinedGate(ranked, by_hand, name) for name in ("and", "or", "minus")}
    gates = {"gate": ranked, "other": by_hand, **both, "scale 0.5": ScaledGate(ranked, 0.5)}
    return _maps(gates, profile)


def _maps(gates: Mapping[str, LayerGate], profile: SensitivityProfile) -> Image.Image:
    """What gates open: layers down, the schedule along; half-dark where only queries or only keys are open."""
    sigmas = spread_sigmas(float(profile.sigmas[0]), float(profile.sigmas[-1]))
    panels = {name: sampled(gate, profile.layers, sigmas)[:, :2].mean(1).T.numpy() for name, gate in gates.items()}
    return grids(panels, _block_names(profile.layers), [(6, "noise"), (len(sigmas) - 8, "picture")])


def _block_names(layers: Sequence[LayerId]) -> list[tuple[float, str]]:
    """Where the middle of a block is, and its name, for the outermost blocks and those with room for a name."""
    grouped = groupby(layers, lambda layer: layer[:2])
    blocks = [(f"{block[0]}{number}", len(list(some))) for (block, number), some in grouped]
    ends = accumulate(size for _, size in blocks)
    middles = [(end - (size + 1) / 2, name, size) for end, (name, size) in zip(ends, blocks, strict=True)]
    return [(at, name) for at, name, size in middles if size > 4 or name in (blocks[0][0], blocks[-1][0])]


# Structure


@figure("CBGateControlNet")
def gated(studio: Studio, graph: Graph) -> Image.Image:
    geometry = load(studio.profiles / geometry_of(studio))
    gates = {
        "structure 1": PaperSchedule(1.0),
        "paper, structure 0.15": PaperSchedule(0.15),
        "ranked, structure 0.5": RankedSlots(geometry, 0.5),
        "1x2 0.5x2 0x2 m1": parse_weights("1x2 0.5x2 0x2 m1"),
    }
    panels = {name: _slots(gate, geometry) for name, gate in gates.items()}
    return grids(panels, _slot_names(), [(4, "noise"), (STEPS - 6, "picture")], columns=2)


def _slots(gate: StructureGate, profile: SensitivityProfile) -> np.ndarray:
    """A gate's weights [slots + 1, STEPS] over the schedule, the middle residual last."""
    layout = slot_layout(SLOTS, profile.layers)
    sigmas = [standard_sigma((step + 0.5) / STEPS) for step in range(STEPS)]
    weights = [gate.weights(sigma, layout, standard_sigma) for sigma in sigmas]
    return np.array([[*each.skips, each.middle] for each in weights]).T


def _slot_names() -> list[tuple[int, str]]:
    return [(0, "finest"), (SLOTS - 1, "deepest"), (SLOTS, "middle")]


@figure("CBProfileControlSlots", of="style_balanced_demo")
def ablated(studio: Studio, graph: Graph) -> Image.Image:
    model, control = graph.first("CBLoadDemoModel"), graph.add("CBLoadDemoControlNet")
    scenes = graph.add("CBDemoPictures", **demo_scenes.EDGES)
    prompts = graph.add("CBPromptBatch", clip=[model, 1], prompts=[scenes, 1])
    applied = graph.add(
        "ControlNetApplyAdvanced", positive=[prompts, 0], negative=[prompts, 0], control_net=[control, 0],
        image=[scenes, 2],
    )  # fmt: skip
    latent = graph.add("VAEEncode", pixels=[scenes, 0], vae=[model, 2])
    node = graph.add("CBProfileControlSlots", model=[model, 0], positive=[applied, 0], latent=[latent, 0])
    rows = [[float(part) for part in line.split()] for line in studio.report(graph, node).splitlines()[2:]]
    change = np.array(rows)[:, 1:].T / 100
    levels = [(place, f"{row[0]:.2g}") for place, row in enumerate(rows)]
    panel = {"change without one residual": change}
    return grids(panel, _slot_names(), levels, "noise level (sigma)", size=(4.6, 3.0), numbers=True)


# LoRA


@figure("CBGateLoRA")
def shared_layers(studio: Studio, graph: Graph) -> Image.Image:
    profile = published()
    style = RankedGate(profile, 0.43, Static())
    others = CombinedGate(WrittenGate(parse("all")), style, "minus")
    return _maps({"style LoRA": style, "subject LoRA": others}, profile)


# Other packs


@figure("CBGateAdapter")
def adapters_at_layers(studio: Studio, graph: Graph) -> Image.Image:
    profile = published()
    style = RankedGate(profile, 0.43)
    others = CombinedGate(WrittenGate(parse("all")), style, "minus")
    return _maps({"style adapter": style, "other adapter": others}, profile)


@figure("CBGateToText")
def texts_of_gates(studio: Studio, graph: Graph) -> Image.Image:
    """IPAdapter's index by three amounts."""
    profile, amounts = published(), (0.2, 0.43, 0.7)
    by_amount = []
    for amount in amounts:
        mean = mean_weights(RankedGate(profile, amount), profile.layers, standard_sigma).amax(0).tolist()
        by_amount.append(block_weights(dict(zip(profile.layers, mean, strict=True))))
    names = [(row, f"{row}  {LayerId(*block)}".partition(".")[0]) for row, block in enumerate(by_amount[0])]
    panel = np.array([list(weights.values()) for weights in by_amount]).T
    below = [(place, f"{amount:g}") for place, amount in enumerate(amounts)]
    return grids({"weight of each index": panel}, names, below, "style amount", size=(4.6, 3.6), numbers=True)


# Prompts


@figure("CBLayerPrompt")
def prompted_layers(studio: Studio, graph: Graph) -> Image.Image:
    profile = published()
    return _maps({f"style amount {part:g}": RankedGate(profile, part) for part in (0.15, 0.3, 0.5)}, profile)


# Metadata and guidance


@figure("CBMicroConditioning")
def scheduled(studio: Studio, graph: Graph) -> Image.Image:
    powers = (0.0, 1.0, 3.0, 6.0)
    weights = [[power_cosine((step + 0.5) / STEPS, power) for step in range(STEPS)] for power in powers]
    names = [(row, f"curve {power:g}") for row, power in enumerate(powers)]
    ends = [(4, "noise"), (STEPS - 6, "picture")]
    return grids({"how far the new value has entered": np.array(weights)}, names, ends, size=(4.6, 2.0))


@figure("CBResolutionShift")
def shifted(studio: Studio, graph: Graph) -> Image.Image:
    """Steps of one schedule as cells: dark where the noise is high."""
    ratios = {"half the sides": 0.5, "trained size": 1.0, "twice the sides": 2.0}
    sigmas = [standard_sigma(0.001 + 0.998 * step / 23) for step in range(24)]
    plain = torch.tensor([*sigmas, 0.0], dtype=torch.float64)
    rows = [shifted_sigmas(plain, ratio, flow=False)[:-1].log() for ratio in ratios.values()]
    levels = (torch.stack(rows) - rows[0].min()) / (rows[0].max() - rows[0].min())
    ends = [(2, "first step"), (21, "last step")]
    return grids({"noise level of each step": levels.numpy()}, list(enumerate(ratios)), ends, size=(4.6, 1.8))
