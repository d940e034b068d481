"""Who keeps a layer from running as the model's own: another pack's code in the place of a block or of a forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from ...engine.layers import UNET_BLOCKS, LayerId
from ..runs.whose import whose
from .base import Architecture, uncompiled

OWN = ("comfy", "torch")
"""Roots of the modules whose forwards are the model's own."""


def shadow(family: Architecture, layer: LayerId, options: Mapping[str, Any]) -> str | None:
    """Whose code stands in a layer's place, such as "forward of SomePack"; None where none can be seen.

    `options` are the transformer_options of the run, in which packs replace whole blocks of transformers.
    """
    blocks = options.get("patches_replace", {}).get("dit", {})
    whole = blocks.get(("single_block" if layer.block == "single" else "double_block", layer.number))
    if whole is not None and layer.block not in UNET_BLOCKS:
        return whose(whole)
    return next((found for module in _around(family, layer) if (found := foreign(module))), None)


def _around(family: Architecture, layer: LayerId) -> Iterator[nn.Module]:
    """The modules that lead to a layer, from the network to the one that projects its queries, as far as they go."""
    module: Any = uncompiled(family.network)
    if layer not in family.layers:
        yield from _left_of_block(module, layer).modules()
        return
    for name in family.projection(layer, "q").split(".")[:-1]:
        yield uncompiled(module)
        module = getattr(uncompiled(module), name, None)
        if module is None:
            return


def _left_of_block(network: Any, layer: LayerId) -> nn.Module:
    """What stands where a UNet's layer was that has been taken out of it, as an object patch can."""
    blocks = getattr(network, f"{layer.block}_blocks", None)
    return network if blocks is None else blocks[layer.number]


def foreign(module: nn.Module) -> str | None:
    """Whose forward a module runs, if it is neither ComfyUI's nor torch's."""
    forward = vars(module).get("forward") or type(module).forward
    return None if str(getattr(forward, "__module__", "")).startswith(OWN) else whose(forward)
