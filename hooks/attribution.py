"""Attribution of a subject at one noise level: four methods over one repeatable conditional prediction."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy import model_management
from comfy.ldm.modules.attention import BasicTransformerBlock
from comfy.ldm.modules.diffusionmodules.openaimodel import Upsample
from comfy.model_base import BaseModel
from comfy.model_patcher import ModelPatcher
from einops import rearrange

from ..engine.attribution import (
    COARSE_STEP,
    METHODS,
    STEPS,
    columns,
    combined,
    contrasted,
    grad_sam,
    gradients_of,
    on_grid,
    propagated,
    sign_probes,
    split_heads,
    spoken,
    strength,
)
from ..engine.grammar import parse
from ..engine.layers import LayerId
from ..engine.subject import Phrase
from .attention import ReplaceFunction, plain_attention, with_attention_replaced
from .attribution_gradients import backward, gradients, with_sdpa
from .model_layers import attention_layers, unet_of
from .subject import Subject

DEFAULT = "auto"
WEIGHTINGS = ("uniform", "by layer", "by head")


@dataclass(frozen=True)
class AttributionSettings:
    """How a subject is found. `layers` is the gate grammar or "auto"; `probes` are backward passes of `grad_sam`.

    `weighting` of layers and heads in the other maps' mean: all alike, or by how far scaling them moves the prediction.
    `propagation` is how many times the map spreads along fine self-attention.
    """

    method: str = "jvp"
    layers: str = DEFAULT
    weighting: str = "uniform"
    propagation: int = 0
    probes: int = 2

    def __post_init__(self) -> None:
        for name, value, known in (("method", self.method, METHODS), ("weighting", self.weighting, WEIGHTINGS)):
            if value not in known:
                raise ValueError(f"'{name}' is '{value}'; choose one of {', '.join(known)}.")


@dataclass(frozen=True)
class Layers:
    """The cross-attention layers that are asked, with their weights, and the self-attention layers that spread."""

    blocks: Mapping[LayerId, BasicTransformerBlock]
    asked: Mapping[LayerId, float]
    spreading: tuple[LayerId, ...]


@dataclass(frozen=True)
class Prediction:
    """The conditional prediction of a run at one noise level, which can be made again with other options.

    `predict` takes transformer_options and returns x0 [B, C, h, w]; `known` is what it returned under `options`, where
    the run has already asked. `texts` gives the number of tokens of each prompt that holds the subject's text, by
    ComfyUI's id for it. `ran` collects the cross-attention layers that were asked and did run.
    """

    predict: Callable[[dict[str, Any]], torch.Tensor]
    options: dict[str, Any]
    known: torch.Tensor | None
    x: torch.Tensor
    sigma: torch.Tensor
    texts: Mapping[Any, int]
    precision: torch.dtype
    ran: set[LayerId] = field(default_factory=set)

    @functools.cached_property
    def base(self) -> torch.Tensor:
        """The prediction as it is."""
        return self.predict(self.options) if self.known is None else self.known

    def noise(self, denoised: torch.Tensor) -> torch.Tensor:
        """The predicted noise, whatever the model predicts: (x - x0) / sigma."""
        return (self.x - denoised) / self.sigma.reshape(-1, 1, 1, 1)


@dataclass(frozen=True)
class Found:
    """Maps [subjects, B, h, w], the method that made them, and a word to the user when it is not the one asked for."""

    maps: torch.Tensor
    method: str
    note: str = ""


def chosen_layers(model: ModelPatcher, settings: AttributionSettings) -> Layers:
    """The layers that a setting names. Raises GrammarError, or ValueError when it names none."""
    blocks = attention_layers(model)
    names = tuple(blocks)
    if settings.layers.strip() in ("", DEFAULT):
        asked = dict.fromkeys(_finest(model, names, 1 if settings.method == "grad_sam" else 2), 1.0)
    else:
        weights = parse(settings.layers).weights(names).amax(0).tolist()
        asked = {layer: weight for layer, weight in zip(names, weights, strict=True) if weight > 0}
    if not asked:
        raise ValueError("'layers' chooses no layer: write some, such as o9-11, or auto.")
    return Layers(blocks, asked, _finest(model, names, 1)[-1:] if settings.propagation else ())


def _finest(model: ModelPatcher, layers: Sequence[LayerId], levels: int) -> tuple[LayerId, ...]:
    """Layers of the UNet's way up at its `levels` finest resolutions that have attention: where subjects are drawn.

    One level is SD1.5's o9-11 and SDXL's o3-5, as the paper takes the last layers only.
    """
    doublings, level = {}, 0
    for number, modules in enumerate(unet_of(model).output_blocks):
        doublings[number] = level
        level += any(isinstance(module, Upsample) for module in modules)
    outputs = [layer for layer in layers if layer.block == "output"] or list(layers)
    found = sorted({doublings.get(layer.number, 0) for layer in outputs})[-levels:]
    return tuple(layer for layer in outputs if doublings.get(layer.number, 0) in found)


def texts_of(prompts: Sequence[dict[str, Any]], subject: Subject, method: str) -> dict[Any, int]:
    """Which of a run's positive prompts hold the subject's text, and how many tokens each has.

    Raises ValueError when none does, or when one is confined to an area and the method cannot see where.
    """
    text = subject.text
    found = [prompt for prompt in prompts if _begins_with(prompt.get("cross_attn"), text)]
    if not found:
        raise ValueError(
            "'subject' was read from another prompt than the sampler's positive one: connect the conditioning of the "
            "same Subject node to 'positive'."
        )
    if method != "jvp" and any("area" in prompt for prompt in found):
        raise ValueError(f"'method' {method} cannot tell where a prompt's area lies: choose jvp, or remove the area.")
    return {prompt["uuid"]: prompt["cross_attn"].shape[1] for prompt in found}


def _begins_with(context: torch.Tensor | None, text: torch.Tensor) -> bool:
    if context is None or context.shape[1] < text.shape[1] or context.shape[2] != text.shape[2]:
        return False
    start = context[:, : text.shape[1]]
    return bool((start.to(text) == text).all())


def precision_of(model: BaseModel) -> torch.dtype:
    """What the UNet computes in."""
    return model.manual_cast_dtype or model.get_dtype()


def attribute(prediction: Prediction, subject: Subject, layers: Layers, settings: AttributionSettings) -> Found:
    """The importance of every subject at every position of the latent.

    Raises ValueError when none of the chosen layers ran.
    """
    spread = _Spread(prediction, layers, settings.propagation)
    phrases = subject.phrases + subject.surroundings
    maps, method, note = _maps(prediction, phrases, layers, settings, spread)
    maps = contrasted(maps[: len(subject.phrases)], maps[len(subject.phrases) :])
    silent = [str(layer) for layer in layers.asked if layer not in prediction.ran]
    if len(silent) == len(layers.asked):
        raise ValueError("'layers' names layers that never ran: another node replaces or skips them; choose others.")
    if silent:
        note = " ".join((note, f"Chosen but never run: {', '.join(silent)}.")).strip()
    return Found(spread.over(maps), method, note)


def _maps(
    prediction: Prediction,
    phrases: Sequence[Phrase],
    layers: Layers,
    settings: AttributionSettings,
    spread: _Spread,
) -> tuple[torch.Tensor, str, str]:
    """Maps, the method that made them and a note; without gradients `grad_sam` gives way to `jvp`."""
    if settings.method == "jvp":
        return by_scaling(prediction, phrases, layers, spread), "jvp", ""
    if settings.method != "grad_sam":
        return by_attention(prediction, phrases, layers, settings, spread), settings.method, ""
    try:
        return by_gradient(prediction, phrases, layers, settings, spread), "grad_sam", ""
    except (RuntimeError, NotImplementedError) as problem:
        if isinstance(problem, model_management.OOM_EXCEPTION):
            raise
        note = f"grad_sam found no gradients here ({_first_line(problem)}); jvp was used instead."
        return by_scaling(prediction, phrases, layers, spread), "jvp", note


def _first_line(problem: Exception) -> str:
    return str(problem).strip().split("\n")[0].rstrip(".")


@dataclass(frozen=True)
class _Rows:
    """The pictures of one prompt inside a layer's call, and where a phrase's tokens stand in its keys."""

    rows: slice
    keys: int
    tokens: int

    def positions(self, phrase: Phrase) -> list[int]:
        """ComfyUI repeats a short prompt when it runs beside a long one; the tokens then stand there several times."""
        starts = range(0, self.keys, self.tokens)
        return [start + position for start in starts for position in phrase.positions]


def _pictures(prediction: Prediction, q: torch.Tensor, k: torch.Tensor, options: dict[str, Any]) -> Iterator[_Rows]:
    """The chunks of a call that run the subject's text; rows behind the pictures are other nodes' own."""
    ids = options.get("uuids", ())
    for place, name in enumerate(ids):
        if name in prediction.texts:
            start = place * (q.shape[0] // len(ids))
            yield _Rows(slice(start, start + prediction.x.shape[0]), k.shape[1], prediction.texts[name])


def _attend(
    earlier: ReplaceFunction | None, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict[str, Any]
) -> torch.Tensor:
    return plain_attention(q, k, v, None, options) if earlier is None else earlier(q, k, v, options)


def _grid(options: dict[str, Any]) -> tuple[int, int]:
    return tuple(options["activations_shape"][2:4])


# jvp ----------------------------------------------------------------------------------------------------------------


def by_scaling(
    prediction: Prediction, phrases: Sequence[Phrase], layers: Layers, spread: _Spread | None = None
) -> torch.Tensor:
    """How far the predicted noise moves when a phrase's columns of attention are turned up: |d eps / d a| at a = 1.

    A finite difference in the columns' common factor a, the softmax left as it is: one forward pass for each phrase,
    any backend, and every output's own derivative at once (the sum over heads and queries of W dL/dW).
    """
    step = STEPS.get(prediction.precision, COARSE_STEP)
    maps = []
    for phrase in phrases:
        scaled = _scaled(prediction, phrase, {layer: step * weight for layer, weight in layers.asked.items()})
        if spread is not None:
            scaled = spread.watching(scaled)
        moved = prediction.predict(scaled)
        maps.append(strength(prediction.noise(moved) - prediction.noise(prediction.base)) / step)
    return torch.stack(maps)


def _scaled(prediction: Prediction, phrase: Phrase, steps: Mapping[LayerId, float | torch.Tensor]) -> dict[str, Any]:
    """Options under which each layer says (1 + step) times what it says of the phrase; a step may differ by head."""

    def scaling(layer: LayerId, step: float | torch.Tensor, earlier: ReplaceFunction | None) -> ReplaceFunction:
        def replaced(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
            prediction.ran.add(layer)
            out = _attend(earlier, q, k, v, extra).clone()
            for part in _pictures(prediction, q, k, extra):
                rows, heads, positions = part.rows, extra["n_heads"], part.positions(phrase)
                column = columns(q[rows], k[rows], positions, heads)
                column = column * (step.to(column)[:, None, None] if isinstance(step, torch.Tensor) else step)
                out[rows] += spoken(column, v[rows], positions, heads)
            return out

        return replaced

    make = {layer: functools.partial(scaling, layer, step) for layer, step in steps.items()}
    return with_attention_replaced(prediction.options, "attn2", make)


# attention and value_norm -------------------------------------------------------------------------------------------


def by_attention(
    prediction: Prediction,
    phrases: Sequence[Phrase],
    layers: Layers,
    settings: AttributionSettings,
    spread: _Spread | None = None,
) -> torch.Tensor:
    """Attention to a phrase, as DAAM; with `value_norm` each token counts by the length of what it says.

    One more conditional pass, in which the layers are watched and act as always.
    """
    seen = _Columns()
    make = {
        layer: functools.partial(_watching, prediction, phrases, seen, layer, _value_norms(layers, layer, settings))
        for layer in layers.asked
    }
    options = with_attention_replaced(prediction.options, "attn2", make)
    prediction.predict(options if spread is None else spread.watching(options))
    return seen.combined(prediction, phrases, layers, settings)


@dataclass
class _Columns:
    """Maps [subjects, B, heads, h, w] by layer, averaged over the calls in which they were seen."""

    found: dict[LayerId, list[torch.Tensor]] = field(default_factory=dict)

    def add(self, layer: LayerId, maps: torch.Tensor) -> None:
        self.found.setdefault(layer, []).append(maps)

    def combined(
        self, prediction: Prediction, phrases: Sequence[Phrase], layers: Layers, settings: AttributionSettings
    ) -> torch.Tensor:
        """One map [subjects, B, h, w] over all layers and heads."""
        if not self.found:
            return prediction.x.new_zeros(len(phrases), len(prediction.x), *prediction.x.shape[2:])
        maps = {layer: torch.stack(parts).mean(0) for layer, parts in self.found.items()}
        heads = {layer: part.shape[2] for layer, part in maps.items()}
        weights = _weights(prediction, phrases, layers, settings, heads)
        size = tuple(prediction.x.shape[2:])
        return torch.stack(
            [
                combined([maps[layer][number] for layer in maps], [weights[layer] for layer in maps], size)
                for number in range(len(phrases))
            ]
        )


def _watching(
    prediction: Prediction,
    phrases: Sequence[Phrase],
    seen: _Columns,
    layer: LayerId,
    lengths: Callable[[torch.Tensor, Sequence[int], int], torch.Tensor] | None,
    earlier: ReplaceFunction | None,
) -> ReplaceFunction:
    def replaced(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
        prediction.ran.add(layer)
        for part in _pictures(prediction, q, k, extra):
            maps = []
            for phrase in phrases:
                positions = part.positions(phrase)
                column = columns(q[part.rows], k[part.rows], positions, extra["n_heads"])
                if lengths is not None:
                    column = column * lengths(v[part.rows], positions, extra["n_heads"])
                maps.append(on_grid(column.sum(-1), _grid(extra)))
            seen.add(layer, torch.stack(maps))
        return _attend(earlier, q, k, v, extra)

    return replaced


def _value_norms(
    layers: Layers, layer: LayerId, settings: AttributionSettings
) -> Callable[[torch.Tensor, Sequence[int], int], torch.Tensor] | None:
    """Length of V_k W_o of each head alone [rows, heads, 1, positions]; None for plain attention.

    The layer itself projects, so that LoRA, casts and offloaded weights count.
    """
    if settings.method != "value_norm":
        return None
    project = layers.blocks[layer].attn2.to_out

    def lengths(v: torch.Tensor, positions: Sequence[int], heads: int) -> torch.Tensor:
        values = split_heads(v, heads)[:, :, list(positions)]
        alone = torch.eye(heads, dtype=v.dtype, device=v.device)[:, None, :, None] * rearrange(
            values, "rows heads tokens channels -> rows 1 tokens heads channels"
        )
        alone = rearrange(alone, "rows head tokens heads channels -> rows (head tokens) (heads channels)")
        said = project(alone) - project(torch.zeros_like(alone[:, :1]))  # without the bias
        return rearrange(said.float().norm(dim=-1), "rows (head tokens) -> rows head 1 tokens", head=heads)

    return lengths


# head and layer weights ---------------------------------------------------------------------------------------------


def _weights(
    prediction: Prediction,
    phrases: Sequence[Phrase],
    layers: Layers,
    settings: AttributionSettings,
    heads: Mapping[LayerId, int],
) -> dict[LayerId, torch.Tensor]:
    """Weights [heads] of each layer: those written by hand, times what scaling the layer or the head moves."""
    weights = {layer: torch.full((count,), layers.asked[layer]) for layer, count in heads.items()}
    if settings.weighting == "uniform":
        return weights
    measure = layer_sensitivity if settings.weighting == "by layer" else head_sensitivity
    return {layer: weight * measure(prediction, phrases, layer, len(weight)).cpu() for layer, weight in weights.items()}


def layer_sensitivity(prediction: Prediction, phrases: Sequence[Phrase], layer: LayerId, heads: int) -> torch.Tensor:
    """How far the predicted noise moves with this layer's columns alone [heads], alike for all: one pass a phrase."""
    return _moved(prediction, phrases, layer, torch.ones(heads)).expand(heads)


