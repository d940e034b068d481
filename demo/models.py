"""The demo world's models: an SDXL-shaped UNet and a CLIP text encoder on ComfyUI's own classes, a small autoencoder.

Weights lie in `weights/` as fp16 safetensors. `python dev.py train` makes them from nothing.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import comfy.controlnet
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import torch
from comfy.cldm.cldm import ControlNet
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.taesd.taesd import TAESD
from safetensors.torch import load_file
from torch import nn

from . import nets
from .autoencoder import CHANNELS, Autoencoder
from .nets import (  # noqa: F401 - the models' users find them here
    SIZE_WIDTH,
    TEXT_CONFIG,
    TEXT_WIDTH,
    WORD_TABLE,
    fast_dtype,
    load_packed_text_weights,
    new_text_model,
    pack_text_weights,
    unpack_text_weights,
    with_vocabulary,
)

WEIGHTS = Path(__file__).parent / "weights"

# 17 self-attention layers over three resolutions, most of them deep, as in SDXL.
UNET_CONFIG = {
    "image_size": 16,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "model_channels": 64,
    "channel_mult": [1, 2, 2],
    "num_res_blocks": [1, 1, 1],
    "transformer_depth": [1, 2, 2],
    "transformer_depth_middle": 2,
    "transformer_depth_output": [1, 1, 2, 2, 2, 2],
    "context_dim": TEXT_WIDTH,
    "num_head_channels": 32,
    "num_classes": "sequential",
    "adm_in_channels": TEXT_WIDTH + SIZE_WIDTH,  # pooled text and six size numbers, as SDXL
    "use_linear_in_transformer": True,
    "use_spatial_transformer": True,
    "use_temporal_attention": False,
    "legacy": False,
}
CONTROL_CONFIG = {
    **{name: value for name, value in UNET_CONFIG.items() if name not in ("out_channels", "transformer_depth_output")},
    "hint_channels": 3,
    "transformer_depth": [1, 1, 1],  # one where the UNet has two: 8 MB instead of 10
    "transformer_depth_middle": 1,
}


def new_unet(device: str | torch.device, dtype: torch.dtype = torch.float32) -> UNetModel:
    return nets.new_unet(UNET_CONFIG, device, dtype)


def new_control_net(
    device: str | torch.device, dtype: torch.dtype = torch.float32, unet: UNetModel | None = None
) -> ControlNet:
    return nets.new_control_net(CONTROL_CONFIG, device, dtype, unet)


class DemoLatent(comfy.latent_formats.LatentFormat):
    """The demo autoencoder's latents, already of unit spread."""

    latent_channels = CHANNELS
    scale_factor = 1.0


def patcher_of(model: nn.Module, device: torch.device, offload: torch.device) -> comfy.model_patcher.ModelPatcher:
    kind = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return kind(model, load_device=device, offload_device=offload)


def load_unet(
    path: Path = WEIGHTS / "unet.safetensors", dtype: torch.dtype | None = None
) -> comfy.model_patcher.ModelPatcher:
    """The demo UNet as a MODEL: SDXL conditioning, v-prediction, SD's noise schedule."""
    device = comfy.model_management.get_torch_device()
    dtype = dtype or (torch.float16 if comfy.model_management.should_use_fp16(device) else torch.float32)
    config = comfy.supported_models.SDXL(dict(UNET_CONFIG))
    config.unet_config.update(UNET_CONFIG)  # it puts SDXL's own number of heads in place of ours
    config.set_inference_dtype(dtype, None)
    config.latent_format = DemoLatent()
    model = comfy.model_base.SDXL(config, comfy.model_base.ModelType.V_PREDICTION)
    model.diffusion_model.load_state_dict({k: v.to(dtype) for k, v in load_file(path).items()})
    return patcher_of(model, device, comfy.model_management.unet_offload_device())


def load_control_net(
    path: Path = WEIGHTS / "controlnet.safetensors", dtype: torch.dtype | None = None
) -> comfy.controlnet.ControlNet:
    """The demo ControlNet for edge maps as a CONTROL_NET. Raises ValueError when it has not been trained yet."""
    if not path.exists():
        raise ValueError(f"There is no {path.name} in demo/weights: run `python dev.py train controlnet` first.")
    device = comfy.model_management.get_torch_device()
    dtype = dtype or (torch.float16 if comfy.model_management.should_use_fp16(device) else torch.float32)
    net = new_control_net(comfy.model_management.unet_offload_device(), dtype)
    net.load_state_dict({k: v.to(dtype) for k, v in load_file(path).items()})
    return comfy.controlnet.ControlNet(net.requires_grad_(False), load_device=device)


def load_clip(path: Path = WEIGHTS / "text_encoder.safetensors") -> comfy.sd.CLIP:
    """The demo text encoder as a CLIP, on the real SD tokenizer."""
    encoder = partial(comfy.sd1_clip.SD1ClipModel, clip_model=comfy.sd1_clip.SDClipModel)  # SD1's does not project
    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, encoder)
    clip = comfy.sd.CLIP(target, model_options={"clip_l_model_config": TEXT_CONFIG})
    weights = unpack_text_weights(load_file(path))
    clip.cond_stage_model.clip_l.transformer.load_state_dict({k: v.float() for k, v in weights.items()})
    return clip


def load_vae(path: Path = WEIGHTS / "autoencoder.safetensors") -> comfy.sd.VAE:
    """The demo autoencoder as a VAE. Core wraps a network it knows; ours then takes that one's place."""
    vae = comfy.sd.VAE(sd=TAESD().state_dict())
    network = Autoencoder().eval()
    network.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    vae.first_stage_model, vae.latent_channels, vae.size = network.to(vae.vae_dtype), CHANNELS, None
    vae.patcher = patcher_of(network, vae.device, comfy.model_management.vae_offload_device())
    vae.model_size()
    return vae
