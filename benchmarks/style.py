"""What style injection costs: off, on the paper's share of SDXL's layers, and in memory over a run.

Plain sampling, lambda 0 and lambda 0.43 run in turns on a UNet with SDXL's 70 layers at a reduced width; ratios are
medians over rounds. The least that lambda 0.43 must add is timed by itself: attention of the styled rows over twice the
keys, the moments and the affine map of their queries and keys, and for a renoised reference one more row per chunk.
On a CPU the clock is this process's own on one thread, so that other work on the machine does not count.
"""

from __future__ import annotations

import gc
import logging
import math
import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.supported_models
import torch

from benchmarks._command import command_line, keep
from conditional_balance.engine.gates import RankedGate
from conditional_balance.engine.profile import SensitivityProfile
from conditional_balance.engine.profile_file import load
from conditional_balance.engine.style import StyleSettings, adain, layer_styles
from conditional_balance.runtime.arch.attention import plain_attention
from conditional_balance.runtime.arch.unet import attention_layers
from conditional_balance.runtime.inject.reference import FIRST_ROW, StyleReference
from conditional_balance.runtime.inject.style import StyleInjection, inject_style
from devtools.bootstrap import ROOT

PROFILE = ROOT / "sensitivity_profiles" / "sdxl-base-1.0.style.published.safetensors"
GOALS = {"lambda 0": 1.02, "lambda 0.43": 1.10}
CONTEXT, POOLED = 64, 2816


class Setting(NamedTuple):
    """What a run is of; SDXL itself has 320 channels, and a latent of 128 for 1024 pixels."""

    channels: int = 32
    size: int = 32  # of the latent's sides
    steps: int = 4
    rounds: int = 15  # runs of each kind, in turns
    dtype: str = "float32"


def main() -> None:
    chosen = command_line(__doc__, **Setting()._asdict()).parse_args()
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    device = comfy.model_management.get_torch_device()
    if device.type == "cpu":
        torch.set_num_threads(1)
    bench = Bench(Setting(*(getattr(chosen, name) for name in Setting._fields)), device)
    with torch.inference_mode():
        results = {
            "first row of the batch": bench.compare(batch=2),
            "renoised latent": bench.compare(batch=1, hidden=True),
        }
        report = {"setting": bench.told(), "results": results, "memory": bench.memory()}
    report["met"] = met(report)
    _tell(report)
    keep(report, chosen)


class Bench:
    """A model, a clock, and runs in turns."""

    def __init__(self, setting: Setting, device: torch.device) -> None:
        self.setting, self.device, self.dtype = setting, device, getattr(torch, setting.dtype)
        self.profile: SensitivityProfile = load(PROFILE)
        self.model = sdxl_shaped(setting.channels, self.dtype, device)
        self.prompts = [cond(seed) for seed in (1, 2)]
        self.sigmas = comfy.samplers.calculate_sigmas(self.model.model.model_sampling, "normal", setting.steps)

    def compare(self, batch: int, hidden: bool = False) -> dict[str, Any]:
        """Times of plain, lambda 0 and lambda 0.43, and the least that the last must take."""
        reference = StyleReference(torch.randn(1, 4, *self._size), cond(3)) if hidden else FIRST_ROW
        runs = {
            "plain": lambda: self.run(self.model, batch),
            "lambda 0": lambda: self.run(self.injected(0.0, reference), batch),
            "lambda 0.43": lambda: self.run(self.injected(0.43, reference), batch),
            "one row more": lambda: self.run(self.model, batch + 1),
        }
        times = in_turns(runs, self.clock, self.setting.rounds)
        extra = self.least_extra(styled_rows=2 * (batch if hidden else batch - 1))
        base = times["one row more" if hidden else "plain"]
        least = [each + sum(extra.values()) for each in base]
        return {
            "seconds": {name: statistics.median(values) for name, values in times.items()},
            "least extra seconds": extra,
            "lambda 0 / plain": ratio(times["lambda 0"], times["plain"]),
            "lambda 0.43 / plain": ratio(times["lambda 0.43"], times["plain"]),
            "least / plain": ratio(least, times["plain"]),
            "lambda 0.43 / least": ratio(times["lambda 0.43"], least),
        }

    def least_extra(self, styled_rows: int) -> dict[str, float]:
        """Seconds per run that the open layers cannot do without, from the shapes they have in the model."""
        attention = adain_time = 0.0
        for (tokens, width, heads, moved), count in self._open_shapes().items():
            q, longer = (
                torch.randn(styled_rows, n, width, device=self.device, dtype=self.dtype) for n in (tokens, 2 * tokens)
            )
            extra_options = {"n_heads": heads, "attn_precision": None}
            short = q.clone()
            both = in_turns(
                {
                    "twice the keys": lambda q=q, k=longer, o=extra_options: plain_attention(q, k, k, None, o),
                    "the keys": lambda q=q, k=short, o=extra_options: plain_attention(q, k, k, None, o),
                    "adain": lambda q=q: adain(q, q[:1], 1.0),
                },
                self.clock,
                15,
            )
            middle = {name: statistics.median(values) for name, values in both.items()}
            attention += count * (middle["twice the keys"] - middle["the keys"])
            adain_time += count * moved * middle["adain"]
        return {"attention": attention, "adain": adain_time}

    def _open_shapes(self) -> Counter[tuple[int, int, int, int]]:
        """(tokens, width, heads, features moved) of every layer call of a run that injects style."""
        blocks = attention_layers(self.model)
        gate, layers = RankedGate(self.profile, 0.43), tuple(blocks)
        shapes: Counter[tuple[int, int, int, int]] = Counter()
        for sigma in self.sigmas[:-1].tolist():
            styles = layer_styles(gate.weights(sigma, layers, float), layers, StyleSettings())
            for layer, style in styles.items():
                attn = blocks[layer].attn1
                width = attn.heads * attn.dim_head
                tokens = math.prod(self._size) // (4 if width == 2 * self.setting.channels else 16)
                shapes[tokens, width, attn.heads, int(style.q > 0) + int(style.k > 0)] += 1
        return shapes

    def injected(self, share: float, reference: StyleReference) -> Any:
        """The reference rides along: `bench references` times one that is remembered."""
        return inject_style(self.model, StyleInjection(RankedGate(self.profile, share), reference, remember=False))

    def run(self, model: Any, batch: int, steps_seen: list[int] | None = None) -> torch.Tensor:
        noise = torch.randn(batch, 4, *self._size, generator=torch.Generator().manual_seed(0))
        callback = None if steps_seen is None else lambda *args: steps_seen.append(self.live_bytes())
        sampler = comfy.samplers.sampler_object("euler")
        return comfy.sample.sample_custom(
            model, noise, 5.0, sampler, self.sigmas, *self.prompts, torch.zeros_like(noise),
            callback=callback, disable_pbar=True, seed=0,
        )  # fmt: skip

    def memory(self) -> dict[str, int]:
        """Bytes of live tensors after the second and the last of 16 steps with a renoised reference."""
        sigmas, self.sigmas = (
            self.sigmas,
            comfy.samplers.calculate_sigmas(self.model.model.model_sampling, "normal", 16),
        )
        reference = StyleReference(torch.randn(1, 4, *self._size), cond(3))
        seen: list[int] = []
        self.run(self.injected(0.43, reference), 1, seen)
        self.sigmas = sigmas
        return {"after step 2": seen[1], "after step 16": seen[-1]}

    def live_bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device)
        gc.collect()
        storages = (
            each.untyped_storage() for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)
        )
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    def clock(self) -> float:
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def told(self) -> dict[str, Any]:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.processor()
        return {"device": name or self.device.type, "torch": torch.__version__, **self.setting._asdict()}

    @property
    def _size(self) -> tuple[int, int]:
        return self.setting.size, self.setting.size