def head_sensitivity(prediction: Prediction, phrases: Sequence[Phrase], layer: LayerId, heads: int) -> torch.Tensor:
    """How far the predicted noise moves with each head's columns alone [heads]: one pass a head and phrase."""
    return torch.stack([_moved(prediction, phrases, layer, one) for one in torch.eye(heads)])


def _moved(prediction: Prediction, phrases: Sequence[Phrase], layer: LayerId, heads: torch.Tensor) -> torch.Tensor:
    step = STEPS.get(prediction.precision, COARSE_STEP)
    changes = [
        prediction.predict(_scaled(prediction, phrase, {layer: step * heads})) - prediction.base for phrase in phrases
    ]
    return torch.stack(changes).float().norm() / step


# grad_sam -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Traced:
    """One layer's call inside the graph: its output, and what its columns need."""

    layer: LayerId
    output: torch.Tensor
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    heads: int
    grid: tuple[int, int]
    parts: tuple[_Rows, ...]


def by_gradient(
    prediction: Prediction,
    phrases: Sequence[Phrase],
    layers: Layers,
    settings: AttributionSettings,
    spread: _Spread | None = None,
    probes: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention to a phrase times the ReLU of its gradient, over random combinations of all outputs.

    The scalar is <probe, predicted noise>; probes are signs unless given [P, B, C, h, w]. One forward pass, of which
    only the part from the first chosen layer on is remembered, and one backward pass through that part for each probe.
    """
    traced: list[_Traced] = []
    make = {layer: functools.partial(_tracing, prediction, traced, layer) for layer in layers.asked}
    options = with_sdpa(with_attention_replaced(prediction.options, "attn2", make))
    with gradients():
        noise = prediction.noise(prediction.predict(options if spread is None else spread.watching(options)))
        if probes is None:
            probes = sign_probes(settings.probes, noise)
        found = backward(noise, probes, [call.output for call in traced])
    seen = _Columns()
    for call, gradient in zip(traced, found, strict=True):
        for part in call.parts:
            seen.add(call.layer, torch.stack([_saliency(call, part, gradient, phrase) for phrase in phrases]))
    return seen.combined(prediction, phrases, layers, settings)


def _tracing(
    prediction: Prediction, traced: list[_Traced], layer: LayerId, earlier: ReplaceFunction | None
) -> ReplaceFunction:
    def replaced(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
        prediction.ran.add(layer)
        out = _attend(earlier, q, k, v, extra)
        parts = tuple(_pictures(prediction, q, k, extra))
        if parts:
            if not out.requires_grad:
                out = out.detach().requires_grad_()  # the graph begins at the first chosen layer
            q, k, v = (x.detach() for x in (q, k, v))
            traced.append(_Traced(layer, out, q, k, v, extra["n_heads"], _grid(extra), parts))
        return out

    return replaced


def _saliency(call: _Traced, part: _Rows, gradient: torch.Tensor, phrase: Phrase) -> torch.Tensor:
    """[B, heads, h, w] of one phrase at one layer from dL/dO [P, rows, queries, channels]."""
    rows, positions = part.rows, part.positions(phrase)
    column = columns(call.q[rows], call.k[rows], positions, call.heads)
    slopes = gradients_of(gradient[:, rows], call.v[rows], positions, call.heads)
    return on_grid(grad_sam(column, slopes), call.grid)


# propagation --------------------------------------------------------------------------------------------------------


class _Spread:
    """Watches fine self-attention in whatever pass a method makes, then spreads the maps along it."""

    def __init__(self, prediction: Prediction, layers: Layers, times: int) -> None:
        self.prediction, self.layers, self.times = prediction, layers, times
        self.seen: dict[LayerId, tuple[torch.Tensor, torch.Tensor, int, tuple[int, int]]] = {}

    def watching(self, options: dict[str, Any]) -> dict[str, Any]:
        make = {layer: functools.partial(self._watch, layer) for layer in self.layers.spreading}
        return with_attention_replaced(options, "attn1", make) if self.times else options

    def over(self, maps: torch.Tensor) -> torch.Tensor:
        """Maps [subjects, B, h, w] after `times` steps, each the mean over the layers seen."""
        for _ in range(self.times if self.seen else 0):
            parts = [propagated(maps.transpose(0, 1), *layer) for layer in self.seen.values()]
            maps = torch.stack(parts).mean(0).transpose(0, 1)
        return maps

    def _watch(self, layer: LayerId, earlier: ReplaceFunction | None) -> ReplaceFunction:
        def replaced(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra: dict[str, Any]) -> torch.Tensor:
            for part in _pictures(self.prediction, q, k, extra):
                own = k[part.rows, : q.shape[1]]  # style sharing puts the reference's keys behind a picture's own
                self.seen[layer] = q[part.rows].detach(), own.detach(), extra["n_heads"], _grid(extra)
            return _attend(earlier, q, k, v, extra)

        return replaced
