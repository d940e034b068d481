"""What does each layer do? One call a layer against full runs with that layer alone, and against the JSD ranking.

Truth: for every layer a full run of the sampler with style let in there alone, judged by the demo judge: how much
nearer the pictures come to the reference's style, and how far their content moves (what it sees of subject and place).
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch

from benchmarks import harness
from benchmarks.balance import PROFILE, SETTINGS, Job, pair
from benchmarks.harness import Demo, draw
from conditional_balance.engine.agreement import spearman
from conditional_balance.engine.gates import WrittenGate
from conditional_balance.engine.grammar import parse
from conditional_balance.engine.profile import SensitivityProfile
from conditional_balance.engine.profile_file import load
from conditional_balance.runtime.inject.reference import StyleReference
from conditional_balance.runtime.inject.style import StyleInjection, inject_style
from conditional_balance.runtime.profile.effect import measure_layers
from demo import world
from demo.judge import style_distance


def main() -> None:
    chosen = harness.options(__doc__, references=5, prompts=8, steps=12, levels=4, threads=1, setting=1)
    torch.set_num_threads(chosen.threads)
    demo, profile = Demo(cfg=1.0), load(PROFILE)  # the measured effect has no cfg either
    setting = SETTINGS[chosen.setting]
    jobs = [Job(setting, "", 0.0, index, chosen.prompts, chosen.steps) for index in range(chosen.references)]
    rounds = [_round(demo, profile, job, chosen) for job in jobs]
    harness.report({"setting": setting.name, **summarised(rounds, profile)}, chosen)


def _round(demo: Demo, profile: SensitivityProfile, job: Job, chosen: Any) -> dict[str, Any]:
    """True and measured effect of every layer for one reference; neither has cfg."""
    specs, scenes = pair(job)
    picture, prompts = draw(specs), world.captions(scenes, job.setting.named)
    about = demo.conditioning(world.captions(specs, job.setting.named))
    reference = StyleReference(demo.encode(picture), about)
    target = demo.verdict(demo.autoencoded(picture)).style

    def judged(model: Any) -> tuple[float, torch.Tensor]:
        pictures = demo.decode(demo.sample(model, prompts, job.index, chosen.steps))
        return float(style_distance(demo.verdict(pictures).style, target).mean()), _content(demo, pictures)

    started = time.perf_counter()
    plain = demo.sample(demo.model, prompts, job.index, chosen.steps)
    before, content = judged(demo.model)
    runs = [judged(_opened(demo, str(layer), reference)) for layer in profile.layers]
    true_s = time.perf_counter() - started
    started = time.perf_counter()
    with torch.inference_mode():
        found = measure_layers(demo.model, reference, plain, demo.conditioning(prompts), chosen.levels, job.index)
    print(f"reference {job.index} done: truth {true_s:.0f} s", flush=True)
    return {
        "gain": torch.tensor([before - distance for distance, _ in runs]),
        "loss": torch.tensor([float((other - content).norm(dim=-1).mean()) for _, other in runs]),
        "measured gain": (1 - found.scores[0].mean(0))[found.aligned(profile.layers)],
        "measured loss": (1 - found.content.score[0].mean(0))[found.aligned(profile.layers)],
        "true_s": true_s,
        "measured_s": time.perf_counter() - started,
    }


def _content(demo: Demo, pictures: torch.Tensor) -> torch.Tensor:
    """Log probabilities [B, classes] of subject and place, so that a doubt counts as well as an error."""
    heads = demo.judge.content(pictures)
    return torch.cat([head.float().log_softmax(-1) for head in heads], -1)


def _opened(demo: Demo, layer: str, reference: StyleReference) -> Any:
    return inject_style(demo.model, StyleInjection(WrittenGate(parse(layer)), reference))


def summarised(rounds: list[dict[str, Any]], profile: SensitivityProfile) -> dict[str, Any]:
    """Rank correlations over layers, of the means over references and of each reference; and what both cost."""
    ranked = -profile.scores.mean((0, 1))
    layers = [str(layer) for layer in profile.layers]
    true, loss, gain, lost = (
        torch.stack([one[name].double() for one in rounds])
        for name in ("gain", "loss", "measured gain", "measured loss")
    )
    pairs = {
        "gain": (gain, true),
        "loss": (lost, loss),
        "JSD ranking against true gain": (ranked.expand_as(true), true),
        "JSD ranking against true loss": (ranked.expand_as(loss), loss),
        "JSD ranking against measured gain": (ranked.expand_as(gain), gain),
        "true gain against true loss": (true, loss),
    }
    found = {
        name: {
            "spearman": spearman(one.mean(0), other.mean(0)),
            "each": [spearman(*both) for both in zip(one, other, strict=True)],
        }
        for name, (one, other) in pairs.items()
    }
    repeat = [spearman(true[one], true[:one].mean(0)) for one in range(1, len(true))]
    seconds = {name: statistics.mean(one[name] for one in rounds) for name in ("true_s", "measured_s")}
    greedy = seconds["true_s"] * (len(layers) + 1) / 2  # n + (n - 1) + ... runs instead of n
    return {
        "layers": layers,
        "true gain": true.mean(0).tolist(),
        "measured gain": gain.mean(0).tolist(),
        "true loss": loss.mean(0).tolist(),
        "measured loss": lost.mean(0).tolist(),
        "agreement": found,
        "references agree with those before on true gain": repeat,
        "seconds": seconds | {"greedy_s": greedy},
        "cost_of_greedy": seconds["measured_s"] / greedy,
    }


if __name__ == "__main__":
    main()
