"""What everything costs on a GPU: SDXL's and SD3.5 Medium's true shapes at 1024 x 1024, random weights, half precision.

Steps of plain sampling and of style injection at several lambdas run in turns, with guidance; ratios are medians over
rounds. Profiling is timed against the forward passes it needs, a look for a subject against one conditional forward.
Each part is written as soon as it is measured, so that a run cut short keeps what it has; one that cannot run here is
named with the reason. No weights are needed. `--prepare FOLDER` measures nothing: it runs every part once in the
smallest shape and, if all did, copies what a machine without network must be brought (CONTRIBUTING.md, *On a GPU*).
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import comfy.supported_models
import torch

from benchmarks._command import command_line, keep
from benchmarks.style import in_turns, ratio, sdxl_shaped
from conditional_balance.engine.gates import WrittenGate
from conditional_balance.engine.grammar import parse
from conditional_balance.engine.subject import Phrase
from conditional_balance.runtime.arch.registry import architecture_of
from conditional_balance.runtime.attribution.find import ProbeSettings, find_subject
from conditional_balance.runtime.attribution.settings import AttributionSettings
from conditional_balance.runtime.attribution.subject import Subject
from conditional_balance.runtime.inject.reference import FIRST_ROW, StyleReference
from conditional_balance.runtime.inject.style import StyleInjection, inject_style
from conditional_balance.runtime.profile.capture import measure
from devtools import elsewhere

Part = Callable[[], dict[str, Any]]
Make = Callable[[argparse.Namespace, torch.device], "Case"]

SMALLEST = {"size": 64, "steps": 1, "rounds": 1, "pictures": 1, "width": 0.1}
LAMBDAS = (0.0, 0.2, 0.43, 1.0)
METHODS = ("value_norm", "attention", "jvp", "grad_sam")
SD35_MEDIUM = {
    "in_channels": 16, "patch_size": 2, "depth": 24, "adm_in_channels": 2048, "qk_norm": "rms",
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}},
    "num_patches": 384 * 384, "pos_embed_max_size": 384, "pos_embed_scaling_factor": None, "input_size": None,
    "x_block_self_attn_layers": list(range(13)),
}  # fmt: skip


def main() -> None:
    options = _arguments()
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    if options.prepare is None:
        measured(options)
        return
    for name, value in SMALLEST.items():
        setattr(options, name, value)
    report = measured(options)
    if any("not measured" in part for parts in report["models"].values() for part in parts.values()):
        sys.exit("Nothing was prepared: a part above cannot run.")
    elsewhere.prepare(Path(os.environ["COMFYUI_PATH"]), options.prepare)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Every part of every model, written as soon as it is there."""
    device = comfy.model_management.get_torch_device()
    report: dict[str, Any] = {"setting": setting(device, options), "models": {}}
    with torch.inference_mode():
        for name in MODELS:
            report["models"][name] = {}
            _measure_model(name, device, options, report)
            comfy.model_management.soft_empty_cache(True)  # the model before is gone
    return report


def _measure_model(name: str, device: torch.device, options: argparse.Namespace, report: dict[str, Any]) -> None:
    for part, run in _parts_of(MODELS[name], options, device).items():
        found = report["models"][name][part] = attempted(run)
        print(name, part, found, flush=True)
        keep(report, options)


def _parts_of(make: Make, options: argparse.Namespace, device: torch.device) -> dict[str, Part]:
    """A model's parts; one that only says why, where the model itself cannot be made."""
    try:
        return make(options, device).parts()
    except Exception as problem:
        refusal = problem  # the name of an except clause does not outlive it

        def refused() -> dict[str, Any]:
            raise refusal

        return {"model": refused}


def _arguments() -> argparse.Namespace:
    parser = command_line(__doc__, size=1024, steps=6, rounds=3, pictures=16, width=1.0)
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help="make what another machine must be brought")
    return parser.parse_args()


def attempted(run: Part) -> dict[str, Any]:
    """What a part measured, or why it could not be: whatever it is, the other parts still run."""
    try:
        return run()
    except Exception as problem:
        traceback.print_exc()
        return {"not measured": f"{type(problem).__name__}: {(str(problem).splitlines() or [''])[0]}"}


