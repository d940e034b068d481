"""Profiles of transformers: measured on every family, spaced over their own schedule, and read where they were."""

from __future__ import annotations

import pytest
import torch
from tiny_transformers import KINDS, cond, tiny_transformer

from conditional_balance.engine.noise import LOG, LOGIT, variable
from conditional_balance.engine.profile_file import load, save
from conditional_balance.render.gate_map import schedule_of
from conditional_balance.runtime.arch.fingerprint import fingerprint_of
from conditional_balance.runtime.arch.registry import architecture_of
from conditional_balance.runtime.profile.clusters import with_cluster
from conditional_balance.runtime.profile.profiling import Settings, noise_levels, noise_of, profile_model

EVERY = list(KINDS)


class Encoder:
    """Pictures as latents of any number of channels; a real VAE of each family would weigh a hundred megabytes."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.avg_pool2d(pixels.movedim(-1, 1), 8)
        latents = small.repeat(1, -(-KINDS[self.kind].channels // 3), 1, 1)[:, : KINDS[self.kind].channels] - 0.5
        return 4 * (latents.unsqueeze(2) if KINDS[self.kind].frames else latents)


def clusters():
    generator = torch.Generator().manual_seed(0)
    rough = torch.rand(2, 64, 64, 3, generator=generator)
    flat = torch.rand(2, 1, 1, 3, generator=generator).expand(2, 64, 64, 3)
    return with_cluster(with_cluster((), "rough", list(rough)), "flat", list(flat))


def measured(kind: str, features: tuple[str, ...] = ("q", "k", "v")):
    settings = Settings("style", 3, features, "jensen_shannon", 0, "1:1", 64)
    with torch.inference_mode():
        return profile_model(tiny_transformer(kind), clusters(), Encoder(kind), cond(kind, 1), cond(kind, 2), settings)


@pytest.mark.parametrize("kind", EVERY)
def test_every_family_is_measured_and_its_profile_kept(kind: str, tmp_path) -> None:
    profile = measured(kind)
    assert profile.layers == architecture_of(tiny_transformer(kind)).layers
    assert profile.scores.shape == (3, 3, len(profile.layers)) and bool((profile.scores > 0).all())
    assert float(profile.scores.min()) < 0.9  # rough and flat pictures are told apart somewhere
    assert profile.noise == (LOG if kind == "cosmos" else LOGIT)
    save(profile, tmp_path / "profile.safetensors")
    again = load(tmp_path / "profile.safetensors")
    assert again.noise == profile.noise and again.layers == profile.layers
    for level, sigma in enumerate(again.sigmas.tolist()):
        torch.testing.assert_close(again.at(sigma, "k"), profile.scores[1, level])
    to_sigma = schedule_of(again)
    sampling = tiny_transformer(kind).get_model_object("model_sampling")
    assert to_sigma(0.5) == pytest.approx(float(sampling.percent_to_sigma(0.5)), rel=0.25)


@pytest.mark.parametrize("kind", EVERY)
def test_noise_levels_lie_over_the_whole_schedule(kind: str) -> None:
    """At most a quarter of the schedule lies between two of 12 levels, and they are even in the schedule's variable."""
    model = tiny_transformer(kind)
    sigmas = noise_levels(model, 12)
    to_sigma = model.get_model_object("model_sampling").percent_to_sigma
    percents = torch.linspace(0.001, 0.999, 999)
    known = torch.tensor([float(to_sigma(float(percent))) for percent in percents])
    places = torch.stack([percents[(known - sigma).abs().argmin()] for sigma in sigmas])
    assert float(places.diff().max()) < (0.25 if noise_of(model) == LOGIT else 0.4)
    steps = variable(sigmas, noise_of(model)).diff()
    torch.testing.assert_close(steps, steps[:1].expand(11))


@pytest.mark.parametrize("kind", EVERY)
def test_a_fingerprint_knows_the_weights(kind: str) -> None:
    mine = fingerprint_of(tiny_transformer(kind))
    assert mine["weights"] != fingerprint_of(tiny_transformer(kind, seed=1))["weights"]
    assert len(mine["widths"]) == len(architecture_of(tiny_transformer(kind)).layers) and min(mine["widths"]) > 0


def test_a_flow_profile_is_read_half_way_in_its_own_variable() -> None:
    profile = measured("flux", ("q",))
    middle = float(torch.sigmoid(torch.logit(profile.sigmas[:2]).mean()))
    torch.testing.assert_close(profile.at(middle, "q"), profile.scores[0, :2].mean(0))
    assert torch.equal(profile.at(1.0, "q"), profile.scores[0, 0])
