"""Turns published style ranks into a profile: `python build_published.py NAME RANKS.json`, NAME one of PROFILES."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

HERE = Path(__file__).resolve().parent
PAPER = "Cohen, Nir, Shamir: Conditional Balance, arXiv 2412.19853 (CVPR 2025)"


class Published(NamedTuple):
    """One published grading: whose it is, and how many of its noisiest levels measure nothing but noise."""

    model: str
    source: str
    left_out: int = 0
    noise: str = "log"


PROFILES = {
    "sdxl-base-1.0.style.published": Published("SDXL base 1.0", f"{PAPER}, published layer grading"),
    "sdxl-base-1.0.style-with-values.published": Published(
        "SDXL base 1.0", f"{PAPER}, the authors' second layer grading of July 2025, which has values too"
    ),
    "sd3.5-large.style.published": Published(
        "SD3.5 Large", f"{PAPER}, published layer grading of SD3.5 Large", left_out=2, noise="logit"
    ),
}


def profile_of(name: str, ranks: dict[str, Any]) -> Any:
    """The profile whose scores are rank / number of layers; layers come in forward order, levels by falling sigma."""
    engine, published = _engine(), PROFILES[name]
    listed = [engine.layers.LayerId(*layer) for layer in ranks["layers"]]
    layers = engine.layers.in_forward_order(listed)
    columns = [listed.index(layer) for layer in layers]
    scores = torch.tensor([ranks["ranks"][feature] for feature in ranks["features"]], dtype=torch.float64)
    return engine.profile.SensitivityProfile(
        layers=layers,
        features=tuple(ranks["features"]),
        sigmas=torch.tensor(ranks["sigmas"], dtype=torch.float64)[published.left_out :],
        scores=scores[:, published.left_out :, columns] / len(layers),
        provenance=_provenance(published, len(layers)),
        noise=published.noise,
    )


def _provenance(published: Published, layers: int) -> dict[str, Any]:
    return {
        "name": published.model,
        "what": "style",
        "scale": f"rank / {layers}: {1 / layers:.3f} for the most sensitive layer of a noise level, 1 for the least",
        "estimator": "carried over as published figures",
        "source": published.source,
        "model": {"name": published.model},
        "prompts": {},
    }


def _engine() -> Any:
    """The pack's engine, which needs no ComfyUI."""
    sys.path.insert(0, str(HERE.parent))
    try:
        for module in ("layers", "profile", "profile_file"):
            importlib.import_module(f"engine.{module}")
        return importlib.import_module("engine")
    finally:
        sys.path.pop(0)


def main(argv: list[str]) -> None:
    name, ranks = argv
    profile = profile_of(name, json.loads(Path(ranks).read_text(encoding="utf-8")))
    _engine().profile_file.save(profile, HERE / f"{name}.safetensors")


if __name__ == "__main__":
    main(sys.argv[1:])