def setting(device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    kept = ("size", "steps", "rounds", "pictures", "width")
    return {"device": name, "torch": torch.__version__} | {key: getattr(options, key) for key in kept}


class Case:
    """One model with its text, latents and clock."""

    def __init__(
        self, model: Any, text: tuple[int, int], pooled: int, channels: int, options: argparse.Namespace
    ) -> None:
        self.model, self.text, self.pooled, self.channels, self.options = model, text, pooled, channels, options
        self.device = model.load_device
        self.layers = architecture_of(model).layers
        sampling = model.get_model_object("model_sampling")
        self.sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", options.steps)

    @classmethod
    def sdxl(cls, options: argparse.Namespace, device: torch.device) -> Case:
        channels = max(int(320 * options.width) // 64 * 64, 64)
        model = sdxl_shaped(channels, half(device), device, context=2048)
        return cls(model, (77, 2048), 1280, 4, options)

    @classmethod
    def sd35_medium(cls, options: argparse.Namespace, device: torch.device) -> Case:
        shape = SD35_MEDIUM | {"depth": max(int(24 * options.width), 2)}
        linear = {"in_features": 4096, "out_features": 64 * shape["depth"]}
        shape["context_embedder_config"] = {"target": "torch.nn.Linear", "params": linear}
        shape["x_block_self_attn_layers"] = [block for block in range(13) if block < shape["depth"]]
        config = comfy.supported_models.SD3(shape)
        config.set_inference_dtype(half(device), None)
        model = comfy.model_base.SD3(config, device=device)
        for parameter in model.diffusion_model.parameters():
            parameter.normal_(0.0, 0.02)
        for name, buffer in model.diffusion_model.named_buffers():
            if name == "pos_embed":
                buffer.zero_()
        patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)
        return cls(patcher, (154, 4096), 2048, 16, options)

    def parts(self) -> dict[str, Part]:
        return {
            "style, a picture as the reference": lambda: self.style(1, self.reference()),
            "style, first row of two": lambda: self.style(2, FIRST_ROW),
            "profile": self.profile,
            "attribution": self.attribution,
        }

    def style(self, batch: int, reference: StyleReference) -> dict[str, Any]:
        """Seconds and peak memory of a step, and ratios over the plain one."""
        runs = {"plain": lambda: self.sample(self.model, batch)}
        for share in LAMBDAS:
            runs[f"lambda {share:g}"] = functools.partial(self.sample, self.injected(share, reference), batch)
        times = in_turns(runs, self.clock, self.options.rounds)
        return {
            "seconds a step": {name: min(values) / self.options.steps for name, values in times.items()},
            "over plain": {name: ratio(values, times["plain"]) for name, values in times.items()},
            "peak GB": {name: self.peak(run) for name, run in runs.items()},
        }

    def profile(self) -> dict[str, Any]:
        """Pictures profiled in a second at one noise level, against forward passes of as many pictures."""
        latents = torch.randn(self.options.pictures, self.channels, *self.grid())
        sigmas = self.sigmas[len(self.sigmas) // 2][None].to(self.device)

        def captured() -> None:
            measure(
                self.model, latents, self.prompt(1), None, sigmas, ("q", "k"), "jensen_shannon", 0,
                lambda count: None, lambda *tile: None,
            )  # fmt: skip

        times = in_turns({"profile": captured}, self.clock, self.options.rounds)
        return {"pictures a second": self.options.pictures / min(times["profile"]), "peak GB": self.peak(captured)}

    def attribution(self) -> dict[str, Any]:
        """Seconds of a look at one noise level by each method, over the look that only predicts."""
        subject = Subject(self.prompt(1), (Phrase("subject", (2, 3)),))
        latent = torch.randn(1, self.channels, *self.grid())
        runs = {
            method: lambda method=method: find_subject(
                self.model, latent, subject, ProbeSettings((0.7,)), AttributionSettings(method)
            )
            for method in METHODS
        }
        runs["one step"] = lambda: self.sample(self.model, 1, cfg=1.0, sigmas=self.sigmas[:2])
        times = in_turns(runs, self.clock, self.options.rounds)
        return {
            "seconds": {name: min(values) for name, values in times.items()},
            "over one step": {name: ratio(times[name], times["one step"]) for name in METHODS},
            "peak GB": {name: self.peak(run) for name, run in runs.items()},
        }

    def injected(self, share: float, reference: StyleReference) -> Any:
        """Style in the first layers of the model: random weights have no ranking, and any layer costs the same."""
        chosen = ", ".join(map(str, self.layers[: round(share * len(self.layers))]))
        return inject_style(self.model, StyleInjection(WrittenGate(parse(chosen or "-all")), reference))

    def reference(self) -> StyleReference:
        return StyleReference(torch.randn(1, self.channels, *self.grid()), self.prompt(3))

    def prompt(self, seed: int) -> list[list[Any]]:
        generator = torch.Generator().manual_seed(seed)
        pooled = torch.randn(1, self.pooled, generator=generator)
        return [[torch.randn(1, *self.text, generator=generator), {"pooled_output": pooled}]]

    def sample(self, model: Any, batch: int, cfg: float = 5.0, sigmas: torch.Tensor | None = None) -> torch.Tensor:
        noise = torch.randn(batch, self.channels, *self.grid(), generator=torch.Generator().manual_seed(0))
        sampler = comfy.samplers.sampler_object("euler")
        sigmas = self.sigmas if sigmas is None else sigmas
        return comfy.sample.sample_custom(
            model, noise, cfg, sampler, sigmas, self.prompt(1), self.prompt(2), torch.zeros_like(noise),
            disable_pbar=True, seed=0,
        )  # fmt: skip

    def grid(self) -> tuple[int, int]:
        return self.options.size // 8, self.options.size // 8

    def clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def peak(self, run: Callable[[], Any]) -> float | None:
        if self.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        return torch.cuda.max_memory_allocated(self.device) / 1e9


def half(device: torch.device) -> torch.dtype:
    return torch.float16 if device.type == "cuda" else torch.float32


MODELS: dict[str, Make] = {"SDXL": Case.sdxl, "SD3.5 Medium": Case.sd35_medium}


if __name__ == "__main__":
    main()
