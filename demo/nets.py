"""The demo world's networks on ComfyUI's own classes, and their initial weights.

An SDXL-shaped UNet, its ControlNet, a rotary transformer in Flux form and a CLIP text encoder. Pictures are 192 x 192,
latents 8 x 24 x 24. Every level of the UNet has attention, deeper below; the finest, as in SD1.5, so that masks of
subjects are as fine as the latents.

Imports no more of ComfyUI than those classes need, so that a machine with little more than torch can train them.
"""

from __future__ import annotations

import comfy.ops
import torch
from comfy.cldm.cldm import ControlNet
from comfy.clip_model import CLIPTextModel
from comfy.ldm.flux.model import Flux, FluxParams
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import nn

from .autoencoder import CHANNELS

TEXT_WIDTH = 128
SIZE_WIDTH = 6 * 256  # what SDXL is told of a picture's size and crop

TEXT_CONFIG = {
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 4 * TEXT_WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_act": "quick_gelu",
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}

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
    "transformer_depth": [1, 1, 1],
    "transformer_depth_middle": 1,
}
# 2 double-stream and 8 single-stream blocks over 77 tokens of text and 12 x 12 patches of 2 x 2 latents.
TRANSFORMER_CONFIG = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "vec_in_dim": TEXT_WIDTH,
    "context_in_dim": TEXT_WIDTH,
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
if "txt_ids_dims" in FluxParams.__annotations__:  # newer ComfyUI asks on which axes text has positions
    TRANSFORMER_CONFIG["txt_ids_dims"] = []


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


def new_transformer(device: str | torch.device, dtype: torch.dtype = torch.float32) -> Flux:
    """An untrained transformer whose blocks do nothing yet: adaLN-Zero (arXiv 2212.09748, section 3.2)."""
    model = Flux(**TRANSFORMER_CONFIG, dtype=dtype, device=device, operations=comfy.ops.disable_weight_init)
    initialise(model)
    for name, weight in model.named_parameters():
        if "norm.query_norm.scale" in name or "norm.key_norm.scale" in name:
            nn.init.ones_(weight)
        if "_mod.lin." in name or "modulation.lin." in name or "final_layer" in name:
            nn.init.zeros_(weight)
    return model


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
