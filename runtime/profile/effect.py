"""Measures what each layer does: style is injected at one layer at a time, in a model call at a few noise levels."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher

from ...engine.effect import Effect, effect_of
from ...engine.gates import WrittenGate
from ...engine.grammar import parse
from ...engine.layers import LayerId
from ...engine.profile import SensitivityProfile
from ...engine.scoring import REACH, Scores
from ...engine.texts import counted
from ..arch.fingerprint import fingerprint_of
from ..arch.registry import architecture_of
from ..inject.reference import StyleReference, check_latent, with_frames
from ..inject.style import StyleInjection, inject_style
from ..runs.loaded import sampling_of
from ..runs.probe import Conditioning, finite, look_at, noise_for
from .profiling import noise_of, percent_of

ESTIMATOR = "measured effect of one layer at a time"
SCALE = "1 - gain in style, and 1 - loss of layout for content: 1 where opening the layer changes nothing"


def measure_layers(
    model: ModelPatcher,
    reference: StyleReference,
    latents: torch.Tensor,
    positive: Conditioning,
    levels: int,
    seed: int,
) -> SensitivityProfile:
    """A profile by measured effect: scores are 1 - gain, content scores 1 - loss, alike for q and k.

    `latents` [B, C, (1,) h, w] are pictures painted without the reference; `levels` noise levels stand for equal parts
    of the schedule. One model call a level and layer, and one without any.
    Raises ValueError for a reference without a picture, or latents that are none of this model's.
    """
    started = time.monotonic()
    picture = reference.latent
    if picture is None:
        raise ValueError("'reference' has no picture: connect 'latent' of Style Reference, in the mode with a picture.")
    check_latent(model, latents, "latent")
    check_latent(model, picture)
    latents, picture = (with_frames(model, each) for each in (latents, picture))
    to_sigma = sampling_of(model).percent_to_sigma
    sigmas = torch.tensor([float(to_sigma((level + 0.5) / levels)) for level in range(levels)], dtype=torch.float64)
    layers = architecture_of(model).layers
    bar = comfy.utils.ProgressBar(levels * (1 + len(layers)))
    look = _Looks(latents, positive, sigmas.float(), seed, lambda: bar.update(1))
    plain = look.predictions(model)
    effects = [look.effects(_opened(model, layer, reference), plain, picture) for layer in layers]
    gain, loss = (torch.stack(part, -1) for part in zip(*effects, strict=True))  # [T, B, L]
    style, content = _scores(gain), _scores(loss)
    facts = _facts(model, positive, latents, seed) | {
        "percents": [percent_of(model, sigma) for sigma in sigmas.tolist()],
        "cost": {
            "forward_passes": levels * (1 + 2 * len(layers)) * len(latents),
            "seconds": round(time.monotonic() - started, 3),
        },
    }
    return SensitivityProfile(layers, ("q", "k"), sigmas, *style, facts, content, noise_of(model))


def _facts(model: ModelPatcher, positive: Conditioning, latents: torch.Tensor, seed: int) -> dict[str, Any]:
    return {
        "what": "style, by measured effect",
        "estimator": ESTIMATOR,
        "source": f"{counted(len(latents), 'picture')}, one reference.",
        "scale": SCALE,
        "model": fingerprint_of(model),
        "prompts": {"positive": len(positive), "negative": 0},
        "seed": seed,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _opened(model: ModelPatcher, layer: LayerId, reference: StyleReference) -> ModelPatcher:
    return inject_style(model, StyleInjection(WrittenGate(parse(str(layer))), reference, remember=False))


def _scores(amounts: torch.Tensor) -> Scores:
    """1 - amounts [T, B, L], a mean over pictures with its interval, for two features [2, T, L]."""
    pictures = amounts.shape[1]
    spread = amounts.std(1) / pictures**0.5 if pictures > 1 else torch.zeros_like(amounts[:, 0])
    score = 1 - amounts.mean(1)
    bounds = score, score - REACH * spread, score + REACH * spread
    return Scores(*(torch.stack([bound, bound]).double() for bound in bounds))


class _Looks:
    """Predictions of the same pictures under the same noise, with one model and another."""

    def __init__(
        self,
        latents: torch.Tensor,
        positive: Conditioning,
        sigmas: torch.Tensor,
        seed: int,
        on_call: Callable[[], None],
    ) -> None:
        self._latents, self._positive, self._sigmas, self._seed = latents, positive, sigmas, seed
        self._on_call = on_call
        self._noise = noise_for(latents, seed)

    def predictions(self, model: ModelPatcher) -> list[torch.Tensor]:
        """Predicted pictures [B, C, h, w] at every noise level."""
        found: list[torch.Tensor] = []

        def look(
            guider: comfy.samplers.CFGGuider, noise: torch.Tensor, sigmas: torch.Tensor, options: dict[str, Any]
        ) -> None:
            base, conds = guider.inner_model, [guider.conds["positive"]]
            images = base.process_latent_in(self._latents.to(noise))
            for sigma in sigmas:
                comfy.model_management.throw_exception_if_processing_interrupted()
                noisy = base.model_sampling.noise_scaling(sigma[None], noise, images)
                (out,) = comfy.samplers.calc_cond_batch(base, conds, noisy, sigma.expand(len(noisy)), options)
                found.append(_flat(finite(out, float(sigma))).cpu())
                self._on_call()

        look_at(model, {"positive": self._positive}, self._noise, self._sigmas, self._seed, look)
        return found

    def effects(self, model: ModelPatcher, plain: list[torch.Tensor], picture: torch.Tensor) -> Effect:
        """Gain and loss [T, B] of what a model does otherwise, with the style of a latent `picture`."""
        target = _flat(model.model.process_latent_in(picture[:1])).cpu()
        pairs = zip(plain, self.predictions(model), strict=True)
        found = [effect_of(one, other, target) for one, other in pairs]
        return Effect(*(torch.stack(part) for part in zip(*found, strict=True)))


def _flat(latents: torch.Tensor) -> torch.Tensor:
    """[B, C, h, w] of latents that may have an axis of frames, which are laid under one another."""
    return latents.flatten(2, 3) if latents.ndim == 5 else latents
