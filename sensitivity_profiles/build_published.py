"""Turns published style ranks of SDXL's layers into a sensitivity profile: `python build_published.py RANKS.json`."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
NAME = "sdxl-base-1.0.style.published.safetensors"
PROVENANCE = {
    "name": "SDXL base 1.0",
    "what": "style",
    "scale": "rank / 70: 0.014 for the most sensitive layer of a noise level, 1 for the least",
    "estimator": "carried over as published figures",
    "source": "Cohen, Nir, Shamir: Conditional Balance, arXiv 2412.19853 (CVPR 2025), published layer grading",
    "model": {"name": "SDXL base 1.0"},
    "prompts": {},
}


def profile_of(ranks: dict[str, Any]) -> Any:
    """The profile whose scores are rank / number of layers; layers come in forward order, levels by falling sigma."""
    engine = _engine()
    listed = [engine.layers.LayerId(*layer) for layer in ranks["layers"]]
    layers = engine.layers.in_forward_order(listed)
    columns = [listed.index(layer) for layer in layers]
    scores = torch.tensor([ranks["ranks"][feature] for feature in ranks["features"]], dtype=torch.float64)
    return engine.profile.SensitivityProfile(
        layers=layers,
        features=tuple(ranks["features"]),
        sigmas=torch.tensor(ranks["sigmas"], dtype=torch.float64),
        scores=scores[..., columns] / len(layers),
        provenance=PROVENANCE,
    )


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
    profile = profile_of(json.loads(Path(argv[0]).read_text(encoding="utf-8")))
    _engine().profile_file.save(profile, HERE / NAME)


if __name__ == "__main__":
    main(sys.argv[1:])
