"""ControlNets of ComfyUI's own network classes on transformers: gated, and kept off style references."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import comfy.model_management
import comfy.ops
import nodes
import pytest
import torch
from comfy.cldm.dit_embedder import ControlNetEmbedder
from comfy.cldm.mmdit import ControlNet as MMDiTControlNet
from comfy.controlnet import ControlNet, ControlNetSD35
from comfy.latent_formats import SD3, Flux, Wan21
from comfy.ldm.flux.controlnet import ControlNetFlux
from comfy.ldm.qwen_image.controlnet import QwenImageControlNetModel
from comfy_extras.nodes_controlnet import ControlNetInpaintingAliMamaApply, SetUnionControlNetType
from style_case import differ
from test_transformer_style import hidden, styled
from test_transformers import run
from tiny_transformers import _FLUX, _QWEN, _SD3, cond, newer, tiny_transformer

import tiny
from conditional_balance.engine.structure import parse_weights
from conditional_balance.runtime.inject.control import gate_control

OPS = {"operations": comfy.ops.manual_cast}
PLACED = {**OPS, "device": torch.device("cpu"), "dtype": torch.float32}
OF_SD35 = {
    "img_size": None, "patch_size": 2, "in_chans": 16, "attention_head_dim": 64, "num_attention_heads": 2,
    "adm_in_channels": 32, "num_layers": 2, "main_model_double": 3, "double_y_emb": False, "pos_embed_max_size": 24,
}  # fmt: skip


class Case(NamedTuple):
    """The model, how its ControlNet's network is made, and how ComfyUI would load that."""

    kind: str
    slots: int
    network: Callable[[], Any]
    format: Any
    mask: bool = False
    control: Any = ControlNet


CASES = {
    "InstantX union, Flux": Case(
        "flux", 5, lambda: ControlNetFlux(latent_input=True, num_union_modes=3, **_FLUX, **newer("Flux"), **OPS), Flux
    ),
    "AliMama inpainting, Flux": Case(
        "flux",
        5,
        lambda: ControlNetFlux(latent_input=True, control_latent_channels=17, **_FLUX, **newer("Flux"), **OPS),
        Flux,
        True,
    ),
    "InstantX, Qwen-Image": Case(
        "qwen", 3, lambda: QwenImageControlNetModel(**_QWEN | {"num_layers": 2}, **OPS), Wan21
    ),
    "inpainting, Qwen-Image": Case(
        "qwen", 3, lambda: QwenImageControlNetModel(4, **_QWEN | {"num_layers": 2}, **OPS), Wan21, True
    ),
    "SD3": Case("sd3", 3, lambda: MMDiTControlNet(**_SD3 | {"num_blocks": 2}, **PLACED), SD3),
    "SD3.5 Large": Case("sd35-medium", 3, lambda: ControlNetEmbedder(**OF_SD35, **PLACED), SD3, False, ControlNetSD35),
}


class Encoder:
    """Stands for a VAE: one latent for every picture."""

    def __init__(self, kind: str) -> None:
        self.frames = (1,) if kind == "qwen" else ()

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        size = (len(image), 16, *self.frames, image.shape[1] // 8, image.shape[2] // 8)
        return torch.randn(size, generator=torch.Generator().manual_seed(1))

    def spacial_compression_encode(self) -> int:
        return 8


def control_of(case: Case) -> Any:
    with torch.inference_mode():
        network = case.network()
        network.dtype = torch.float32
        tiny._fill(network, 5)
        extra = ["y", "guidance"] if case.kind == "flux" else ["y"] if "sd3" in case.kind else []
        made = case.control(
            network, compression_ratio=1, latent_format=case.format(), load_device=torch.device("cpu"),
            extra_conds=extra, concat_mask=case.mask,
        )  # fmt: skip
    return SetUnionControlNetType.execute(made, "depth").args[0] if getattr(network, "num_union_modes", 0) else made


def controlled(of: Any, case: Case, control: Any, batch: int = 1) -> torch.Tensor:
    """A run under a ControlNet as ComfyUI's nodes apply it, or without one."""
    prompts = cond(case.kind, 1), cond(case.kind, 2)
    image = torch.rand(1, 80, 56, 3, generator=torch.Generator().manual_seed(3))
    if control is not None and case.mask:
        half, vae = torch.ones(1, 80, 56).tril(), Encoder(case.kind)
        prompts = ControlNetInpaintingAliMamaApply.execute(*prompts, control, vae, image, half, 1.0, 0.0, 1.0).args
    elif control is not None:
        apply = nodes.ControlNetApplyAdvanced().apply_controlnet
        prompts = apply(*prompts, control, image, 1.0, 0.0, 1.0, vae=Encoder(case.kind))
    return run(of, case.kind, positive=prompts[0], negative=prompts[1], batch=batch)


@pytest.mark.parametrize("name", CASES)
def test_a_controlnet_of_comfyuis_is_gated_by_block_and_leaves_references_free(name: str) -> None:
    case = CASES[name]
    loaded = comfy.model_management.current_loaded_models
    loaded[:] = [each for each in loaded if each.model is not None]  # core fails where an earlier test's clone is gone
    model, control = tiny_transformer(case.kind), control_of(case)
    full, none = controlled(model, case, control), controlled(model, case, None)

    def gated(weights: str) -> torch.Tensor:
        return controlled(model, case, gate_control(control, parse_weights(weights))[0])

    assert differ(full, none)
    assert torch.equal(gated(f"1x{case.slots}"), full) and torch.equal(gated(f"0x{case.slots}"), none)
    half = gated(" ".join(["0.5", *["0"] * (case.slots - 1)]))
    assert not torch.equal(half, full) and not torch.equal(half, none)
    free = controlled(model, case, None, batch=2)
    assert torch.equal(controlled(styled(model), case, control, batch=2)[0], free[0])
    led = controlled(styled(model, reference=hidden(case.kind, 20)), case, control)
    assert bool(led.isfinite().all()) and differ(led, full)
