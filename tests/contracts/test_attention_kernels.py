"""With ComfyUI's other ways to compute attention, which CPUs and older cards get, we do what we do with PyTorch's."""

from __future__ import annotations

import sys

import comfy.ldm.modules.attention as attention
import pytest
import torch
from style_case import assert_close, differ, hidden, model, run, styled
from test_attribution_beside import find
from test_transformer_style import hidden as hidden_of
from test_transformer_style import styled as styled_transformer
from test_transformers import run as run_transformer
from tiny_transformers import tiny_transformer

KERNELS = ("attention_basic", "attention_split", "attention_sub_quad")


@pytest.fixture(params=KERNELS)
def with_kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Lets ComfyUI compute attention by the kernel wherever it keeps its choice; gives a list of the calls."""
    kernel, calls = getattr(attention, request.param), []

    def counted(*args, **kwargs):
        calls.append(1)
        return kernel(*args, **kwargs)

    counted.__name__ = kernel.__name__

    def choose():
        for module in [each for name, each in sys.modules.items() if name.startswith("comfy.")]:
            for name in ("optimized_attention", "optimized_attention_masked"):
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, counted)
        return calls

    return choose


def test_style(with_kernel) -> None:
    of = model("sd15")
    flux = tiny_transformer("flux")
    cases = (
        lambda: run(styled(of, reference=hidden(of))),
        lambda: run(styled(of)),
        lambda: run_transformer(styled_transformer(flux, reference=hidden_of("flux")), "flux"),
    )
    expected = [case() for case in cases]
    assert differ(expected[0], run(of))
    calls = with_kernel()
    for case, one in zip(cases, expected, strict=True):
        before = len(calls)
        assert_close(case(), one, 1e-3)
        assert len(calls) > before


@pytest.mark.parametrize("method", ["attention", "value_norm", "jvp", "grad_sam"])
def test_where_a_subject_is(method: str, with_kernel) -> None:
    expected = find(model("sd15"), method, layers="o3-5").maps
    calls = with_kernel()
    torch.testing.assert_close(find(model("sd15"), method, layers="o3-5").maps, expected, rtol=1e-2, atol=1e-3)
    assert calls
