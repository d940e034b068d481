"""Tiny UNets of the kinds that ComfyUI runs beside SD1.5 and SDXL: with other inputs, depths and widths."""

from __future__ import annotations

from typing import Any

import torch

from tiny import _SD15, _SDXL, Conditioning, _fill, _patcher

_OPEN_CLIP = {"use_linear_in_transformer": True, "context_dim": 64}
_SHALLOW = {"num_res_blocks": [1, 1, 1], "transformer_depth": [0, 1, 2], "transformer_depth_output": [0, 0, 1, 1, 2, 2]}


def _sd15(**changed: Any) -> dict[str, Any]:
    return _SD15 | {"num_heads": 2} | changed


def _sd20(**changed: Any) -> dict[str, Any]:
    return _SD15 | _OPEN_CLIP | {"num_heads": -1, "num_head_channels": 16} | changed


def _sdxl(**changed: Any) -> dict[str, Any]:
    return _SDXL | {"num_head_channels": 16} | changed


def _classed(width: int) -> dict[str, Any]:
    return {"num_classes": "sequential", "adm_in_channels": width}


UNETS: dict[str, tuple[str, dict[str, Any]]] = {
    "sd21": ("SD20", _sd20()),
    "sd21_unclip": ("SD21UnclipL", _sd20(**_classed(1536))),
    "sd15_inpaint": ("SD15", _sd15(in_channels=9)),
    "sdxl_inpaint": ("SDXL", _sdxl(in_channels=9)),
    "sd15_edit": ("SD15_instructpix2pix", _sd15(in_channels=8)),
    "cosxl_edit": ("SDXL_instructpix2pix", _sdxl(in_channels=8)),
    "refiner": (
        "SDXLRefiner",
        _sdxl(
            adm_in_channels=2560,
            num_res_blocks=[2, 2, 2, 2],
            channel_mult=[1, 1, 2, 2],
            transformer_depth=[0, 0, 2, 2, 2, 2, 0, 0],
            transformer_depth_output=[0, 0, 0, 2, 2, 2, 2, 2, 2, 0, 0, 0],
        ),
    ),
    "ssd_1b": ("SSD1B", _sdxl(transformer_depth_output=[0, 0, 0, 1, 1, 2, 4, 2, 2], transformer_depth_middle=-1)),
    "koala": ("KOALA_700M", _sdxl(**_SHALLOW, transformer_depth_middle=-2)),
    "zero123": ("Stable_Zero123", _sd15(in_channels=8)),
    "sd_xs": (
        "SD20",
        _sd20(
            num_res_blocks=[1, 1, 1],
            channel_mult=[1, 1, 2],
            transformer_depth=[1, 1, 1],
            transformer_depth_output=[1] * 6,
            transformer_depth_middle=-2,
            disable_self_attentions=[True, False, False],
        ),
    ),
}
"""Those that paint pictures, by the class of ComfyUI's that describes them, and their shape."""

OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "svd": (
        "SVD_img2vid",
        _sd20(**_classed(768), in_channels=8, use_temporal_attention=True, use_temporal_resblock=True)
        | {"merge_strategy": "learned_with_images", "merge_factor": 0.5, "video_kernel_size": [3, 1, 1]}
        | {"extra_ff_mix_layer": True, "use_spatial_context": True, "max_ddpm_temb_period": 10000},
    ),
    "x4": (
        "SD_X4Upscaler",
        _sd20(in_channels=7, disable_self_attentions=[True, True, True, False], num_classes=1000),
    ),
    "lotus": ("LotusD", _sd20(**_classed(4))),
}
"""UNets that paint no pictures of a prompt."""


def tiny_unet(kind: str, seed: int = 0) -> Any:
    """A ModelPatcher over a real UNet of a kind of `UNETS` or `OTHERS`, with its own latent format and sampling."""
    import comfy.supported_models

    name, config = (UNETS | OTHERS)[kind]
    described = getattr(comfy.supported_models, name)(dict(config))
    described.unet_config.update(config)  # the class sets heads for real widths
    described.set_inference_dtype(torch.float32, None)
    state = {"cc_projection.weight": torch.zeros(64, 64), "cc_projection.bias": torch.zeros(64)}
    if kind == "cosxl_edit":
        state["edm_vpred.sigma_max"] = torch.tensor(120.0)
    with torch.inference_mode():
        model = described.get_model(state, device=torch.device("cpu"))
        _fill(model.diffusion_model, seed)
    return _patcher(model)


def tiny_gligen(of: Any, seed: int = 0) -> Any:
    """A GLIGEN for a tiny model: gates that are open, one for every transformer of the UNet."""
    import comfy.gligen

    from conditional_balance.runtime.arch.unet import attention_layers

    width = of.model.model_config.unet_config["context_dim"]
    sides = [block.attn1.to_q.in_features for layer, block in attention_layers(of).items() if not layer.transformer]
    with torch.inference_mode():
        gates = [comfy.gligen.GatedSelfAttentionDense(side, width, 2, side // 2) for side in sides]
        net = comfy.gligen.Gligen(gates, comfy.gligen.PositionNet(width, width), width)
        _fill(net, seed)
        for name, parameter in net.named_parameters():
            if "alpha" in name:
                parameter.fill_(1.0)
    return _patcher(net)


def in_boxes(conditioning: Conditioning, gligen: Any, seed: int = 4) -> Conditioning:
    """A prompt as GLIGENTextBoxApply leaves it, with one box in the upper left."""
    phrase = torch.randn(1, gligen.model.key_dim, generator=torch.Generator().manual_seed(seed))
    return [[text, {**about, "gligen": ("position", gligen, [(phrase, 4, 6, 0, 0)])}] for text, about in conditioning]
