"""What UNet and ControlNet training share: noise, prompts, attention that is fast to train, the loss."""

from __future__ import annotations

from functools import cache

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from demo import nets


@cache
def signal_shares(device: str | torch.device = "cpu") -> Tensor:
    """sqrt(alpha bar) of SD's scaled-linear schedule, [1000] by time index."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).sqrt().float().to(device)


def noised(latents: Tensor, times: Tensor, dtype: torch.dtype, drift: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """Latents with noise at time indices [B], and what to predict: v = alpha * noise - sigma * clean.

    A `drift` [B, 8, H, W] is an error that came in on the way: it shrinks with the noise, as the error of an estimate
    does while sampling, and v leads back to the clean latents.
    """
    alpha, sigma = levels(times)
    clean = latents.float()
    noise = torch.randn_like(clean)
    noisy = alpha * clean + sigma * noise + torch.minimum(alpha, sigma) * drift
    return noisy.to(dtype, memory_format=torch.channels_last), alpha * noise - sigma * clean + undoing(drift, times)


def undoing(drift: Tensor | float, times: Tensor) -> Tensor:
    """The part of v that leads back from a drift."""
    alpha, sigma = levels(times)
    return torch.minimum(alpha, alpha**2 / sigma) * drift


def levels(times: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma, [B, 1, 1, 1], of which alpha^2 + sigma^2 = 1."""
    alpha = signal_shares(times.device)[times][:, None, None, None]
    return alpha, (1 - alpha**2).sqrt()


def drawn_times(count: int, device: str | torch.device, lean: float = 1.0) -> Tensor:
    """`count` time indices, one from each equal part of the schedule: less chance in every step's loss.

    Their density grows as time^(lean - 1), toward the noisy end.
    """
    parts = (torch.arange(count, device=device) + torch.rand(1, device=device)) / count
    times = (1000 * parts ** (1 / lean)).long().clamp(max=999)  # a part may round up to 1
    return times[torch.randperm(count, device=device)]


def encoded_prompts(text: nn.Module, tokens: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """What the UNet gets of tokens [B, 77]: the text [B, 77, D], and the pooled text with no word on sizes [B, D + S].

    All pictures are of one size, so its numbers would only teach the UNet that any other is wrong: see `new_unet`.
    """
    context, _, pooled, _ = text(tokens, dtype=dtype)
    return context, functional.pad(pooled, (0, nets.SIZE_WIDTH))


def pooled_error(error: Tensor, times: Tensor, size: int, drift: Tensor | float = 0.0) -> Tensor:
    """The loss of v-prediction on means over `size` x `size` latents, for an error of v [B, C, H, W] at times [B].

    Multiscale loss of arXiv 2301.11093 (section 3.2). A mean's noise is `size` times smaller than a latent's, and its
    error is weighted as that of a latent under so much noise is: sigma^2 + size^2 alpha^2, which is 1 at size 1.
    Without it, what a whole picture has in common, such as a faint hue, is too little of the loss for the UNet to look
    for it in another scene. A drift counts as noise does: a mean that was further off weighs less.
    """
    alphas = signal_shares(error.device)[times]
    off = functional.avg_pool2d(undoing(drift, times).expand_as(error), size).square().mean((1, 2, 3))
    weight = 1 / (1 / (1 + (size**2 - 1) * alphas**2) + off)
    return (weight * functional.avg_pool2d(error, size).square().mean((1, 2, 3))).mean()


def plain_attention(func: object, q: Tensor, k: Tensor, v: Tensor, heads: int, *_: object, **__: object) -> Tensor:
    """Softmax attention; on a CPU by matrix products: their backward pass is four times as fast as a fused one."""
    q, k, v = (rearrange(x, "b n (h d) -> b h n d", h=heads) for x in (q, k, v))
    return rearrange(attended(q, k, v), "b h n d -> b n (h d)")


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention of [B, heads, N, D]."""
    if q.is_cuda:
        return functional.scaled_dot_product_attention(q, k, v)
    return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v


def coupled_attention(func: object, q: Tensor, k: Tensor, v: Tensor, heads: int, *_: object, **__: object) -> Tensor:
    """Self-attention in which row i + N / 2 also sees the tokens of row i; cross-attention as ever."""
    if q.shape[1] != k.shape[1]:
        return plain_attention(func, q, k, v, heads)
    (first_q, second_q), (first_k, second_k), (first_v, second_v) = (part.chunk(2) for part in (q, k, v))
    both = torch.cat([second_k, first_k], 1), torch.cat([second_v, first_v], 1)
    first = plain_attention(func, first_q, first_k, first_v, heads)
    return torch.cat([first, plain_attention(func, second_q, *both, heads)])


class OutOfPlace(TorchFunctionMode):
    """Turns `x += y` into `x = x + y`: core's layers add in place, which backward forbids."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return (torch.add if func in (Tensor.__iadd__, Tensor.add_) else func)(*args, **(kwargs or {}))
