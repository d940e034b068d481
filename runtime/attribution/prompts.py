"""Which of a run's prompts hold the subject's text, and at which noise levels they act."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .methods import METHODS, Method
from .subject import Subject


@dataclass(frozen=True)
class SubjectPrompts:
    """The run's positive prompts that hold the subject's text, as the guider keeps them."""

    subject: Subject
    prompts: tuple[dict[str, Any], ...]

    @property
    def texts(self) -> dict[Any, int]:
        """The number of tokens of each, by ComfyUI's id for it."""
        return {prompt["uuid"]: prompt["cross_attn"].shape[1] for prompt in self.prompts}

    def check_active(self, sigma: torch.Tensor, what: str) -> None:
        """Raises ValueError, which begins with `what`, when none of them acts at this noise level."""
        if any(_acts(prompt, sigma) for prompt in self.prompts):
            return
        names = ", ".join(f"'{phrase.text}'" for phrase in self.subject.phrases)
        ranges = " and ".join(dict.fromkeys(map(_range, self.prompts)))
        raise ValueError(
            f"{what} lies where the prompt of {names} does not act (it acts {ranges} of the schedule): move it there, "
            "or let the prompt act longer."
        )


def subject_prompts(prompts: Sequence[dict[str, Any]], subject: Subject, method: Method) -> SubjectPrompts:
    """Find the subject's prompts among a run's positive ones.

    Raises ValueError when none holds its text, or when one is confined to an area and the method cannot see where.
    """
    found = tuple(prompt for prompt in prompts if _begins_with(prompt.get("cross_attn"), subject.text))
    if not found:
        raise ValueError(
            "'subject' was read from another prompt than the sampler's positive one: connect the conditioning of the "
            "same Subject node to 'positive', not averaged with another, and before what Conditioning (Concat) adds."
        )
    if not method.sees_areas and any("area" in prompt for prompt in found):
        able = " or ".join(name for name, each in METHODS.items() if each.sees_areas)
        raise ValueError(
            f"'method' {method.name} cannot tell where a prompt's area lies: choose {able}, or remove the area."
        )
    return SubjectPrompts(subject, found)


def _begins_with(context: torch.Tensor | None, text: torch.Tensor) -> bool:
    if context is None or context.shape[1] < text.shape[1] or context.shape[2] != text.shape[2]:
        return False
    start = context[:, : text.shape[1]]
    return bool((start.to(text) == text).all())


def _acts(prompt: dict[str, Any], sigma: torch.Tensor) -> bool:
    """As ComfyUI's get_area_and_mult decides, in the same precision; bounds are noise levels, the start the higher."""
    start, end = prompt.get("timestep_start", torch.inf), prompt.get("timestep_end", 0.0)
    return not (bool(sigma > start) or bool(sigma < end))


def _range(prompt: dict[str, Any]) -> str:
    return f"from {prompt.get('start_percent', 0.0):g} to {prompt.get('end_percent', 1.0):g}"
