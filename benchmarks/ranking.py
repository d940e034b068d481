"""Whether the ranking can be believed: layers with planted style and content, and real icon series.

`planted`: the crossed scores against the truth, the plain score beside them. `icons`: the demo model looks at six hands
that draw the same subjects, black on white, so that nothing but the drawing differs. The clusters are the hands.
"""

from __future__ import annotations

import random
import time
from typing import Any

import torch

from benchmarks import planted
from benchmarks._command import command_line, keep
from benchmarks.harness import Demo
from conditional_balance.engine.agreement import spearman
from conditional_balance.engine.profile import SensitivityProfile
from conditional_balance.runtime.profile.clusters import Clusters, with_cluster
from conditional_balance.runtime.profile.profiling import Settings, profile_model
from demo.world.drawing import icon_series, icon_subjects
from demo.world.sets import ICON_FAMILIES

SIDE = 128
PLAIN_TEXT = "a picture"


def main() -> None:
    parser = command_line(__doc__, rounds=20, layers=2000, subjects=6, levels=3, seed=0)
    parser.add_argument("--only", choices=["planted", "icons"], help="one part instead of both")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    if options.only != "icons":
        figures["planted"] = planted_figures(options.rounds, options.layers, options.seed)
    if options.only != "planted":
        figures["icons"] = icon_figures(options.subjects, options.levels, options.seed)
    print(keep(figures, options))


def planted_figures(rounds: int, layers: int, seed: int) -> dict[str, Any]:
    """Mean Spearman with the truth, coverage of 90 % intervals and false alarms at p <= .05, by design."""
    figures = {}
    for styles, subjects, share in ((8, 6, 1.0), (12, 10, 0.25), (16, 12, 0.1)):
        few = max(1, round(share * rounds))
        covered = planted.covered(styles, subjects, layers, seed)
        figures[f"{styles} styles x {subjects} subjects"] = {
            "spearman": planted.mean_ranked(styles, subjects, few, seed)._asdict(),
            "covered": dict(zip(("style", "content"), covered, strict=True)),
            "significant": planted.false_alarms(styles, subjects, layers, seed),
        }
    return figures


def icon_figures(subjects: int, levels: int, seed: int) -> dict[str, Any]:
    """The demo model's profile of each icon family, with the subjects named and without."""
    demo = Demo()
    figures = {}
    for family in ICON_FAMILIES:
        chosen = random.Random(seed).sample(icon_subjects(family), subjects)
        start = time.perf_counter()
        crossed, plain = (_profile(demo, _clusters(family, chosen, named), levels, seed) for named in (True, False))
        figures[family] = {
            "subjects": chosen,
            "hands": len(ICON_FAMILIES[family]),
            "crossed": crossed.provenance["separation"],
            "content": crossed.provenance["content_separation"],
            "plain": plain.provenance["separation"],
            "read_as": plain.provenance["series"],
            "style_and_content_agree": _agreement(crossed),
            "seconds": round(time.perf_counter() - start, 1),
        }
    return figures


def _clusters(family: str, subjects: list[str], named: bool) -> Clusters:
    made: Clusters = ()
    for hand, pictures in icon_series(family, subjects, SIDE).items():
        made = with_cluster(made, hand, list(pictures.movedim(1, -1)), subjects if named else ())
    return made


def _profile(demo: Demo, clusters: Clusters, levels: int, seed: int) -> SensitivityProfile:
    settings = Settings("style", levels, ("q", "k"), "jensen_shannon", seed, "1:1", SIDE)
    with torch.inference_mode():
        return profile_model(demo.model, clusters, demo.vae, demo.conditioning([PLAIN_TEXT]), None, settings)


def _agreement(profile: SensitivityProfile) -> float:
    """Spearman of the style and content scores, a mean over features and noise levels."""
    levels = zip(profile.scores.flatten(0, 1), profile.content.score.flatten(0, 1), strict=True)
    found = [spearman(*level) for level in levels]
    return sum(found) / len(found)


if __name__ == "__main__":
    main()
