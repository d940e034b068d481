"""The drawn world's networks: an SDXL-shaped UNet, its ControlNet, a rotary transformer in Flux form.

Pictures are 192 x 192, latents 8 x 24 x 24. Every level has attention, deeper below; the finest, as in SD1.5, so that
masks of subjects are as fine as the latents.
"""

from __future__ import annotations

import comfy.ops
import torch
from comfy.cldm.cldm import ControlNet
from comfy.ldm.flux.model import Flux
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import nn

from demo import nets
from demo.autoencoder import CHANNELS

CELLS = 24  # latents per side

# 21 self-attention layers at 24 x 24, 12 x 12 and 6 x 6.
UNET_CONFIG = {
    "image_size": CELLS,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "model_channels": 64,
    "channel_mult": [1, 2, 2],
    "num_res_blocks": [1, 1, 1],
    "transformer_depth": [1, 2, 3],
    "transformer_depth_middle": 3,
    "transformer_depth_output": [1, 1, 2, 2, 3, 3],
    "context_dim": nets.TEXT_WIDTH,
    "num_head_channels": 32,
    "num_classes": "sequential",
    "adm_in_channels": nets.TEXT_WIDTH + nets.SIZE_WIDTH,  # pooled text and six size numbers, as SDXL
    "use_linear_in_transformer": True,
    "use_spatial_transformer": True,
    "use_temporal_attention": False,
    "legacy": False,
}
CONTROL_CONFIG = {
    **{name: value for name, value in UNET_CONFIG.items() if name not in ("out_channels", "transformer_depth_output")},
    "hint_channels": 3,
    "transformer_depth": [1, 1, 1],
    "transformer_depth_middle": 1,
}
# 2 double-stream and 8 single-stream blocks over 77 tokens of text and 12 x 12 patches of 2 x 2 latents.
TRANSFORMER_CONFIG = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "vec_in_dim": nets.TEXT_WIDTH,
    "context_in_dim": nets.TEXT_WIDTH,
    "hidden_size": 192,
    "mlp_ratio": 4.0,
    "num_heads": 6,
    "depth": 2,
    "depth_single_blocks": 8,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": False,
}


def new_unet(device: str | torch.device, dtype: torch.dtype = torch.float32) -> UNetModel:
    return nets.new_unet(UNET_CONFIG, device, dtype)


def new_control_net(
    device: str | torch.device, dtype: torch.dtype = torch.float32, unet: UNetModel | None = None
) -> ControlNet:
    return nets.new_control_net(CONTROL_CONFIG, device, dtype, unet)


def new_transformer(device: str | torch.device, dtype: torch.dtype = torch.float32) -> Flux:
    """An untrained transformer whose blocks do nothing yet: adaLN-Zero (arXiv 2212.09748, section 3.2)."""
    model = Flux(**TRANSFORMER_CONFIG, dtype=dtype, device=device, operations=comfy.ops.disable_weight_init)
    nets.initialise(model)
    for name, weight in model.named_parameters():
        if "norm.query_norm.scale" in name or "norm.key_norm.scale" in name:
            nn.init.ones_(weight)
        if "_mod.lin." in name or "modulation.lin." in name or "final_layer" in name:
            nn.init.zeros_(weight)
    return model
