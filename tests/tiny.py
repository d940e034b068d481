"""Tiny models of ComfyUI's own classes: small enough to sample in a test, with weights that make every part count."""

from __future__ import annotations

import math
from typing import Any

import torch

Conditioning = list[list[Any]]

_SHARED = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "use_spatial_transformer": True,
    "legacy": False,
}

_SD15 = _SHARED | {
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 1, 2, 2],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [1] * 9 + [0] * 3,
    "context_dim": 64,
    "adm_in_channels": None,
    "use_linear_in_transformer": False,
}

_SDXL = _SHARED | {
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 1, 2],
    "transformer_depth": [0, 0, 1, 1, 2, 2],
    "transformer_depth_middle": 2,
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    "context_dim": 128,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
    "use_linear_in_transformer": True,
}


def tiny_model(
    kind: str = "sd15",
    dtype: torch.dtype = torch.float32,
    manual_cast: torch.dtype | None = None,
    v_pred: bool = False,
    seed: int = 0,
):
    """A ModelPatcher over a real UNet: "sd15" (16 attention layers, like SD1.5) or "sdxl" (17, where SDXL has 70).

    Blocks stand where the real model has them; widths, and SDXL's depths, are smaller. It is built in inference mode,
    as loader nodes build theirs: its weights are inference tensors, and code that forgets this fails here too.
    """
    import comfy.model_base
    import comfy.supported_models

    kind_of_prediction = comfy.model_base.ModelType.V_PREDICTION if v_pred else comfy.model_base.ModelType.EPS
    if kind == "sd15":
        config, base = comfy.supported_models.SD15(dict(_SD15)), comfy.model_base.BaseModel
        config.unet_config["num_heads"] = 2  # the class sets eight, too many for 32 channels
    else:
        config, base = comfy.supported_models.SDXL(dict(_SDXL)), comfy.model_base.SDXL
        config.unet_config["num_head_channels"] = 16  # the class sets 64
    config.set_inference_dtype(dtype, manual_cast)
    with torch.inference_mode():
        model = base(config, model_type=kind_of_prediction, device=torch.device("cpu"))
        _fill(model.diffusion_model, seed)
    return _patcher(model)


def _patcher(model: torch.nn.Module):
    import comfy.model_patcher

    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def _fill(module: torch.nn.Module, seed: int) -> None:
    """Weights that keep the scale of what flows through; layers that real models start at zero get weights too."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            noise = noise / math.sqrt(parameter[0].numel())
        elif name.endswith("bias"):
            noise = 0.1 * noise
        else:
            noise = 1 + 0.1 * noise
        parameter.data.copy_(noise)
    for name, buffer in module.named_buffers():
        if name.endswith("pos_embed"):  # ComfyUI makes these of uninitialised memory, to be loaded over
            buffer.copy_(torch.randn(buffer.shape, generator=generator))


def tiny_clip(seed: int = 0, width: int = 64):
    """A CLIP with SD1.5's tokenizer and a two-layer text encoder; its conditioning fits `tiny_model("sd15")`.

    At a width of 32 it fits every `tiny_transformer`.
    """
    import comfy.sd
    import comfy.sd1_clip
    import comfy.supported_models_base

    target = comfy.supported_models_base.ClipTarget(comfy.sd1_clip.SD1Tokenizer, comfy.sd1_clip.SD1ClipModel)
    size = {"num_hidden_layers": 2, "hidden_size": width, "intermediate_size": 128, "num_attention_heads": 2}
    with torch.inference_mode():
        clip = comfy.sd.CLIP(target, model_options={"clip_l_model_config": size})
        _fill(clip.cond_stage_model, seed)
    return clip


def tiny_vae(seed: int = 0, channels: int = 4):
    """A VAE of TAESD's architecture: pictures [B, H, W, 3] of a side that eight divides, latents [B, 4, H/8, W/8]."""
    import comfy.sd
    import comfy.taesd.taesd

    with torch.inference_mode():
        model = comfy.taesd.taesd.TAESD(latent_channels=channels)
        _fill(model.taesd_encoder, seed)
        _fill(model.taesd_decoder, seed + 1)
        return comfy.sd.VAE(sd=model.state_dict())


def tiny_video_vae(seed: int = 0):
    """A VAE of Wan 2.1's architecture: pictures [B, H, W, 3], latents [B, 16, 1, H/8, W/8]."""
    import comfy.ldm.wan.vae
    import comfy.sd

    with torch.inference_mode():
        model = comfy.ldm.wan.vae.WanVAE(dim=8, z_dim=16, temperal_downsample=[False, True, True])
        _fill(model, seed)
        return comfy.sd.VAE(sd=model.state_dict())


def cond(model, seed: int, batch: int = 1, tokens: int = 77) -> Conditioning:
    """A CONDITIONING of random text [batch, tokens, width], with a pooled_output where the model reads one."""
    generator = torch.Generator().manual_seed(seed)
    unet_config = model.model.model_config.unet_config
    options = {}
    if unet_config["adm_in_channels"]:
        options["pooled_output"] = torch.randn(batch, 1280, generator=generator)
    return [[torch.randn(batch, tokens, unet_config["context_dim"], generator=generator), options]]


def latent(seed: int = 0, batch: int = 1, height: int = 16, width: int = 16) -> dict[str, torch.Tensor]:
    """A LATENT of random samples [batch, 4, height, width]; `{"samples": torch.zeros(...)}` is an empty one."""
    return {"samples": torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(seed))}


def sample(
    model,
    positive: Conditioning,
    negative: Conditioning,
    latent: dict[str, Any],
    steps: int = 3,
    cfg: float = 4.0,
    sampler: str = "euler",
    scheduler: str = "normal",
    seed: int = 0,
    denoise: float = 1.0,
) -> torch.Tensor:
    """What the KSampler node does, in inference mode as the executor runs it; returns the samples [B, 4, h, w]."""
    import nodes

    with torch.inference_mode():
        (out,) = nodes.common_ksampler(
            model, seed, steps, cfg, sampler, scheduler, positive, negative, latent, denoise=denoise
        )
    return out["samples"]
