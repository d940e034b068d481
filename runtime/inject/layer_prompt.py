"""Another prompt at gated cross-attention layers: one says what is drawn there, the run's own says the rest."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from comfy import utils
from comfy.model_patcher import ModelPatcher

from ...engine.gates import LayerGate
from ...engine.layers import LayerId
from ..arch.registry import architecture_of
from ..arch.unet import unet_of
from ..runs import injector
from ..runs.injector import Around, CalledLayers, Executor, Sampling
from ..runs.layout import Layout
from ..runs.loaded import sampling_of
from ..runs.model_call import ModelCall, brought
from ..runs.whose import whose

Patch = Callable[..., Any]
"""ComfyUI's attn2 patch: (hidden states, text, text for values, extra_options) -> the first three."""
Text = torch.Tensor
"""An encoded prompt [rows, tokens, width]."""


@dataclass(frozen=True)
class LayerPrompt(injector.Injector):
    """The text that the layers of a gate get instead of the run's positive prompt."""

    name: ClassVar[str] = "Layer prompt"

    gate: LayerGate
    text: Text
    layers: tuple[LayerId, ...] = ()

    def start(self, sampling: Sampling) -> _Run:
        return _Run(self, sampling)


def prompt_layers(model: ModelPatcher, prompt: LayerPrompt) -> ModelPatcher:
    """A clone of the model whose gated layers run another prompt; an empty gate samples the same bits.

    Raises ValueError when the model is no UNet, has other layers than the gate, or takes text of another width.
    """
    unet, layers = unet_of(model), architecture_of(model).layers
    sampling = sampling_of(model)
    prompt.gate.weights(float(sampling.sigma_max), layers, sampling.percent_to_sigma)
    modules: dict[str, Any] = dict(unet.named_modules())
    width = next(module.to_k.in_features for name, module in modules.items() if name.endswith("attn2"))
    if prompt.text.shape[-1] != width:
        raise ValueError(
            f"'conditioning' holds text of width {prompt.text.shape[-1]}, but this model reads {width}: encode it with "
            "the CLIP that came with this model."
        )
    return injector.inject(model, replace(prompt, layers=layers))


class _Run(injector.Run):
    def __init__(self, prompt: LayerPrompt, sampling: Sampling) -> None:
        super().__init__(sampling)
        self.prompt, self.called, self.heard = prompt, CalledLayers(prompt.layers), False
        self.deaf = ""

    def weights(self, sigma: float) -> dict[LayerId, float]:
        """The open layers at a noise level."""
        weights = self.prompt.gate.weights(sigma, self.prompt.layers, self.sampling.to_sigma).amax(0).tolist()
        return {layer: weight for layer, weight in zip(self.prompt.layers, weights, strict=True) if weight > 0}

    def opens(self, sigma: float) -> bool:
        return bool(self.weights(sigma))

    @property
    def windows(self) -> tuple[tuple[float, float], ...]:
        return self.prompt.gate.windows

    def at(self, sigma: float, positive: int) -> Around | None:
        opened = self.weights(sigma)
        self.called.opened.update(opened)
        return functools.partial(self._around_call, opened, positive) if opened else None

    def finish(self, samples: torch.Tensor) -> torch.Tensor:
        for layer in self.called.opened if self.deaf else ():
            self.called.leave_out(layer, self.deaf)
        self.called.report(self.sampling)
        return samples

    def _around_call(
        self, opened: Mapping[LayerId, float], positive: int, executor: Executor, call: ModelCall, layout: Layout
    ) -> torch.Tensor:
        if positive not in layout.kinds or call.c_crossattn is None:
            return call.run(executor)
        texts = _texts(call.c_crossattn, self.prompt.text, layout, positive)
        own, other = (brought(call, text) for text in texts)  # ComfyUI leaves prompts on the CPU up to here
        patches = call.options.get("patches", {})
        patch = functools.partial(_patch, opened, own, other, self.called)
        behind = tuple(patches.get("attn2_patch", ()))
        if behind and not self.heard:
            patch = functools.partial(self._through, patch, behind)
        patches = {**patches, "attn2_patch": [patch, *behind]}
        with self.called.during_call(opened, self.sampling):
            return replace(call, options={**call.options, "patches": patches}).run(executor)

    def _through(self, patch: Patch, behind: tuple[Patch, ...], *given: Any) -> Any:
        """At the first open layer: whether other packs' patches, which run behind this one, hand the text on at all."""
        put = patch(*given)
        if put[1] is not given[1] and not self.heard:
            self.heard = True
            with_ours, without = _after(behind, put, given), _after(behind, given, given)
            if all(map(torch.equal, with_ours, without)):
                self.deaf = f"did not read the other prompt: {' and '.join(map(whose, behind))} put another text there"
        return put


def _after(behind: tuple[Patch, ...], put: Sequence[Any], given: Sequence[Any]) -> tuple[Text, Text]:
    """The text for keys and for values after other packs' patches."""
    n, context, value = put[:3]
    for patch in behind:
        n, context, value = patch(n, context, value, given[3])
    return context, context if value is None else value


def _texts(own: Text, other: Text, layout: Layout, positive: int) -> tuple[Text, Text]:
    """The call's text and the same with `other` in the positive rows' place, both [rows, tokens, width].

    Texts of different length are repeated to a common one, as ComfyUI does: cross-attention gives the same for it.
    """
    tokens = math.lcm(own.shape[1], other.shape[1])
    own, other = (text.repeat(1, tokens // text.shape[1], 1) for text in (own, other.to(own)))
    pictures = utils.repeat_to_batch_size(other, layout.pictures)
    chunks = own.unflatten(0, (layout.chunks, layout.rows)).clone()
    for chunk, kind in enumerate(layout.kinds):
        if kind == positive:
            chunks[chunk, : layout.pictures] = pictures
    return own, chunks.flatten(0, 1)


def _patch(
    opened: Mapping[LayerId, float],
    own: Text,
    other: Text,
    called: CalledLayers,
    n: torch.Tensor,
    context: Text,
    value: Text,
    extra: dict[str, Any],
) -> tuple[torch.Tensor, Text, Text]:
    """ComfyUI's attn2 patch, before the projections: an open layer reads the other text, or a mixture of both."""
    block, number = extra["block"]
    layer = LayerId(block, number, extra["block_index"])
    weight = opened.get(layer, 0.0)
    if not weight:
        return n, context, value
    called.call(layer)
    text = (other if weight == 1 else torch.lerp(own, other, weight)).to(context)
    return n, text, text
