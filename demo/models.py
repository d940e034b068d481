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
import comfy.ops
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models
import comfy.supported_models_base
import torch
from comfy.cldm.cldm import ControlNet
from comfy.clip_model import CLIPTextModel
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.taesd.taesd import TAESD
from safetensors.torch import load_file
from torch import nn

from .autoencoder import CHANNELS, Autoencoder

WEIGHTS = Path(__file__).parent / "weights"
TEXT_WIDTH = 128
SIZE_WIDTH = 6 * 256  # what SDXL is told of a picture's size and crop

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
TEXT_CONFIG = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 4 * TEXT_WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}


def fast_dtype(device: str | torch.device) -> torch.dtype:
    """bfloat16 where the machine multiplies it; processors that only emulate it take ten times as long as in fp32."""
    on_gpu = torch.device(device).type == "cuda"
    has_bfloat16 = on_gpu or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_bfloat16 else torch.float32


def new_unet(device: str | torch.device, dtype: torch.dtype = torch.float32) -> UNetModel:
    """An untrained UNet with torch's usual initial weights, but deaf to a picture's size: training shows only one."""
    unet = UNetModel(**UNET_CONFIG, dtype=dtype, device=device, operations=comfy.ops.disable_weight_init)
    initialise(unet)
    for name, weight in unet.named_parameters():
        if name.endswith(("out_layers.3.weight", "proj_out.weight", "out.2.weight")):
            nn.init.zeros_(weight)
    nn.init.zeros_(unet.label_emb[0][0].weight[:, TEXT_WIDTH:])
    return unet


def new_control_net(
    device: str | torch.device, dtype: torch.dtype = torch.float32, unet: UNetModel | None = None
) -> ControlNet:
    """A ControlNet that does nothing yet, its encoder the UNet's own where one is given (arXiv 2302.05543, 3.1).

    The hint's convolutions start at unit gain, and none of them at zero: the outermost zero convolutions are enough to
    change nothing at first, and edges that arrive at full size are learnt from at once.
    """
    net = ControlNet(**CONTROL_CONFIG, dtype=dtype, device=device, operations=comfy.ops.disable_weight_init)
    initialise(net)
    if unet is not None:
        shared = net.state_dict().keys() & unet.state_dict().keys()
        net.load_state_dict({name: unet.state_dict()[name] for name in shared}, strict=False)
    for weight in net.input_hint_block.parameters():
        nn.init.kaiming_normal_(weight, nonlinearity="relu") if weight.ndim > 1 else nn.init.zeros_(weight)
    for module in (net.zero_convs, net.middle_block_out):
        for weight in module.parameters():
            nn.init.zeros_(weight)
    return net


def new_text_model(device: str | torch.device, dtype: torch.dtype = torch.float32) -> CLIPTextModel:
    """An untrained text encoder."""
    model = CLIPTextModel(TEXT_CONFIG, dtype, device, comfy.ops.disable_weight_init)
    initialise(model)
    nn.init.normal_(model.text_model.embeddings.position_embedding.weight, std=0.02)
    return model


def initialise(model: nn.Module) -> None:
    """ComfyUI's layers leave their weights unset; give them torch's defaults."""
    for module in model.modules():
        for kind in (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm):
            if isinstance(module, kind):
                kind.reset_parameters(module)


WORD_TABLE = "text_model.embeddings.token_embedding.weight"


def with_vocabulary(model: CLIPTextModel, words: torch.Tensor) -> CLIPTextModel:
    """The model on a small vocabulary: token i stands for `words[i]`, and training need not carry the other 49,000."""
    embeddings = model.text_model.embeddings
    width = embeddings.token_embedding.weight.shape[1]
    embeddings.token_embedding = comfy.ops.disable_weight_init.Embedding(len(words), width, device=words.device)
    nn.init.normal_(embeddings.token_embedding.weight, std=0.02)
    model.text_model.eos_token_id = int(torch.searchsorted(words, TEXT_CONFIG["eos_token_id"]))
    return model


def pack_text_weights(weights: dict[str, torch.Tensor], words: torch.Tensor) -> dict[str, torch.Tensor]:
    """A small-vocabulary model's weights with the words they belong to, so that 12 MB of zeros stay out of the file."""
    rest = {name: weight for name, weight in weights.items() if name != WORD_TABLE}
    return {**rest, "words": words.int(), "word_embeddings": weights[WORD_TABLE]}


def load_packed_text_weights(model: CLIPTextModel, packed: dict[str, torch.Tensor], words: torch.Tensor) -> None:
    """Into a model of `with_vocabulary(words)`."""
    weights = unpack_text_weights(packed)
    model.load_state_dict({**weights, WORD_TABLE: weights[WORD_TABLE][words.cpu()]})


def unpack_text_weights(packed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """For the whole vocabulary; embeddings of words that training never showed are zero."""
    weights = dict(packed)
    words, values = weights.pop("words").long(), weights.pop("word_embeddings")
    table = torch.zeros(49408, values.shape[1], dtype=values.dtype)
    table[words] = values
    return {**weights, WORD_TABLE: table}


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
