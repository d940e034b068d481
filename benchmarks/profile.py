"""What profiling costs, each figure beside its baseline in one run: capture, memory and scoring.

What a profile is worth stands in three others: `ranking` (crossed against plain scores, planted truth), `layers`
(whether a ranking foresees what the layers do) and `scale` (5,000 pictures, one actor against two).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import comfy.model_base
import comfy.supported_models
import torch
from comfy.model_patcher import ModelPatcher

from benchmarks._command import command_line, keep
from conditional_balance.engine.divergence import DISTANCES, pairwise
from conditional_balance.engine.layers import LayerId
from conditional_balance.engine.moments import Moments
from conditional_balance.engine.plain import scores_of, separation_of
from conditional_balance.runtime.profile.capture import Recorder, distances_of, recording

ROUNDS = 9
IMAGES, LEVELS, CLUSTERS = 50, 14, 10
FEATURES = ("q", "k")
SDXL_WIDTHS = {640: 10, 1280: 60}  # channels: number of self-attention layers
LOOPED_PAIRS = 10
GOAL_S = 3  # for scoring, on two cores

# SDXL's blocks at 5/8 of its width and a third of its depth: large enough that maths, not Python, takes the time.
MIDDLE_SIZE = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 192,
    "num_res_blocks": [2, 2, 2],
    "channel_mult": [1, 2, 4],
    "transformer_depth": [0, 0, 2, 2, 3, 3],
    "transformer_depth_middle": 3,
    "transformer_depth_output": [0, 0, 0, 2, 2, 2, 3, 3, 3],
    "context_dim": 768,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "legacy": False,
    "num_classes": "sequential",
    "adm_in_channels": 2816,
}


def main() -> None:
    options = command_line(__doc__).parse_args()
    with torch.inference_mode():
        figures = {"threads": torch.get_num_threads(), **capture_cost(), "scoring": scoring_cost()}
    for line in _told(figures):
        print(line)
    keep(figures, options)


def capture_cost() -> dict[str, Any]:
    """Time and memory of recording q and k, beside the same forward pass without it, one after the other in turns."""
    model, inputs = _middle_sized(), _inputs()
    run = model.model.diffusion_model
    plain, recorded = [], []
    run(**inputs)
    for _ in range(ROUNDS):
        plain.append(_seconds(lambda: run(**inputs)))
        with recording(model, ("q", "k")) as recorder:
            recorded.append(_seconds(lambda: run(**inputs)))
            held = _held_bytes(recorder)
    ratio = statistics.median(one / other for one, other in zip(recorded, plain, strict=True))
    return {
        "capture": {"plain_s": min(plain), "recorded_s": min(recorded), "ratio": ratio},
        "memory": {"held_bytes": held, "projected_bytes": _projected_bytes(model, inputs)},
    }


def scoring_cost() -> dict[str, Any]:
    """Scoring 50 images x 14 levels x 70 layers x 2 features at SDXL's widths, one vector for each image and layer.

    The loop over pairs is timed on a few pairs of one layer of each width and multiplied up.
    """
    figures: dict[str, Any] = {"images": IMAGES, "levels": LEVELS, "layers": 70, "features": 2}
    figures["certainty_s"] = _seconds(_certainty)
    for distance in DISTANCES:
        pairwise(_moments(8), distance)  # fills the table
        busy = time.process_time()
        wall = _seconds(partial(_score_levels, distance))
        busy = time.process_time() - busy
        figures[distance] = {"tensors_s": wall, "processor_s": busy, "loop_s": _loop_seconds(distance)}
        figures[distance]["ratio"] = figures[distance]["loop_s"] / wall
        figures[distance]["all_s"] = wall + figures["certainty_s"]
    return figures


def _score_levels(distance: str) -> None:
    """All layers of every level, as a profile is measured; other moments for each layer than for the last."""
    samples = {width: [_moments(width, seed) for seed in range(3)] for width in SDXL_WIDTHS}
    widths = [width for width, layers in SDXL_WIDTHS.items() for _ in range(layers)]
    layers = [LayerId("input", number) for number in range(len(widths))]
    level = {
        (layer, feature): Moments(*(part[:, place] for part in samples[width][layer.number % 3]))
        for layer, width in zip(layers, widths, strict=True)
        for place, feature in enumerate(FEATURES)
    }
    for _ in range(LEVELS):
        distances_of([level], layers, FEATURES, distance, 1.0)


def _loop_seconds(distance: str) -> float:
    """One pair, feature and layer after another in float64, as one would write it down; extrapolated."""
    formula = {"jensen_shannon": _jensen_shannon_by_quadrature, "bhattacharyya": _bhattacharyya}[distance]
    pairs = IMAGES * (IMAGES - 1) // 2
    return sum(_pair_seconds(formula, width) * pairs * layers * LEVELS * 2 for width, layers in SDXL_WIDTHS.items())


def _pair_seconds(formula: Callable[..., float], width: int) -> float:
    moments = _moments(width)
    mean, std = moments.mean[:, 0].double(), moments.std[:, 0].double()
    others = range(1, 1 + LOOPED_PAIRS)
    return _seconds(lambda: [formula(mean[0], std[0], mean[i], std[i]) for i in others]) / LOOPED_PAIRS


def _bhattacharyya(mean1: torch.Tensor, std1: torch.Tensor, mean2: torch.Tensor, std2: torch.Tensor) -> float:
    variance = (std1**2 + std2**2) / 2
    return float(((mean1 - mean2) ** 2 / (8 * variance) + 0.5 * torch.log(variance / (std1 * std2))).mean())


def _jensen_shannon_by_quadrature(
    mean1: torch.Tensor, std1: torch.Tensor, mean2: torch.Tensor, std2: torch.Tensor
) -> float:
    """On a grid that covers both Gaussians, 64 nodes."""
    low = torch.minimum(mean1 - 5 * std1, mean2 - 5 * std2)
    high = torch.maximum(mean1 + 5 * std1, mean2 + 5 * std2)
    z = low[:, None] + (high - low)[:, None] * torch.linspace(0, 1, 64, dtype=torch.float64)
    p = torch.distributions.Normal(mean1[:, None], std1[:, None]).log_prob(z)
    q = torch.distributions.Normal(mean2[:, None], std2[:, None]).log_prob(z)
    m = torch.logaddexp(p, q) - torch.log(torch.tensor(2.0))
    return float(torch.trapezoid((p.exp() * (p - m) + q.exp() * (q - m)) / 2, z).mean())


def _certainty() -> None:
    """Scores, bootstrap interval and permutation test of all levels, layers and features."""
    distances = torch.rand(2, LEVELS, 70, IMAGES, IMAGES, dtype=torch.float64)
    distances = distances + distances.mT
    distances.diagonal(dim1=-2, dim2=-1).zero_()
    labels = [image % CLUSTERS for image in range(IMAGES)]
    scores_of(distances, labels, 0)
    separation_of(distances, labels, 0)


def _moments(width: int, seed: int = 0) -> Moments:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(IMAGES, 2, width, generator=generator)
    return Moments(0.5 * mean, (0.2 * torch.randn(IMAGES, 2, width, generator=generator)).exp())


def _middle_sized() -> ModelPatcher:
    config = comfy.supported_models.SDXL(dict(MIDDLE_SIZE))
    config.unet_config["num_head_channels"] = 64
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.SDXL(config, device=torch.device("cpu"))
    for parameter in model.diffusion_model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return ModelPatcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def _inputs() -> dict[str, Any]:
    """One image with both conditionings, 64 x 64 latent pixels."""
    return {
        "x": torch.randn(2, 4, 64, 64),
        "timesteps": torch.full((2,), 500.0),
        "context": torch.randn(2, 77, 768),
        "y": torch.randn(2, 2816),
        "transformer_options": {"uuids": ["cond", "uncond"]},
    }


def _held_bytes(recorder: Recorder) -> int:
    moments = recorder.take(["cond", "uncond"])
    return sum(part.numel() * part.element_size() for both in moments.values() for part in both)


def _projected_bytes(model: ModelPatcher, inputs: dict[str, Any]) -> int:
    """What keeping q and k themselves would take."""
    sizes: list[int] = []
    handles = [
        getattr(module, name).register_forward_hook(lambda m, a, out: sizes.append(out.numel() * out.element_size()))
        for path, module in model.model.diffusion_model.named_modules()
        if path.endswith("attn1")
        for name in ("to_q", "to_k")
    ]
    model.model.diffusion_model(**inputs)
    for handle in handles:
        handle.remove()
    return sum(sizes)


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _told(figures: dict[str, Any]) -> list[str]:
    capture, memory, scoring = figures["capture"], figures["memory"], figures["scoring"]
    lines = [
        f"{figures['threads']} processor threads",
        f"capture: {capture['ratio'] - 1:+.1%} on a forward pass (plain {capture['plain_s']:.2f} s, recorded "
        f"{capture['recorded_s']:.2f} s; median of {ROUNDS} neighbours)",
        f"memory: {memory['held_bytes'] / 1e6:.2f} MB held per image and level; the projections themselves are "
        f"{memory['projected_bytes'] / 1e6:.0f} MB",
        "scoring 50 images x 14 levels x 70 layers x 2 features at SDXL's widths:",
    ]
    for distance in DISTANCES:
        found = scoring[distance]
        lines.append(
            f"  {distance}: {found['tensors_s']:.1f} s, {found['processor_s']:.1f} processor seconds; pair by pair "
            f"{found['loop_s']:.0f} s (from {LOOPED_PAIRS} pairs), {found['ratio']:.0f} times as long; "
            f"{found['all_s']:.1f} s with scores, interval and permutation test (goal {GOAL_S} s)"
        )
    return lines


if __name__ == "__main__":
    main()
