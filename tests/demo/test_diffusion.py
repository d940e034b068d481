"""What UNet and ControlNet training share: noise and drift, losses at several scales, attention across a couple."""

from __future__ import annotations

import pytest
import torch

from demo.training.diffusion import coupled_attention, noised, plain_attention, pooled_error, signal_shares


def test_what_is_to_be_predicted_leads_back_from_noise_and_drift() -> None:
    clean, drift = torch.randn(2, 8, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([0, 20, 100, 300, 500, 700, 900, 999])
    alpha = signal_shares()[times][:, None, None, None]
    torch.manual_seed(0)
    noisy, target = noised(clean, times, torch.float32, drift)
    torch.manual_seed(0)
    straight, _ = noised(clean, times, torch.float32)
    sigma = (1 - alpha**2).sqrt()
    assert torch.allclose(alpha * noisy - sigma * target, clean, atol=1e-5)
    assert torch.allclose(noisy - straight, torch.minimum(sigma, alpha) * drift, atol=1e-5)


def test_only_the_second_of_a_couple_sees_the_other() -> None:
    dice = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 5, 8, generator=dice)
    first, second = coupled_attention(None, q, k, v, 2)
    both = (part.flatten(0, 1)[None] for part in (k, v))
    assert torch.allclose(first, plain_attention(None, q[:1], k[:1], v[:1], 2)[0])
    assert torch.allclose(second, plain_attention(None, q[1:], *both, 2)[0], atol=1e-6)
    words = torch.randn(2, 2, 7, 8, generator=dice)
    assert torch.equal(coupled_attention(None, q, *words, 2), plain_attention(None, q, *words, 2))


@pytest.mark.parametrize("size", [1, 4, 16])
def test_means_weigh_what_latents_weigh(size: int) -> None:
    """An estimate that is merely the noisy picture is off by noise / alpha in v: a loss of about 1 at every scale."""
    times = torch.full((64,), 20)
    noise = torch.randn(64, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    error = noise / signal_shares()[times][:, None, None, None]
    assert float(pooled_error(error, times, size)) == pytest.approx(1, abs=0.12)
    assert float(pooled_error(noise, times, 1)) == pytest.approx(float(noise.square().mean()))
