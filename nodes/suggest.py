"""The node that paints a few cheap pictures with more and more style, and says which amount it would take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import comfy.model_management
import numpy as np
import torch
from comfy_api.latest import io, ui
from comfy_execution.graph_utils import GraphBuilder

from ..engine.effect import effect_of
from ..engine.layers import LayerId
from ..engine.suggesting import Tries, suggested
from ..render.side_by_side import side_by_side
from ..runtime.inject.picture import encoded, latent_of
from ..runtime.profile.likeness import style_distances, style_layers
from ..runtime.runs.probe import Conditioning
from .findings import small
from .jobs import BY_AMOUNT, ranking
from .repainting import Find, Node, between, cheaper, links, nearest, steps_of
from .schema import Schema, found_by
from .shown import SUGGESTED, summary
from .widgets import not_offered

DIAL = "lambda"
PICTURES = {"CBStyleFromPicture": "image", "CBStyleAndStructure": "style_image"}
"""The nodes whose style amount is tried, and the input of each that brings the style."""
TRIED = 5
MOST_LOOKED_AT = 4  # pictures of a batch
TILE, PICTURE, OF = "tile_{}", "of_picture", "of_{}"
TAKEN = ("model", "clip", "vae", "profile")
"""Links that the node gives itself when it runs again behind the pictures."""


SUGGEST_WORDS = (
    "style amount", "style strength", "how much style", "compare strengths", "sweep", "xy plot", "grid", "建议风格量",
    "スタイル量を提案"
)  # fmt: skip


class CBSuggestAmount(io.ComfyNode):
    """Puts copies of the nodes behind a picture into the prompt, each with another amount, and itself behind them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBSuggestAmount",
            display_name="Suggest Style Amount (five quick tries)",
            category="conditional balance",
            search_aliases=found_by(*SUGGEST_WORDS),
            description="Paints your picture with less and with more style, in a few steps each, and suggests a style "
            "amount. Click a picture to take its amount.",
            is_output_node=True,
            is_input_list=True,  # core hands on one value of each output of what a node puts into the prompt
            enable_expand=True,
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            inputs=[
                io.Image.Input(
                    "image",
                    lazy=True,
                    tooltip="The picture that VAE Decode makes, with Style from Picture or Style and Structure "
                    "somewhere before it. This one link is all that the node needs.",
                ),
                _amount("lowest", 0.15, "The least style that is tried. 0 is always painted as well, to compare."),
                _amount("highest", 0.75, "The most style that is tried; five amounts lie evenly from lowest to it."),
                io.Int.Input(
                    "steps",
                    default=8,
                    min=1,
                    max=100,
                    tooltip="Sampling steps of each try: 8 are enough to compare. Fewer than your sampler's, which is "
                    "left as it is.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="Measures style and content with this network instead of your model's own layers, where "
                    "you have one.",
                ),
            ],
            outputs=[
                io.Float.Output(display_name="style amount", tooltip="The amount that is suggested."),
                io.Image.Output(
                    display_name="tiles",
                    tooltip="The style picture, the picture without style, and the five tries, side by side.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        lowest: list[float],
        highest: list[float],
        steps: list[int],
        image: list[torch.Tensor] | None = None,
        clip_vision: list[Any] | None = None,
        **given: list[Any],
    ) -> io.NodeOutput:
        network = clip_vision[0] if clip_vision else None
        return cls._tried(lowest[0], highest[0], steps[0], network, given)

    @classmethod
    def _tried(
        cls, lowest: float, highest: float, steps: int, network: Any, given: Mapping[str, Sequence[Any]]
    ) -> io.NodeOutput:
        if problem := not_offered(cls, {"lowest": lowest, "highest": highest, "steps": steps}):
            raise ValueError(problem)
        if highest <= lowest:
            raise ValueError(f"'highest' ({highest:g}) has to be above 'lowest' ({lowest:g}).")
        amounts = [0.0, *(round(float(each), 2) for each in np.linspace(lowest, highest, TRIED))]
        prompt, me = cls.hidden.dynprompt, cls.hidden.unique_id
        if given:
            asked = _behind(prompt.get_node, prompt.get_parent_node_id(me))
            return _compared(cls, asked, amounts, _one_by_one(given), network)
        asked = _behind(prompt.get_node, me)
        graph = GraphBuilder()
        tiles = {
            TILE.format(place): _again(graph, prompt.get_node, asked, amount, steps)
            for place, amount in enumerate(amounts)
        }
        inputs = prompt.get_node(asked.dial)["inputs"]
        wanted = {PICTURE: PICTURES[asked.kind]} | {OF.format(name): name for name in TAKEN if name in inputs}
        mine = {name: value for name, value in prompt.get_node(me)["inputs"].items() if name != "image"}
        found = graph.node("CBSuggestAmount", **mine, **tiles, **{name: inputs[of] for name, of in wanted.items()})
        return io.NodeOutput(found.out(0), found.out(1), expand=graph.finalize())


def _amount(name: str, default: float, tooltip: str) -> io.Input:
    return io.Float.Input(
        name, default=default, min=0.0, max=1.0, step=0.01, display_mode=io.NumberDisplay.slider, tooltip=tooltip
    )


class _Behind(NamedTuple):
    """A link to a picture, and the node before it whose amount is tried."""

    link: list[Any]
    dial: str
    kind: str


def _behind(find: Find, me: str) -> _Behind:
    """Raises ValueError when no picture is connected, or none of ours stands before it."""
    link = find(me)["inputs"].get("image")
    dial = nearest(find, link[0], PICTURES) if isinstance(link, list) else None
    if dial is None:
        raise ValueError(
            "'image' has no Style from Picture or Style and Structure before it: connect the picture of the VAE Decode "
            "behind one."
        )
    return _Behind(link, dial, find(dial)["class_type"])


def _again(graph: GraphBuilder, find: Find, asked: _Behind, amount: float, steps: int) -> list[Any]:
    """Copies of all that makes the picture, in fewer steps and with an amount; a link to the picture of the copy."""
    copied = between(find, asked.link[0], asked.dial)
    made = {name: graph.node(find(name)["class_type"], f"{name}@{amount:g}") for name in sorted(copied)}
    for name, node in made.items():
        fewer = cheaper(find(name)["inputs"], steps, steps_of(find, name))
        inputs = fewer | (_dialled(find(name), amount) if name == asked.dial else {})
        sources = {key: source for key, source in links({"inputs": inputs}) if source in made}
        node.inputs = inputs | {key: made[source].out(inputs[key][1]) for key, source in sources.items()}
    return made[asked.link[0]].out(asked.link[1])


def _dialled(node: Node, amount: float) -> dict[str, Any]:
    return {DIAL: amount} | ({"preset": BY_AMOUNT} if "preset" in node["inputs"] else {})


def _one_by_one(given: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """What lists hold in each place; a shorter list's last stands for the rest, as core has it."""
    count = max(map(len, given.values()))
    return [{name: values[min(place, len(values) - 1)] for name, values in given.items()} for place in range(count)]


def _compared(
    cls: type[io.ComfyNode], asked: _Behind, amounts: list[float], given: Sequence[Mapping[str, Any]], network: Any
) -> io.NodeOutput:
    """What the tries show, and which amount is suggested: by all of a list, of which the first is shown."""
    found = [_measured(each, _tiles(each), network) for each in given]
    style = np.mean([of_style for of_style, _, _ in found], axis=0).tolist()
    content = np.mean([of_content for _, of_content, _ in found], axis=0).tolist()
    picture, tiles, note = given[0][PICTURE], _tiles(given[0]), found[0][2]
    tries = Tries(amounts, style, content)
    amount = suggested(tries)
    shown = {
        "dial": asked.dial,
        "widget": DIAL,
        "amounts": amounts,
        "style": [round(each, 3) for each in style],
        "content": [round(each, 3) for each in content],
        "suggested": amount,
        "files": [ui.PreviewImage(small(tile[:1]), cls=cls).values[0] for tile in tiles],
    }
    words = f"Suggests {amount:g}: {_percent(tries, amount)}."
    if max(style) <= 0:
        words = (
            "By these numbers no try comes nearer to the style picture: choose by eye, or raise 'highest' or 'steps'."
        )
    words += f" By {len(given)} pictures of a list; the first is shown." if len(given) > 1 else ""
    words += note
    strip = side_by_side([picture[:1], *(tile[:1] for tile in tiles)])
    return io.NodeOutput(amount, strip, ui={SUGGESTED: [shown]} | summary(words))


def _tiles(given: Mapping[str, Any]) -> list[torch.Tensor]:
    return [given[TILE.format(place)][..., :3] for place in range(TRIED + 1)]


def _measured(
    given: Mapping[str, Any], tiles: Sequence[torch.Tensor], network: Any
) -> tuple[list[float], list[float], str]:
    """Style and content of the tries, and a note on how they were found."""
    if network is None:
        return _by_model(given, given[PICTURE], tiles)
    return *_by_network(network, given[PICTURE], tiles), ""


def _percent(tries: Tries, amount: float) -> str:
    style, content = (float(np.interp(amount, tries.amounts, each)) for each in (tries.style, tries.content))
    return f"{style:.0%} of the way to the style, {content:.0%} of the picture without it kept"


def _by_model(
    given: Mapping[str, Any], picture: torch.Tensor, tiles: Sequence[torch.Tensor]
) -> tuple[list[float], list[float], str]:
    """Style and content by the model's own layers and VAE, and a note where the layers cannot be looked into."""
    model, clip, vae = (given[OF.format(name)] for name in TAKEN[:-1])
    profile = given.get(OF.format(TAKEN[-1]))
    reference = latent_of(vae, picture, model)
    tries = [vae.encode(tile[:MOST_LOOKED_AT]) for tile in tiles]
    if not all(bool(torch.isfinite(each).all()) for each in tries):
        raise ValueError("'image' or its VAE gives NaN: look at the picture, or start ComfyUI with --fp32-vae.")
    content = contents(tries)
    try:
        layers = style_layers(ranking(model, profile))
        return styles(model, encoded(clip, ""), reference, tries, layers), content, ""
    except ValueError as problem:
        return gains(reference, tries), content, f" Style by the VAE alone: {problem}"


def styles(
    model: Any,
    positive: Conditioning,
    reference: torch.Tensor,
    tries: Sequence[torch.Tensor],
    layers: Sequence[LayerId],
) -> list[float]:
    """The part of the distance in style to a reference that is gone, of tries [B, C, (1,) h, w]; 0 for the first."""
    distances = style_distances(model, positive, reference, torch.cat(list(tries)), layers).reshape(len(tries), -1)
    return (1 - distances / distances[0].clamp(min=1e-12)).mean(1).tolist()


def gains(reference: torch.Tensor, tries: Sequence[torch.Tensor]) -> list[float]:
    """The same by the latents alone."""
    plain = _flat(tries[0])
    return [float(effect_of(plain, _flat(each), _flat(reference)).gain.mean()) for each in tries]


def contents(tries: Sequence[torch.Tensor]) -> list[float]:
    """How much of the layout of the first of tries [B, C, (1,) h, w] is left in each."""
    plain = _flat(tries[0])
    return [1 - float(effect_of(plain, _flat(each), plain).loss.mean()) for each in tries]


def _flat(latents: torch.Tensor) -> torch.Tensor:
    """[B, C, h, w] of latents that may have an axis of frames."""
    return latents.flatten(2, 3) if latents.ndim == 5 else latents


def _by_network(network: Any, picture: torch.Tensor, tiles: Sequence[torch.Tensor]) -> tuple[list[float], list[float]]:
    """Style and content by a vision network: how near the tries are to the reference, and to the first of them."""

    def seen(pictures: torch.Tensor) -> torch.Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        found = network.encode_image(pictures[:MOST_LOOKED_AT])["image_embeds"].float()
        return torch.nn.functional.normalize(found.flatten(1), dim=1)

    reference, plain = seen(picture[:1]), seen(tiles[0])
    start = (plain * reference).sum(1)
    style, content = [0.0], [1.0]
    for tile in tiles[1:]:
        found = seen(tile)
        style.append(float((((found * reference).sum(1) - start) / (1 - start).clamp(min=1e-6)).mean()))
        content.append(float((found * plain).sum(1).mean()))
    return style, content


NODES = [CBSuggestAmount]
