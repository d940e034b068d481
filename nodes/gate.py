"""Nodes that choose layers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io
from PIL import Image

from ..engine.gates import (
    OPERATIONS,
    POLICIES,
    CombinedGate,
    LayerGate,
    Policy,
    RankedGate,
    ScaledGate,
    UnknownPolicy,
    WindowedGate,
    WrittenGate,
    pinned,
    policy_of,
)
from ..engine.gates.policies import Parameter, parameters
from ..engine.grammar import GrammarError, Selection, parse
from ..engine.profile import NoContentScores, SensitivityProfile
from ..render.gate_map import Facts, draw, facts, sampled, schedule_of, spread_sigmas
from ..render.gate_map import summary as describe
from .profile import Profile
from .schema import Schema, found_by
from .shown import layer_map, summary, timed
from .widgets import advanced, in_window, out_of_range, window_in_words, window_inputs

CATEGORY = "conditional balance/gate"
Gate = io.Custom("LAYER_GATE")
MOST_LAYERS = 1000  # more than any model has

GRAMMAR = (
    "o1.4-9 is transformers 4 to 9 of output block 1; i5 a whole block; o3-5 several; m the middle; all everything; "
    "-m0 takes layers away; q:o1 acts on queries only; o1:0.5 at half weight. Separate entries with commas."
)


NO_CONTENT = (
    "'profile' holds no content scores: measure it on a crossed series, the same subjects in every style, with Profile "
    "Sensitivity, or choose another 'policy'."
)


def _problem(text: str | None) -> str | None:
    """What is wrong with a grammar text; None when it reads well or comes through a link."""
    try:
        parse(text or "")
    except GrammarError as error:
        return str(error)
    return None


def _ranking_inputs() -> list[io.Input]:
    """How the ranking is turned into a selection."""
    return [
        io.Float.Input(
            "lambda",
            display_name="style amount",
            default=0.43,
            min=0.0,
            max=1.0,
            step=0.01,
            display_mode=io.NumberDisplay.slider,
            tooltip="How much style comes in, as lambda, the share of the layers kept: 0.43 keeps 30 of SDXL's 70 and "
            "balances style with content. 0 keeps none, 1 all. Above 0.5 style starts to push the prompt aside.",
        ),
        io.Combo.Input(
            "policy",
            options=list(POLICIES),
            default="per-step",
            tooltip=" ".join(f"{name}: {policy.about}." for name, policy in POLICIES.items()),
        ),
    ]


def _policy_inputs() -> dict[str, io.Input]:
    """A widget for every parameter of a policy, by its name; the first two have had their places since 0.1.0."""
    return {each.name: _parameter_input(each) for policy in POLICIES.values() for each in parameters(policy)}


def _parameter_input(of: Parameter) -> io.Input:
    kind: Any = io.Int if isinstance(of.default, int) else io.Float
    about = f"{of.about} Other policies ignore it."
    optional = of.name not in ("softness", "random_seed")
    return advanced(
        kind.Input(of.name, optional=optional, default=of.default, min=of.low, max=of.high, step=of.step, tooltip=about)
    )


def _hand_inputs() -> list[io.Input]:
    """What wins over the ranking."""
    return [
        io.String.Input("pin", default="", tooltip=f"Layers that always take part, whatever their rank. {GRAMMAR}"),
        io.String.Input(
            "exclude",
            default="",
            tooltip=f"Layers that never take part, such as m for the middle block. {GRAMMAR}",
        ),
    ]


def _count() -> io.Input:
    return advanced(
        io.Int.Input(
            "number_of_layers",
            optional=True,
            default=0,
            min=0,
            max=MOST_LAYERS,
            tooltip="Keeps this many layers instead of a share: 30 keeps the first 30. 0 leaves it to the style "
            "amount. Use it to compare models or policies at an equal count.",
        )
    )


class CBSelectLayers(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        of_policies = _policy_inputs()
        return Schema(
            node_id="CBSelectLayers",
            display_name="Select Layers (style amount, lambda)",
            category=CATEGORY,
            search_aliases=found_by(
                "lambda", "style amount", "style strength", "choose blocks", "block weight", "attention layers"
            ),
            description="Keeps the attention layers that a sensitivity profile ranks first. Only these will take part.",
            inputs=[
                Profile.Input(
                    "profile",
                    tooltip="The ranking: load a shipped one or measure your own model's. Must fit the model.",
                ),
                *_ranking_inputs(),
                of_policies.pop("softness"),
                *window_inputs(),
                *_hand_inputs(),
                of_policies.pop("random_seed"),
                _count(),
                *of_policies.values(),
            ],
            outputs=[
                Gate.Output(
                    display_name="gate", tooltip="The selection, for Style Injection and other nodes that act by layer."
                ),
                io.Image.Output(display_name="layer map", tooltip="The selection at every noise level."),
                io.String.Output(display_name="summary", tooltip="The selection in plain words."),
            ],
        )

    @classmethod
    def validate_inputs(cls, pin: str | None = None) -> bool | str:
        # One name only: core reports a problem once for every name that is declared here. execute() reads the others.
        # None where it comes through a link, or where it is missing, which core says by itself.
        problem = _problem(pin)
        return True if problem is None else f"'pin': {problem}"

    @classmethod
    @partial(timed, check=lambda node, values: problem_with(values))
    def execute(cls, profile: SensitivityProfile, **values: Any) -> io.NodeOutput:
        gate, everywhere = chosen_layers(profile, values)
        words = in_words(gate, everywhere, profile)
        return io.NodeOutput(gate, _picture(gate, profile), words, ui=summary(words) | layer_map(profile))


def problem_with(values: Mapping[str, Any]) -> str | None:
    """What is wrong with widget values of Select Layers, where core has not looked at them; None when all is well.

    A lambda above 1 is a number of layers, as in 0.1.0: links may still bring one.
    """
    amount = values.get("lambda")
    within = {**values} | ({"lambda": 1.0} if isinstance(amount, int | float) and 1 < amount <= MOST_LAYERS else {})
    if problem := out_of_range(CBSelectLayers.define_schema().inputs, within):
        return problem
    problems = {name: _problem(values.get(name)) for name in ("pin", "exclude")}
    return next((f"'{name}': {problem}" for name, problem in problems.items() if problem), None)


def chosen_layers(profile: SensitivityProfile, values: Mapping[str, Any]) -> tuple[LayerGate, LayerGate]:
    """The gate that widget values of Select Layers make of a profile, and the same gate without its window.

    Raises ValueError when a value is wrong.
    """
    amount = _amount(values, len(profile.layers))
    try:
        ranked = RankedGate(profile, amount, _policy(values))
    except NoContentScores as error:
        raise ValueError(NO_CONTENT) from error
    everywhere = pinned(ranked, _read("pin", values), _read("exclude", values))
    return in_window(everywhere, values["start_percent"], values["end_percent"]), everywhere


def _policy(values: Mapping[str, Any]) -> Policy:
    try:
        return policy_of(values["policy"], values)
    except UnknownPolicy as error:
        raise ValueError(f"'policy' is '{error.name}': choose one of {', '.join(POLICIES)}.") from error


def _amount(values: Mapping[str, Any], layers: int) -> float:
    """Lambda, the part of the layers kept; half a layer more than the number, so that rounding cannot drop one."""
    number = values.get("number_of_layers") or 0
    return min((number + 0.5) / layers, 1.0) if number else values["lambda"]


def _read(name: str, values: Mapping[str, Any]) -> Selection:
    try:
        return parse(values[name])
    except GrammarError as error:
        raise ValueError(f"'{name}': {error}") from error


def in_words(gate: LayerGate, everywhere: LayerGate, profile: SensitivityProfile) -> str:
    """What a gate chooses inside its window."""
    words = describe(_facts(everywhere, profile))
    if isinstance(gate, WindowedGate):
        words += f" Only from {gate.start:.0%} to {gate.end:.0%} of the schedule."
    return words


def in_facts(gate: LayerGate, everywhere: LayerGate, profile: SensitivityProfile) -> dict[str, Any]:
    """The same for a front end to put into its own language; `start` and `end` are those of a window, "20%"."""
    window = (gate.start, gate.end) if isinstance(gate, WindowedGate) else ()
    ends = dict(zip(("start", "end"), (f"{each:.0%}" for each in window), strict=False))
    return _facts(everywhere, profile)._asdict() | ends


def _facts(everywhere: LayerGate, profile: SensitivityProfile) -> Facts:
    return facts(sampled(everywhere, profile.layers, _spread(profile), schedule_of(profile)), profile.layers)


def _picture(gate: LayerGate, profile: SensitivityProfile) -> torch.Tensor:
    """The layer map [1, H, W, 3] of a gate."""
    sigmas = _spread(profile)
    return _image(draw(sampled(gate, profile.layers, sigmas, schedule_of(profile)), profile.layers, sigmas))


def _spread(profile: SensitivityProfile) -> list[float]:
    return spread_sigmas(float(profile.sigmas[0]), float(profile.sigmas[-1]), profile.noise)


def _image(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture, dtype=np.float32) / 255)[None]


class CBLayerGate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBLayerGate",
            display_name="Layer Gate (layers by hand)",
            category=CATEGORY,
            search_aliases=found_by("block weight", "choose blocks", "attention layers", "layers by hand"),
            description="Chooses attention layers by hand.",
            inputs=[
                io.String.Input(
                    "layers",
                    default="o1.4-9, o2",
                    multiline=True,
                    tooltip=f"The layers that take part. {GRAMMAR} For SDXL o1.4-9, o2 is where style lives; SD1.5 "
                    "has one transformer per block, so write o3-8.",
                ),
                *window_inputs(),
            ],
            outputs=[Gate.Output(display_name="gate", tooltip="The selection, for nodes that act by layer.")],
        )

    @classmethod
    def validate_inputs(cls, layers: str | None = None) -> bool | str:
        problem = _problem(layers)
        return True if problem is None else f"'layers': {problem}"

    @classmethod
    @timed
    def execute(cls, layers: str, start_percent: float, end_percent: float) -> io.NodeOutput:
        gate = in_window(WrittenGate(_read("layers", {"layers": layers})), start_percent, end_percent)
        named = " ".join(layers.split()) or "none"
        return io.NodeOutput(gate, ui=summary(f"Layers {named}, {window_in_words(start_percent, end_percent)}."))


COMBINED = {
    "and": "The layers that are open in both gates.",
    "or": "The layers that are open in either gate.",
    "minus": "The layers that are open in the first gate and not in the second.",
}


class CBCombineGates(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBCombineGates",
            display_name="Combine Gates",
            category=CATEGORY,
            search_aliases=found_by("merge gates", "add layers", "subtract layers"),
            description="Makes one gate of two, or weakens one.",
            inputs=[
                Gate.Input("gate", tooltip="The gate to start from."),
                io.Combo.Input(
                    "operation",
                    options=[*OPERATIONS, "scale"],
                    default="and",
                    tooltip="and: layers open in both gates. or: open in either. minus: open in the first and not "
                    "in the second. scale: the first gate's weights times the factor.",
                ),
                io.Float.Input(
                    "factor",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Used by scale only: 0.5 halves every weight, 0 closes the gate, 1 changes nothing.",
                ),
                Gate.Input("other", optional=True, tooltip="The second gate. Scale does not need one."),
            ],
            outputs=[Gate.Output(display_name="gate", tooltip="The combined gate.")],
        )

    @classmethod
    @timed
    def execute(cls, gate: LayerGate, operation: str, factor: float, other: LayerGate | None = None) -> io.NodeOutput:
        if operation == "scale":
            return io.NodeOutput(ScaledGate(gate, factor), ui=summary(f"The gate's weights times {factor:g}."))
        if other is None:
            raise ValueError(f"'other' is empty, but '{operation}' needs two gates: connect one, or choose scale.")
        return io.NodeOutput(CombinedGate(gate, other, operation), ui=summary(COMBINED[operation]))


NODES = [CBSelectLayers, CBLayerGate, CBCombineGates]
