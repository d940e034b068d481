"""Windows are read as written and cover the steps they name, once each."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conditional_balance.engine.windows import Window, parse_windows, spans, step_before

LEVELS = torch.tensor([10.0, 8.0, 6.0, 4.0, 2.0, 0.0])


def to_sigma(percent: float) -> float:
    return 1e9 if percent == 0 else 10 * (1 - percent)


def test_windows_are_read_as_written() -> None:
    assert parse_windows("0.22-0.48, .68\n1") == (Window(0.22, 0.48), Window(0.68), Window(1.0))
    assert [str(window) for window in parse_windows("0.20-0.5,0.7")] == ["0.2-0.5", "0.7"]
    assert parse_windows(" ") == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0.2-", "'0.2-' is not a window"),
        ("0.2-1.5", "leaves the schedule"),
        ("0.5-0.2", "ends before it starts"),
        ("0.5-.5", "write 0.5 alone"),
    ],
)
def test_a_bad_window_is_quoted(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_windows(f"0.1, {text}")


@pytest.mark.parametrize("text", ["1" * 1_000, "0." + "1" * 997 + "x", "." * 1_000, "1" + " " * 998 + "-", "-" * 1_000])
def test_reading_takes_time_in_proportion_to_the_text(text: str) -> None:
    """Counted, not timed: a million of them read while one that backtracked over all pairs would not have ended."""
    for _ in range(200):
        with pytest.raises(ValueError, match=r"'.{3,60}' (is not a window|leaves the schedule)"):
            parse_windows(text)


def test_a_text_that_no_one_wrote_by_hand_is_refused_unread() -> None:
    for text in ("1" * 20_000, "0.5," * 5_000, "," * 1_001):
        with pytest.raises(ValueError, match=r"^'windows' is too long \([\d,]+ characters, and 1,000 are the most\)"):
            parse_windows(text)


def test_a_range_covers_its_steps() -> None:
    (span,) = spans([Window(0.2, 0.6)], LEVELS, to_sigma)
    assert span.step == 1
    assert [float(level) for level in LEVELS if span.holds(level)] == [8.0, 6.0]


def test_a_number_covers_one_step() -> None:
    (span,) = spans([Window(0.3)], LEVELS, to_sigma)
    assert span.step == 2
    assert [float(level) for level in LEVELS if span.holds(level)] == [6.0]


def test_a_window_between_two_steps_takes_the_next() -> None:
    (span,) = spans([Window(0.25, 0.35)], LEVELS, to_sigma)
    assert [float(level) for level in LEVELS if span.holds(level)] == [6.0]


def test_the_whole_schedule_is_covered_and_its_end_is_not_a_step() -> None:
    (span,) = spans([Window(0.0, 1.0)], LEVELS, to_sigma)
    assert [span.holds(float(level)) for level in LEVELS] == [True] * 5 + [False]
    assert span.holds(10.7)  # a sampler that adds noise before its first step


def test_windows_that_ended_before_the_run_or_begin_after_it_are_left_out() -> None:
    late = LEVELS[2:]
    assert spans([Window(0.1, 0.3)], late, to_sigma) == ()
    assert [span.step for span in spans([Window(0.1, 0.5), Window(0.1)], late, to_sigma)] == [0, 0]
    assert spans([Window(1.0)], LEVELS, to_sigma) == ()


def test_of_several_numbers_before_the_run_the_last_takes_its_first_step() -> None:
    late = LEVELS[2:]
    assert [each.window for each in spans([Window(0.2), Window(0.3), Window(0.5)], late, to_sigma)] == [
        Window(0.3),
        Window(0.5),
    ]
    assert [each.window for each in spans([Window(0.2), Window(0.2)], late, to_sigma)] == [Window(0.2)] * 2
    assert spans([Window(0.2)], late[:1], to_sigma) == ()


@pytest.mark.parametrize("split", range(1, 5))
def test_stages_of_one_schedule_share_the_steps_that_numbers_name(split: int) -> None:
    windows, stages = [Window(0.0), Window(0.2), Window(0.3), Window(0.7)], (LEVELS[: split + 1], LEVELS[split:])
    whole = {span.window: float(LEVELS[span.step]) for span in spans(windows, LEVELS, to_sigma)}
    befores = float("inf"), step_before(stages[1], to_sigma)
    parts = [(each.window, float(stage[each.step])) for stage, before in zip(stages, befores, strict=True)
             for each in spans(windows, stage, to_sigma, before)]  # fmt: skip
    assert dict(parts) == whole and len(parts) == len(whole)


@given(st.lists(st.floats(0.01, 0.99), min_size=2, max_size=6, unique=True), st.integers(1, 40))
def test_adjoining_windows_share_no_step(edges: list[float], steps: int) -> None:
    levels = torch.cat((torch.linspace(10, 0.1, steps), torch.zeros(1)))
    edges = sorted(edges)
    windows = [Window(start, end) for start, end in pairwise(edges)]
    found = spans(windows, levels, to_sigma)
    covered = [[step for step in range(steps) if span.holds(float(levels[step]))] for span in found]
    assert all(covered)  # each acts at least once
    several = [steps for steps in covered if len(steps) > 1]
    assert len({step for steps in several for step in steps}) == sum(map(len, several))
