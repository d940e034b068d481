"""Where a model draws a subject: importance of the subject's tokens, position by position.

Grad-SAM (arXiv 2204.11073, eq. 2) takes attention times the ReLU of its gradient; Abs-Grad-SAM (arXiv 2408.16232) does
so for every element of a diffusion model's predicted noise. q, k and v are a cross-attention layer's projections [rows,
tokens, heads * channels]. A column is the attention that all queries pay to one text token, after the softmax.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from einops import rearrange
from torch.nn import functional

from .devices import able

STEPS = {torch.float32: 0.05, torch.float16: 0.25}
"""Share by which `jvp` turns a column up, by precision: small enough to be linear, large enough not to drown in
rounding. Precisions not named here (bfloat16) take COARSE_STEP."""
COARSE_STEP = 0.5
LARGEST = 2**24
"""Logits of attention that are held at once: 64 MB, and as much again for what is made of them."""


def split_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[rows, tokens, heads * channels] to [rows, heads, tokens, channels]."""
    return rearrange(x, "rows tokens (heads channels) -> rows heads tokens channels", heads=heads)


def columns(
    q: torch.Tensor, k: torch.Tensor, positions: Sequence[int], heads: int, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention [rows, heads, queries, positions] paid to the text tokens at `positions`, in fp32.

    A `bias` [rows or 1, heads or 1, queries or 1, keys] is added to the logits: -inf for keys that no query may see.
    Where a picture's tokens are keys as well, the logits of all queries would take gigabytes: some are taken at a time.
    """
    q, k = split_heads(q, heads).float(), split_heads(k, heads).float()
    step = max(1, LARGEST // (q.shape[:2].numel() * k.shape[-2]))
    parts = [slice(start, start + step) for start in range(0, q.shape[-2], step)]
    biases = [bias if bias is None or bias.shape[-2] == 1 else bias[..., part, :] for part in parts]
    found = [_columns(q[..., part, :], k, positions, each) for part, each in zip(parts, biases, strict=True)]
    return found[0] if len(found) == 1 else torch.cat(found, -2)


def _columns(q: torch.Tensor, k: torch.Tensor, positions: Sequence[int], bias: torch.Tensor | None) -> torch.Tensor:
    logits = q @ k.mT * q.shape[-1] ** -0.5
    logits = logits if bias is None else logits + bias
    return (at_positions(logits, positions) - logits.logsumexp(-1, keepdim=True)).exp()


def at_positions(x: torch.Tensor, positions: Sequence[int], axis: int = -1) -> torch.Tensor:
    """x at some places of an axis. A list as an index would be brought to the GPU, which waits for it."""
    return torch.stack([x.select(axis, position) for position in positions], axis)


def contribution(column: torch.Tensor, v: torch.Tensor, positions: Sequence[int], heads: int) -> torch.Tensor:
    """Contribution of tokens to a layer's output: sum over positions of W_k V_k [rows, queries, heads * channels]."""
    values = at_positions(split_heads(v, heads), positions, 2).float()
    return rearrange(column @ values, "rows heads queries channels -> rows queries (heads channels)").to(v)


def gradients_of(output: torch.Tensor, v: torch.Tensor, positions: Sequence[int], heads: int) -> torch.Tensor:
    """dL/dW [..., rows, heads, queries, positions] from dL/dO [..., rows, queries, heads * channels].

    O = W V, so dL/dW_qk = <dL/dO_q, V_k>: no attention matrix is kept for the backward pass.
    """
    values = at_positions(split_heads(v, heads), positions, 2).float()
    output = rearrange(output, "... queries (heads channels) -> ... heads queries channels", heads=heads)
    return output.float() @ values.mT


def grad_sam(column: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """W * ReLU(dL/dW), summed over tokens and averaged over probes [probes, rows, heads, queries, positions].

    Returns [rows, heads, queries]. With the unit vectors as probes this is the exact sum over all outputs, divided by
    their number; random signs estimate the same ranking from a few.
    """
    return (column * gradients.relu()).sum(-1).mean(0)


def sign_probes(count: int, like: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Rademacher vectors [count, *like.shape], the same for the same seed, from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (count, *like.shape), generator=generator) * 2 - 1
    return signs.to(like)


def output_groups(size: tuple[int, int], apart: int) -> Iterator[torch.Tensor]:
    """All places of a grid as groups [N, 2] of (row, column), within which they stand `apart` from each other."""
    for top, left in itertools.product(range(min(apart, size[0])), range(min(apart, size[1]))):
        yield torch.cartesian_prod(torch.arange(top, size[0], apart), torch.arange(left, size[1], apart))


def nearest(points: torch.Tensor, grid: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """For every query of a layer [h * w] the nearest of some places [N, 2] in a latent of another size."""
    rows, columns = ((torch.arange(count) + 0.5) * side / count - 0.5 for count, side in zip(grid, size, strict=True))
    down, across = (rows[:, None] - points[:, 0]).abs(), (columns[:, None] - points[:, 1]).abs()
    return torch.maximum(down[:, None], across[None]).argmin(-1).flatten()


def strength(change: torch.Tensor) -> torch.Tensor:
    """Length of a change of the latent over its channels: [B, C, h, w] to [B, h, w]."""
    return torch.linalg.vector_norm(change.float(), dim=1)


def on_grid(values: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Queries as a picture: [..., h * w] to [..., h, w]."""
    return values.unflatten(-1, grid)


def resized(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """[B, N, h, w] at another size, never below zero (bicubic overshoots)."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return functional.interpolate(able(maps), size=size, mode="bicubic", antialias=True).clamp_min(0).to(maps)


def combined(maps: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
    """Layers' maps, each [B, heads, h, w] with weights [heads], as one [B, H, W]: their weighted mean.

    With equal weights this is DAAM's rule (arXiv 2210.04885, eq. 5 without its sum over time).
    """
    total = sum(float(weight.sum()) for weight in weights)
    parts = [
        resized((part.float() * weight.to(part)[:, None, None]).sum(1, keepdim=True), size)
        for part, weight in zip(maps, weights, strict=True)
    ]
    return torch.stack(parts).sum(0)[:, 0] / max(total, torch.finfo(torch.float32).tiny)


def propagated(maps: torch.Tensor, q: torch.Tensor, k: torch.Tensor, heads: int, grid: tuple[int, int]) -> torch.Tensor:
    """Maps [B, N, h, w] spread along a self-attention layer: mean over heads of softmax(q k / sqrt(d)) @ map.

    Positions that self-attention groups together get similar scores (DiffSegmenter, arXiv 2309.02773). Values are made
    as wide as keys, since kernels that hold no attention matrix take no others.
    """
    q, k = split_heads(q, heads).float(), split_heads(k, heads).float()
    values = rearrange(resized(maps, grid), "rows maps h w -> rows 1 (h w) maps").expand(-1, heads, -1, -1).float()
    values = functional.pad(values, (0, max(0, q.shape[-1] - values.shape[-1])))
    spread = functional.scaled_dot_product_attention(q, k, values).mean(1)[..., : maps.shape[1]]
    spread = rearrange(spread, "rows (h w) maps -> rows maps h w", h=grid[0])
    return resized(spread, maps.shape[-2:])


def contrasted(maps: torch.Tensor, against: torch.Tensor) -> torch.Tensor:
    """Subjects' maps [S, B, h, w] times the share that they have of what subject and surroundings [A, B, h, w] get.

    Without surroundings the maps stay as they are. The share (as GoCA, arXiv 2603.06178, divides by all words' maps)
    takes away places that draw attention from every word; where no word looks it is chance, which the map itself damps.
    """
    if not len(against):
        return maps
    return maps * maps / (maps + against.sum(0)).clamp_min(torch.finfo(torch.float32).tiny)


def normalised(maps: torch.Tensor) -> torch.Tensor:
    """[..., h, w] scaled to a mean of 1 over each map, so that maps of several noise levels can be averaged."""
    return maps / maps.mean((-2, -1), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
