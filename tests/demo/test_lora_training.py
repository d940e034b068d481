"""A LoRA of the demo UNet as the benchmark trains it: it learns, loads as any other, and leaves the UNet as it was."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from benchmarks.lora import layer_of
from conditional_balance.engine.gates import WrittenGate
from conditional_balance.engine.grammar import parse
from conditional_balance.runtime.arch.unet import attention_layers
from conditional_balance.runtime.inject.lora import gate_lora
from demo import models, nets
from demo.training.lora import How, Lessons, misfit, train_lora


def test_it_is_one_that_any_loader_reads() -> None:
    unet = nets.new_unet("cpu").requires_grad_(False)
    unet.load_state_dict({key: part.float() for key, part in load_file(models.WEIGHTS / "unet.safetensors").items()})
    before = {key: part.clone() for key, part in unet.state_dict().items()}
    dice = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 8, 8, 8, generator=dice)
    lessons = Lessons(latents, torch.randn(3, 77, 128, generator=dice), torch.randn(3, 1664, generator=dice))
    weights = train_lora(unet, lessons, How(rank=4, steps=3, batch=2))
    assert all(torch.equal(part, before[key]) for key, part in unet.state_dict().items())
    assert not any(layer._forward_hooks for layer in unet.modules())
    with torch.no_grad():
        assert bool(misfit(unet, lessons, 2).isfinite())
    assert all(float(part.abs().max()) > 0 for key, part in weights.items())

    model = models.load_unet(dtype=torch.float32)
    layers = attention_layers(model)
    downs = [key for key in weights if key.endswith("lora_down.weight")]
    assert {layer_of(key) for key in downs} == set(layers) and len(downs) == 10 * len(layers)
    found = gate_lora(model, None, weights, WrittenGate(parse("all")), 1.0, 0.0)
    assert (found.weights, found.acting, found.unused) == (len(downs), len(downs), ())
    chosen = gate_lora(model, None, weights, WrittenGate(parse("o5")), 1.0, 0.0)
    assert chosen.acting == sum(str(layer_of(key)).startswith("o5.") for key in downs)
