"""How the judges' heads learn: calibrated, stopped in time, and from hands of which some are held out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from demo.imagenet import WIDTHS, Retrained
from demo.judge import STROKES, HandNamer, Head
from demo.training import features, hands
from demo.training import judge as training


def dice(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noisy(count: int, classes: int = 5, noise: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows [count, 12] around one point for each class, and the classes."""
    chance = dice(seed)
    centres = torch.randn(classes, 12, generator=dice(99))
    truth = torch.randint(classes, (count,), generator=chance)
    return centres[truth] + noise * torch.randn(count, 12, generator=chance), truth


@pytest.mark.parametrize("heat", [0.5, 1.0, 3.0])
def test_the_temperature_of_overconfident_logits_is_found(heat: float) -> None:
    honest = 2 * torch.randn(4000, 6, generator=dice())
    truth = torch.multinomial(honest.softmax(1), 1, generator=dice(1))[:, 0]
    assert training.temperature(heat * honest, truth) == pytest.approx(heat, rel=0.08)


def test_a_head_that_names_is_as_often_right_as_it_is_sure(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    head = Head(12, 5)
    training.told("thing", head, *noisy(1500, noise=1.5), dice())
    rows, truth = noisy(2000, noise=1.5, seed=7)
    with torch.no_grad():
        sure, named = head(rows).softmax(1).max(1)
    right = (named == truth).float().mean()
    assert right > 0.6
    assert float(sure.mean()) == pytest.approx(float(right), abs=0.06)
    assert "held out" in capsys.readouterr().out


def test_the_discriminant_is_bayes_rule_between_even_clouds() -> None:
    """Two classes with one covariance: weights are its inverse times the distance of the centres."""
    spread = torch.tensor([[2.0, 0.6], [0.6, 0.5]])
    truth = torch.arange(40_000) % 2
    cloud = torch.randn(40_000, 2, generator=dice()) @ torch.linalg.cholesky(spread).T
    rows = cloud + torch.tensor([[0.0, 0.0], [1.0, -0.5]])[truth]
    weight, bias = training.discriminant(rows, truth, 2, 0.0)
    wanted = torch.linalg.solve(spread, torch.tensor([1.0, -0.5]))
    assert (weight[1] - weight[0]).allclose(wanted, atol=0.05)
    assert float(bias[1] - bias[0]) == pytest.approx(-0.5 * float(wanted @ torch.tensor([1.0, -0.5])), abs=0.05)


def test_a_discriminant_is_as_often_right_as_it_is_sure() -> None:
    head = Head(12, 5)
    training.discriminate("thing", head, *noisy(1500, noise=1.5))
    rows, truth = noisy(2000, noise=1.5, seed=7)
    with torch.no_grad():
        sure, named = head(rows).softmax(1).max(1)
    right = (named == truth).float().mean()
    assert right > 0.6
    assert float(sure.mean()) == pytest.approx(float(right), abs=0.06)


def test_what_is_kept_is_the_head_that_did_best_on_what_it_did_not_learn_from() -> None:
    torch.manual_seed(0)
    head = Head(12, 5, 64)
    rows, truth = noisy(40)  # few enough to be learnt by heart
    held, held_truth = noisy(400, seed=3)
    seen: list[float] = []

    def held_loss() -> Tensor:
        seen.append(float(functional.cross_entropy(head(held), held_truth)))
        return torch.tensor(seen[-1])

    training.learn("thing", head, lambda: functional.cross_entropy(head(rows), truth), held_loss, steps=600)
    assert float(functional.cross_entropy(head(held), held_truth)) == pytest.approx(min(seen), rel=1e-4)
    assert len(seen) == 6


def test_scenes_of_a_hand_are_drawn_from_that_hand_alone() -> None:
    hand = torch.tensor([0, 1, 100, 101, 102]).repeat_interleave(7)
    some = training.chosen_by_hand(hand, 8, 2, dice(), scenes_each=4)
    found = hand[some].view(-1, 4)
    assert (found == found[:, :1]).all()
    assert found[:2, 0].tolist() == [0, 1]
    assert len(found) == 4 and (found[2:, 0] >= 100).all()


def test_hands_that_lie_together_cost_less_than_hands_that_do_not() -> None:
    rows, hand = noisy(60, noise=0.05)
    head = Head(12, 12)
    with torch.no_grad():
        head.read[-1].weight.copy_(torch.eye(12))
        head.read[-1].bias.zero_()
    every = torch.arange(60)
    shuffled = hand[torch.randperm(60, generator=dice(5))]
    head.eval()
    assert training.hand_loss(head, rows, hand, every) < training.hand_loss(head, rows, shuffled, every) - 0.5


def test_all_kinds_of_blocks_come_in_turns() -> None:
    names = [name for name, _ in features.blocks(None, None, 1e9)]
    assert len(set(names)) == len(names)
    half = [name[:4] for name in names[: len(names) // 2]]
    for kind in ("pair", "subj", "icon", "redr"):
        assert half.count(kind) == pytest.approx(sum(name.startswith(kind) for name in names) / 2, abs=1)
    assert len(features.blocks(None, None, 1000)) < len(names) / 8


def maps_by_hand(count: int, seed: int) -> features.Features:
    """Maps [count, 24, 20, 20] in which one channel in some corner tells the hand, among noise."""
    chance = dice(seed)
    hand = torch.randint(8, (count,), generator=chance)
    maps = 0.1 * torch.randn(count, WIDTHS[STROKES.start], 20, 20, generator=chance)
    for row, (top, left) in enumerate(torch.randint(4, 10, (count, 2), generator=chance).tolist()):
        maps[row, hand[row], top : top + 10, left : left + 10] += 2
    return {"maps": maps.half(), "hand": hand, "plain": torch.ones(count, dtype=torch.bool)}


def test_the_namer_learns_hands_from_maps_and_is_as_sure_as_it_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hands, "CROP", 16)
    monkeypatch.setattr(hands, "BATCH", 16)
    torch.manual_seed(0)
    namer = HandNamer()
    for weight in namer.blocks.parameters():
        torch.nn.init.kaiming_normal_(weight) if weight.dim() > 1 else None
    seen, others = maps_by_hand(160, 0), maps_by_hand(96, 1)
    before = namer.blocks.block3_wide_kernel.detach().clone()
    hands.fit(namer, seen["maps"], seen["hand"], torch.arange(160), 100, seed=0)
    hands.calibrate(namer, others)
    sure, named = hands.logits_of(namer, others).softmax(1).max(1)
    right = (named == others["hand"]).float().mean()
    assert right > 0.5, f"of eight hands {right:.2f}, by chance 0.12"
    assert float(sure.mean()) == pytest.approx(float(right), abs=0.12)
    assert (namer.blocks.block3_wide_kernel != before).any(), "the network's blocks learn as well"
    assert "96" in hands.rates(namer, others) and not namer.training


def test_blocks_that_are_trained_on_begin_as_the_networks() -> None:
    from demo import imagenet

    try:
        net = imagenet.load_imagenet()
    except ValueError as why:
        pytest.skip(str(why))
    blocks = Retrained(STROKES.start, STROKES.stop)
    blocks.begin(net)
    pictures = torch.rand(2, 3, 64, 64, generator=dice())
    with torch.no_grad():
        maps = net(pictures)
        mine = blocks(maps[STROKES.start])
    assert len(mine) == len(STROKES)
    for own, theirs in zip(mine, maps[STROKES.start + 1 : STROKES.stop + 1], strict=True):
        assert own.allclose(theirs, atol=1e-5)
