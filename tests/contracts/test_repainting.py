"""The part of a prompt that is painted again: which nodes, and how they are made cheaper."""

from __future__ import annotations

import pytest

from conditional_balance.nodes.repainting import between, cheaper, nearest, steps_of

PROMPT = {
    "model": {"class_type": "Loader", "inputs": {}},
    "first": {"class_type": "Dial", "inputs": {"model": ["model", 0]}},
    "second": {"class_type": "Dial", "inputs": {"model": ["first", 0]}},
    "levels": {"class_type": "BasicScheduler", "inputs": {"model": ["model", 0], "steps": 20}},
    "split": {"class_type": "SplitSigmas", "inputs": {"sigmas": ["levels", 0], "step": 10}},
    "twenty": {"class_type": "PrimitiveInt", "inputs": {"value": 20}},
    "other": {"class_type": "Arithmetic", "inputs": {"a": 10, "b": 10}},
    "text": {"class_type": "Text", "inputs": {"text": "a list", "list": ["a", "b", "c"], "pair": ["a", "b"]}},
    "sampler": {
        "class_type": "Sampler",
        "inputs": {"model": ["second", 0], "sigmas": ["split", 1], "positive": ["text", 0]},
    },
    "image": {"class_type": "Decode", "inputs": {"samples": ["sampler", 0], "vae": ["model", 2]}},
}


def test_the_nearest_dial_counts() -> None:
    assert nearest(PROMPT.__getitem__, "image", {"Dial"}) == "second"
    assert nearest(PROMPT.__getitem__, "first", {"Dial"}) == "first"
    assert nearest(PROMPT.__getitem__, "image", {"Absent"}) is None


@pytest.mark.parametrize(
    ("dial", "again"),
    [
        ("second", {"second", "sampler", "image", "levels", "split"}),
        ("first", {"first", "second", "sampler", "image", "levels", "split"}),
    ],
)
def test_what_depends_on_the_dial_runs_again_and_what_counts_its_steps(dial: str, again: set[str]) -> None:
    assert between(PROMPT.__getitem__, "image", dial) == again


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"text": "a"}, {"text": "a"}),
        ({"steps": 20, "seed": 3}, {"steps": 8, "seed": 3}),
        ({"steps": 4}, {"steps": 4}),
        ({"steps": ["other", 0]}, {"steps": 8}),
        ({"steps": ["other", 0], "start_at_step": 5}, {"steps": ["other", 0], "start_at_step": 5}),
        ({"steps": ["twenty", 0], "start_at_step": 5}, {"steps": 8, "start_at_step": 2}),
        ({"sigmas": ["levels", 0], "step": 10}, {"sigmas": ["levels", 0], "step": 4}),
        ({"sigmas": ["split", 1], "step": 0}, {"sigmas": ["split", 1], "step": 0}),
        ({"sigmas": ["split", 0], "step": 1}, {"sigmas": ["split", 0], "step": 1}),
        ({"sigmas": ["split", 0], "step": 19}, {"sigmas": ["split", 0], "step": 7}),
        ({"sigmas": ["text", 0], "step": 3}, {"sigmas": ["text", 0], "step": 3}),
        ({"step": 3}, {"step": 3}),
        ({"steps": 4, "start_at_step": 3}, {"steps": 4, "start_at_step": 3}),
        (
            {"steps": 40, "start_at_step": 10, "end_at_step": 10000},
            {"steps": 8, "start_at_step": 2, "end_at_step": 2000},
        ),
    ],
)
def test_cheaper_keeps_the_part_of_the_schedule(given: dict, found: dict) -> None:
    before, prompt = dict(given), PROMPT | {"it": {"class_type": "It", "inputs": given}}
    assert cheaper(given, 8, steps_of(prompt.__getitem__, "it")) == found
    assert given == before
