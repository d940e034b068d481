"""The published operator of StyleAligned, as Conditional Balance uses it, in plain torch: what our hooks are judged by.

Written from the papers (arXiv 2312.02133, arXiv 2412.19853), sharing no code with the pack: it takes the place of a
self-attention module's forward, splits heads, and spells out softmax attention over the whole batch, the reference
included.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch


class Flags(NamedTuple):
    """What the published handler knows of a layer: AdaIN of queries, of keys; attention is shared if either is on."""

    adain_q: bool
    adain_k: bool


def expand_first(x: torch.Tensor, chunks: int) -> torch.Tensor:
    """Every image's features replaced by its chunk's first image's; x is [chunks * images, heads, tokens, channels]."""
    parts = [part[:1].expand_as(part) for part in x.chunk(chunks)]
    return torch.cat(parts)


def adain(x: torch.Tensor, chunks: int) -> torch.Tensor:
    mean = x.mean(dim=-2, keepdim=True)
    deviation = (x.var(dim=-2, keepdim=True) + 1e-5).sqrt()
    return (x - mean) / deviation * expand_first(deviation, chunks) + expand_first(mean, chunks)


def shared_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, flags: Flags, chunks: int) -> torch.Tensor:
    """softmax(q [k, k_ref]^T / sqrt(d)) [v, v_ref], all [chunks * images, heads, tokens, channels]."""
    if flags.adain_q:
        q = adain(q, chunks)
    if flags.adain_k:
        k = adain(k, chunks)
    k = torch.cat((k, expand_first(k, chunks)), dim=-2)
    v = torch.cat((v, expand_first(v, chunks)), dim=-2)
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return logits.softmax(-1) @ v


def official_forward(module: torch.nn.Module, flags: Flags) -> Callable[..., torch.Tensor]:
    def forward(x: torch.Tensor, *, transformer_options: dict[str, Any], **unused: Any) -> torch.Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (module.heads, module.dim_head)).transpose(1, 2)
            for layer in (module.to_q, module.to_k, module.to_v)
        )
        chunks = len(transformer_options["cond_or_uncond"])
        return module.to_out(shared_attention(q, k, v, flags, chunks).transpose(1, 2).flatten(2))

    return forward


@contextmanager
def official(blocks: Mapping[Any, torch.nn.Module], flags: Mapping[Any, Flags]) -> Iterator[None]:
    """While open, the layers in `flags` run the published operator; every image batch starts with its reference."""
    chosen: Collection[Any] = [layer for layer, (q, k) in flags.items() if q or k]
    try:
        for layer in chosen:
            module = blocks[layer].attn1
            module.forward = official_forward(module, flags[layer])
        yield
    finally:
        for layer in chosen:
            blocks[layer].attn1.__dict__.pop("forward", None)