def in_turns(runs: dict[str, Callable[[], Any]], clock: Callable[[], float], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run, round by round, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, each in runs.items():
            start = clock()
            each()
            if number:
                times[name].append(clock() - start)
    return times


def ratio(times: Sequence[float], base: Sequence[float]) -> float:
    """Median over rounds of the ratio within a round."""
    return statistics.median(one / other for one, other in zip(times, base, strict=True))


def sdxl_shaped(
    channels: int, dtype: torch.dtype, device: torch.device, context: int = CONTEXT
) -> comfy.model_patcher.ModelPatcher:
    """A UNet with SDXL's blocks and transformer depths, random weights and widths of its own (SDXL: 320 and 2048)."""
    config = comfy.supported_models.SDXL(
        {
            "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": channels, "legacy": False,
            "use_spatial_transformer": True, "use_linear_in_transformer": True, "num_res_blocks": [2, 2, 2],
            "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
            "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "context_dim": context,
            "num_classes": "sequential", "adm_in_channels": POOLED,
        }
    )  # fmt: skip
    config.unet_config["num_head_channels"] = min(64, channels)
    config.set_inference_dtype(dtype, None)
    with torch.inference_mode():
        model = comfy.model_base.SDXL(config, device=device)
        for name, parameter in model.diffusion_model.named_parameters():
            scale = 1 / math.sqrt(parameter[0].numel()) if parameter.ndim > 1 else 0.1
            parameter.normal_(0.0 if parameter.ndim > 1 or name.endswith("bias") else 1.0, scale)
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)


def cond(seed: int) -> list[list[Any]]:
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.randn(1, 1280, generator=generator)
    return [[torch.randn(1, 77, CONTEXT, generator=generator), {"pooled_output": pooled}]]


def met(report: dict[str, Any]) -> dict[str, bool]:
    """Which goals the figures reach."""
    results, memory = report["results"].values(), report["memory"]
    return {
        "lambda 0": all(figures["lambda 0 / plain"] <= GOALS["lambda 0"] for figures in results),
        "lambda 0.43": all(figures["lambda 0.43 / least"] <= GOALS["lambda 0.43"] for figures in results),
        "nothing grows": memory["after step 16"] <= memory["after step 2"],
    }


def _tell(report: dict[str, Any]) -> None:
    print(", ".join(f"{key} {value}" for key, value in report["setting"].items()))
    for name, figures in report["results"].items():
        print(f"\n{name}")
        print(f"  lambda 0    / plain  {figures['lambda 0 / plain']:.3f}   (goal {GOALS['lambda 0']})")
        print(f"  lambda 0.43 / plain  {figures['lambda 0.43 / plain']:.3f}   (least {figures['least / plain']:.3f})")
        print(f"  lambda 0.43 / least  {figures['lambda 0.43 / least']:.3f}   (goal {GOALS['lambda 0.43']})")
    memory = report["memory"]
    print(f"\nlive tensors after step 2: {memory['after step 2']} bytes, after step 16: {memory['after step 16']}")
    print(", ".join(f"{goal}: {'met' if reached else 'MISSED'}" for goal, reached in report["met"].items()))


if __name__ == "__main__":
    main()
