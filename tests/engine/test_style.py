"""The maths of style injection: closed forms of AdaIN and of attention shared with a reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conditional_balance.engine.layers import LayerId
from conditional_balance.engine.moments import moments_of as moments
from conditional_balance.engine.style import (
    LayerStyle,
    Rows,
    StyleSettings,
    adain,
    inject,
    inject_through,
    layer_styles,
)

TOKENS, CHANNELS = 6, 4
FIRST = Rows(chunks=2, start=1, stop=3, reference=0)
LAST = Rows(chunks=2, start=0, stop=2, reference=2)
AMONG = Rows(chunks=2, start=0, stop=2, reference=3)  # row 2 belongs to someone else

shares = st.floats(0.01, 4)
weights = st.floats(0, 1)
rows = st.sampled_from([FIRST, LAST, AMONG])


def tokens(of: Rows, seed: int = 0) -> torch.Tensor:
    count = of.chunks * (max(of.stop, of.reference + 1))
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(count, 1, CHANNELS, generator=generator, dtype=torch.float64) + 0.5
    return torch.randn(count, TOKENS, CHANNELS, generator=generator, dtype=torch.float64) * scale + scale


def qkv(of: Rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return tokens(of, 1), tokens(of, 2), tokens(of, 3)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    logits = q @ k.transpose(1, 2) / math.sqrt(CHANNELS)
    return (logits if bias is None else logits + bias).softmax(-1) @ v


def by_chunk(x: torch.Tensor, of: Rows) -> torch.Tensor:
    return x.unflatten(0, (of.chunks, -1))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    # moments are kept in fp32, so fp64 tokens agree to about 1e-6
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@given(weights)
def test_adain_moves_the_moments_by_its_weight(weight: float) -> None:
    x, reference = tokens(FIRST, 1), tokens(FIRST, 2)[:1]
    (mean, deviation), (mean_to, deviation_to) = moments(x), moments(reference)
    mean_after, deviation_after = moments(adain(x, reference, weight))
    close(mean_after, mean + weight * (mean_to - mean))
    # the 1e-5 under the root is scaled along, so deviations agree to about as much
    torch.testing.assert_close(deviation_after, deviation + weight * (deviation_to - deviation), rtol=1e-4, atol=1e-4)


def test_adain_is_the_published_map_at_full_weight() -> None:
    x, reference = tokens(FIRST, 1), tokens(FIRST, 2)[:1]
    normed = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True) + 1e-5).sqrt()
    close(adain(x, reference, 1.0), normed * (reference.var(1) + 1e-5).sqrt()[:, None] + reference.mean(1)[:, None])


@given(weights)
def test_adain_toward_itself_or_by_nothing_changes_nothing(weight: float) -> None:
    x = tokens(FIRST)
    close(adain(x, x, weight), x)
    assert adain(x, x.flip(0), 0.0) is x


def test_adain_survives_a_single_token_and_a_flat_picture() -> None:
    x = tokens(FIRST)
    assert torch.isfinite(adain(x[:, :1], x[:1, :1], 1.0)).all()
    assert torch.isfinite(adain(torch.ones_like(x), x[:1], 1.0)).all()


@given(rows, shares)
def test_sharing_weighs_the_references_tokens(of: Rows, share: float) -> None:
    """softmax over [k, k_ref] with ln(share) added is a mixture: exp(logits) of the reference times the share."""
    q, k, v = qkv(of)
    out = by_chunk(inject(q, k, v, LayerStyle(share=share), of, attend), of)
    plain = by_chunk(attend(q, k, v, None), of)
    qs, ks, vs = (by_chunk(x, of) for x in (q, k, v))
    for chunk in range(of.chunks):
        for row in range(out.shape[1]):
            if not of.start <= row < of.stop:
                assert torch.equal(out[chunk, row], plain[chunk, row])
                continue
            own = (qs[chunk, row] @ ks[chunk, row].T / math.sqrt(CHANNELS)).exp()
            theirs = (qs[chunk, row] @ ks[chunk, of.reference].T / math.sqrt(CHANNELS)).exp() * share
            total = own.sum(-1, keepdim=True) + theirs.sum(-1, keepdim=True)
            close(out[chunk, row], (own @ vs[chunk, row] + theirs @ vs[chunk, of.reference]) / total)


@given(rows)
def test_nothing_shared_and_nothing_moved_is_plain_attention(of: Rows) -> None:
    q, k, v = qkv(of)
    assert torch.equal(inject(q, k, v, LayerStyle(), of, attend), attend(q, k, v, None))


@given(rows, weights, weights)
def test_both_ways_agree_at_full_share(of: Rows, q_weight: float, k_weight: float) -> None:
    q, k, v = qkv(of)
    style = LayerStyle(q_weight, k_weight, 0.0, 1.0)
    close(inject_through(q, k, v, style, of, attend), inject(q, k, v, style, of, attend))


def test_full_share_asks_for_no_bias() -> None:
    q, k, v = qkv(FIRST)

    def strict(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        assert bias is None
        return attend(q, k, v, bias)

    inject(q, k, v, LayerStyle(1, 1, 1, 1.0), FIRST, strict)


def test_chunks_are_independent() -> None:
    q, k, v = qkv(FIRST)
    style = LayerStyle(1, 0.5, 0.3, 0.7)
    together = inject(q, k, v, style, FIRST, attend)
    for chunk in range(2):
        part = slice(3 * chunk, 3 * chunk + 3)
        close(inject(q[part], k[part], v[part], style, FIRST._replace(chunks=1), attend), together[part])


def test_layer_styles() -> None:
    layers = [LayerId("output", number, 0) for number in range(4)]
    gate = torch.tensor([[1, 0, 0.5, 0], [0, 1, 0.2, 0], [1, 1, 0.5, 0]], dtype=torch.float64)
    assert layer_styles(gate, layers, StyleSettings()) == {
        layers[0]: (1, 0, 0, 1),
        layers[1]: (0, 1, 0, 1),
        layers[2]: (0.5, 0.2, 0, 0.5),
    }
    only_share = StyleSettings(strength=0.5, adain_q=False, adain_k=False, share=2.0)
    assert layer_styles(gate, layers, only_share)[layers[0]] == (0, 0, 0, 1)
    assert layer_styles(gate, layers, StyleSettings(adain_v=True))[layers[2]].v == 0.5
    assert layer_styles(gate, layers, StyleSettings(strength=0)) == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_keeps_its_type_and_its_reference(dtype: torch.dtype) -> None:
    q, k, v = (x.to(dtype) for x in qkv(FIRST))
    out = inject(q, k, v, LayerStyle(1, 1, 1, 0.5), FIRST, attend)
    assert out.dtype == dtype
    assert torch.equal(by_chunk(out, FIRST)[:, 0], by_chunk(attend(q, k, v, None), FIRST)[:, 0])
