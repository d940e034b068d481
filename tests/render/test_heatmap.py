"""The heat map: an even scale of colours, and a picture for every size of model and every state of growth."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from conditional_balance.engine.layers import LayerId, titled_stretches
from conditional_balance.engine.profile import SensitivityProfile
from conditional_balance.render import heatmap
from conditional_balance.render.heatmap import BLANK, WIDTH, draw, palette


def layers(count: int) -> tuple[LayerId, ...]:
    return tuple(LayerId("input" if index < count // 2 else "output", index // 5, index % 5) for index in range(count))


def profile(count: int, levels: int, features: str = "qk", known: int | None = None) -> SensitivityProfile:
    scores = torch.rand(len(features), levels, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores[:, levels if known is None else known :] = float("nan")
    return SensitivityProfile(layers(count), tuple(features), torch.linspace(14, 0.1, levels), scores)


def share_of(colour: tuple[int, ...], image) -> float:
    return float((np.asarray(image) == np.array(colour)).all(-1).mean())


def test_lightness_rises_evenly_and_no_colour_comes_twice():
    rgb = palette().double() / 255
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = (linear * torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64)).sum(-1)
    steps = (116 * luminance.clamp(min=0.008856).pow(1 / 3)).diff()  # CIE lightness
    assert float(luminance[0]) < 0.02 and float(luminance[-1]) > 0.9
    assert float(steps[8:].min()) > -0.35 and len(set(map(tuple, palette().tolist()))) > 240


@pytest.mark.parametrize("count", [1, 16, 28, 70])
def test_any_model_fits_the_width(count):
    image = draw(profile(count, 12), "title")
    assert image.width == WIDTH and image.height < 1000
    assert share_of(BLANK, image) < 0.01


def test_a_transformer_is_drawn_in_stretches_of_its_kinds_of_blocks():
    names = [LayerId(block, number) for number in range(24) for block in ("joint", "second")[: 1 + (number < 13)]]
    names += [LayerId("single", number) for number in range(38)]
    measured = profile(len(names), 12)
    measured = dataclasses.replace(measured, layers=tuple(names))
    assert titled_stretches(names) == [("j0-23, x0-12", 37), ("s0-37", 38)]
    assert share_of(BLANK, draw(measured, "title")) < 0.01


def test_unmeasured_levels_are_blank_and_fill_up():
    shares = [share_of(BLANK, draw(profile(16, 12, known=known), "title")) for known in (0, 6, 12)]
    assert shares[0] > 0.4 and shares[0] > shares[1] > shares[2] and shares[2] < 0.01


def test_the_most_sensitive_layer_is_the_brightest_column():
    measured = profile(16, 12, features="q")
    measured.scores[:] = 0.9
    measured.scores[:, :, 5] = 0.1
    pixels = np.asarray(draw(measured, "title").convert("L"), dtype=float)[150:340]
    brightness = pixels[:, 90:920].mean(0)
    middle = float(np.flatnonzero(brightness == brightness.max()).mean()) + 90
    assert 5 / 16 < (middle - 82) / (930 - 82) < 6 / 16


def test_one_score_for_all_is_no_division_by_zero():
    measured = profile(4, 1, features="v")
    measured.scores[:] = 1.0
    assert draw(measured, "title").width == WIDTH


def test_the_labels_name_the_most_sensitive_layers_and_stand_over_their_columns(monkeypatch):
    measured = profile(20, 3, features="qk")
    written = []
    monkeypatch.setattr(heatmap._Canvas, "upright", lambda canvas, centre, *rest: written.append((centre, rest[1])))
    draw(measured, "title")
    names = [(centre, text) for centre, text in written if text != "noise level sigma"]
    for number, scores in enumerate(measured.scores.mean(1)):
        mine = names[number * heatmap.NAMED : (number + 1) * heatmap.NAMED]
        expected = scores.argsort()[: heatmap.NAMED].tolist()
        assert [text for _, text in mine] == [str(measured.layers[column]) for column in expected]
        along = [centre for centre, _ in sorted(mine)]
        assert sorted(along) == along and [text for _, text in sorted(mine)] == [
            str(measured.layers[column]) for column in sorted(expected)
        ]
