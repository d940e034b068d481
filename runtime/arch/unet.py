"""UNets: SD1.5, SDXL and their kin. Layers are named as ComfyUI's patch keys are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from comfy.ldm.modules.attention import BasicTransformerBlock, SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel, Upsample
from comfy.model_patcher import ModelPatcher
from einops import rearrange
from torch import nn

from ...engine.layers import LayerId
from ..runs.keys import grid_of, rows_of, with_rows
from ..runs.loaded import own_classes
from .attention import ReplaceFunction, plain_attention, with_attention_replaced
from .base import Architecture, Attend, Operator, Projected, Receive, parameters_under, removed_afterwards


class UNet(Architecture):
    """The self-attention (attn1) of every transformer block of a UNet that has one (SD1.5 has 16, SDXL 70)."""

    name = "UNet"

    @classmethod
    def matches(cls, network: nn.Module) -> bool:
        return isinstance(network, UNetModel)

    @functools.cached_property
    def blocks(self) -> dict[LayerId, BasicTransformerBlock]:
        """The transformer blocks by layer, in forward order."""
        return dict(transformer_blocks(self.network))

    @property
    def layers(self) -> tuple[LayerId, ...]:
        return tuple(self.blocks)

    def projection(self, layer: LayerId, feature: str) -> str:
        return f"{self._prefix(layer)}attn1.to_{feature}.weight"

    def parameters(self, layer: LayerId) -> tuple[str, ...]:
        return parameters_under(self.network, self._prefix(layer))

    def subject_layers(self, levels: int) -> tuple[LayerId, ...]:
        """Layers of the way up at its `levels` finest resolutions that have attention: where subjects are drawn.

        One level is SD1.5's o9-11 and SDXL's o3-5, as Grad-SAM's paper takes the last layers only.
        """
        doublings, level = {}, 0
        for number, modules in enumerate(self.network.output_blocks):
            doublings[number] = level
            level += any(isinstance(module, Upsample) for module in modules)
        outputs = [layer for layer in self.layers if layer.block == "output"] or list(self.layers)
        found = sorted({doublings.get(layer.number, 0) for layer in outputs})[-levels:]
        return tuple(layer for layer in outputs if doublings.get(layer.number, 0) in found)

    def writing(self, layer: LayerId) -> Callable[[torch.Tensor], torch.Tensor]:
        attn2 = self.blocks[layer].attn2
        assert attn2 is not None  # a layer that has just attended to text
        return attn2.to_out

    @contextmanager
    def recording(self, features: Sequence[str], receive: Receive) -> Iterator[None]:
        with removed_afterwards([]) as handles:
            for layer, block in self.blocks.items():
                for feature in features:
                    projection = getattr(block.attn1, f"to_{feature}")
                    handles.append(projection.register_forward_hook(_giving(receive, layer, feature)))
            yield

    @contextmanager
    def intercepted(self, options: dict[str, Any], operators: Mapping[LayerId, Operator]) -> Iterator[dict[str, Any]]:
        make = {layer: functools.partial(_replacement, operator) for layer, operator in operators.items()}
        yield with_attention_replaced(options, "attn1", make)

    def replaced(self, options: dict[str, Any]) -> tuple[LayerId, ...]:
        found = options.get("patches_replace", {}).get("attn1", {})
        return tuple(layer for layer in self.layers if layer in found or layer[:2] in found)

    def _prefix(self, layer: LayerId) -> str:
        return self._prefixes[self.blocks[layer]]

    @functools.cached_property
    def _prefixes(self) -> dict[nn.Module, str]:
        return {module: f"{name}." for name, module in self.network.named_modules()}


def _giving(receive: Receive, layer: LayerId, feature: str) -> Callable[[nn.Module, Any, torch.Tensor], None]:
    def hook(module: nn.Module, args: Any, tokens: torch.Tensor) -> None:
        receive(layer, feature, tokens)

    return hook


def _replacement(operator: Operator, earlier: ReplaceFunction | None) -> ReplaceFunction:
    def replaced(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, extra_options: dict[str, Any]) -> torch.Tensor:
        parts = _parts_of_pictures(q, k)
        whole = q if parts == 1 else rearrange(q, "(row part) token c -> row (part token) c", part=parts)
        plain = through = _of_whole_pictures(functools.partial(_plain, extra_options), parts)
        if earlier is not None:
            through = _of_whole_pictures(functools.partial(_through, earlier, extra_options), parts)
        projected = Projected(
            whole,
            k,
            v,
            through,
            grid=(1, *grid_of(extra_options)),
            whole=earlier is not None,
            earlier=earlier,
            underneath=plain,
            changed=not len(whole) == len(k) == rows_of(extra_options),
            reordered=parts > 1,
        )
        out = operator(projected)
        return out if parts == 1 else rearrange(out, "row (part token) c -> (row part) token c", part=parts)

    return replaced


def _plain(
    options: dict[str, Any],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    rows: Any = None,
) -> torch.Tensor:
    return plain_attention(q, k, v, bias, options)


def _through(
    earlier: ReplaceFunction,
    options: dict[str, Any],
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    rows: Any = None,
) -> torch.Tensor:
    return earlier(q, k, v, options if rows is None else with_rows(options, len(rows)))


def _of_whole_pictures(attend: Attend, parts: int) -> Attend:
    return functools.partial(_by_part, attend, parts) if parts > 1 else attend


def _parts_of_pictures(q: torch.Tensor, k: torch.Tensor) -> int:
    """Into how many rows an attn1 patch in front of us has cut each picture's queries; 1 for none.

    HyperTile cuts queries only. ComfyUI's attention then takes as many rows of keys, each a stretch of a picture's.
    """
    parts = q.shape[0] // k.shape[0]
    return parts if parts > 1 and q.shape[1] * parts == k.shape[1] and q.shape[0] == k.shape[0] * parts else 1


def _by_part(
    attend: Attend,
    parts: int,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    rows: Any = None,
) -> torch.Tensor:
    """Attention of whole pictures, part by part: each sees its own stretch of keys, and the same one of a reference."""
    sizes = {"part": parts, "share": k.shape[1] // q.shape[1]}
    q = rearrange(q, "row (part token) c -> (row part) token c", part=parts)
    k, v = (rearrange(x, "row (share part token) c -> (row part) (share token) c", **sizes) for x in (k, v))
    if bias is not None:  # the same for every part
        bias = rearrange(bias, "one (share part token) -> part one (share token)", **sizes)[0]
    return rearrange(attend(q, k, v, bias, rows), "(row part) token c -> row (part token) c", part=parts)


def unet_of(model: ModelPatcher, what: str = "model") -> UNetModel:
    """The UNet inside a MODEL, for what is truly about UNets (skip connections, cross-attention by resolution).

    `what` is the name of the node's input, for the error.

    Raises ValueError for models of another architecture (DiT), whose layers have other names.
    """
    unet = model.model.diffusion_model
    with own_classes(model):
        served = isinstance(unet, UNetModel)
    if not served:
        raise ValueError(
            f"'{what}' is a {type(unet).__name__}, not a UNet: "
            "connect a UNet model such as SD1.5, SDXL or a finetune of either."
        )
    return unet


def attention_layers(model: ModelPatcher, what: str = "model") -> dict[LayerId, BasicTransformerBlock]:
    """Every transformer block of the UNet by its layer, in forward order (SD1.5 has 16, SDXL 70).

    Raises ValueError when the model is no UNet or has no attention.
    """
    with own_classes(model):
        layers = dict(transformer_blocks(unet_of(model, what)))
    if not layers:
        raise ValueError(f"'{what}' has no attention layers: connect a UNet with attention, such as SD1.5 or SDXL.")
    return layers


def transformer_blocks(unet: UNetModel) -> Iterator[tuple[LayerId, BasicTransformerBlock]]:
    """Layers and transformer blocks of a bare UNet, in forward order.

    Blocks whose attn1 attends to text as well (SDXS has some) share nothing with other pictures and are left out.
    """
    for block, number, modules in _parts(unet):
        for module in modules:
            if isinstance(module, SpatialTransformer):
                for index, transformer in enumerate(cast("Iterable[BasicTransformerBlock]", module.transformer_blocks)):
                    if not getattr(transformer, "disable_self_attn", False):  # copies that packs bring may not say
                        yield LayerId(block, number, index), transformer


def _parts(unet: UNetModel) -> Iterator[tuple[str, int, Any]]:
    """Part, number and block; a block is a sequence of modules, of which `nn.Module` knows nothing."""
    yield from (("input", number, modules) for number, modules in enumerate(unet.input_blocks))
    if unet.middle_block is not None:
        yield "middle", 0, unet.middle_block
    yield from (("output", number, modules) for number, modules in enumerate(unet.output_blocks))
