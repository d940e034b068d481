"""The demo model: an SDXL-shaped UNet, a transformer in Flux form, a CLIP text encoder, a ControlNet, an autoencoder.

All but the autoencoder are ComfyUI's own classes (`nets.py`). Weights lie in `weights/` as fp16 safetensors.
`python dev.py train` makes them from nothing.
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
from comfy.taesd.taesd import TAESD
from safetensors.torch import load_file
from torch import nn

from .autoencoder import CHANNELS, Autoencoder
from .nets import TEXT_CONFIG, TRANSFORMER_CONFIG, UNET_CONFIG, new_control_net, unpack_text_weights

WEIGHTS = Path(__file__).parent / "weights"


class DemoLatent(comfy.latent_formats.LatentFormat):
    """The demo autoencoder's latents, already of unit spread."""

    latent_channels = CHANNELS
    scale_factor = 1.0


def patcher_of(model: nn.Module, device: torch.device, offload: torch.device) -> comfy.model_patcher.ModelPatcher:
    kind = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return kind(model, load_device=device, offload_device=offload)


def placed(dtype: torch.dtype | None) -> tuple[torch.device, torch.dtype]:
    """Where a model runs, and in which numbers unless it is said."""
    device = comfy.model_management.get_torch_device()
    usual = torch.float16 if comfy.model_management.should_use_fp16(device) else torch.float32
    return device, dtype or usual


def needed(path: Path, part: str) -> None:
    """Raises ValueError for weights that are not there."""
    if not path.exists():
        raise ValueError(f"There is no {path.name} in {path.parent.name}: run `python dev.py train {part}` first.")


def load_unet(
    path: Path = WEIGHTS / "unet.safetensors", dtype: torch.dtype | None = None
) -> comfy.model_patcher.ModelPatcher:
    """The demo UNet as a MODEL: SDXL conditioning, v-prediction, SD's noise schedule."""
    device, dtype = placed(dtype)
    config = comfy.supported_models.SDXL(dict(UNET_CONFIG))
    config.unet_config.update(UNET_CONFIG)  # it puts SDXL's own number of heads in place of ours
    config.set_inference_dtype(dtype, None)
    config.latent_format = DemoLatent()
    model = comfy.model_base.SDXL(config, comfy.model_base.ModelType.V_PREDICTION)
    model.diffusion_model.load_state_dict({k: v.to(dtype) for k, v in load_file(path).items()})
    return patcher_of(model, device, comfy.model_management.unet_offload_device())


def load_transformer(
    path: Path = WEIGHTS / "transformer.safetensors", dtype: torch.dtype | None = None
) -> comfy.model_patcher.ModelPatcher:
    """The demo transformer as a MODEL: Flux's flow, without guidance, on the same text encoder and latents as the UNet.

    Raises ValueError when it has not been trained yet.
    """
    needed(path, "transformer")
    device, dtype = placed(dtype)
    config = comfy.supported_models.Flux(dict(TRANSFORMER_CONFIG))
    config.set_inference_dtype(dtype, None)
    config.latent_format = DemoLatent()
    model = comfy.model_base.Flux(config)
    named = config.process_unet_state_dict(load_file(path))  # newer ComfyUI calls some weights otherwise
    model.diffusion_model.load_state_dict({k: v.to(dtype) for k, v in named.items()})
    return patcher_of(model, device, comfy.model_management.unet_offload_device())


def load_control_net(
    path: Path = WEIGHTS / "controlnet.safetensors", dtype: torch.dtype | None = None
) -> comfy.controlnet.ControlNet:
    """The demo ControlNet for edge maps as a CONTROL_NET. Raises ValueError when it has not been trained yet."""
    needed(path, "controlnet")
    device, dtype = placed(dtype)
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
