"""A LoRA under a gate: an empty gate is no LoRA, a full one is ComfyUI's own loader, and nothing stays."""

from __future__ import annotations

from pathlib import Path

import comfy.sd
import folder_paths
import pytest
import torch
from safetensors.torch import save_file

import tiny
from conditional_balance.engine.gates import WrittenGate
from conditional_balance.engine.grammar import parse
from conditional_balance.nodes.lora import CBGateLoRA
from conditional_balance.runtime.arch.registry import architecture_of
from conditional_balance.runtime.inject.lora import gate_lora

RANK = 2


def gate(text: str) -> WrittenGate:
    return WrittenGate(parse(text))


def lora_of(model, part: str = "", seed: int = 0) -> dict[str, torch.Tensor]:
    """A LoRA on every matrix and convolution of a model's network whose name contains `part`."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, weight in model.model.diffusion_model.named_parameters():
        if weight.ndim >= 2 and name.endswith("weight") and part in name:
            key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            down = (RANK, *weight.shape[1:])
            up = (weight.shape[0], RANK, *(1 for _ in weight.shape[2:]))
            found[f"{key}.lora_down.weight"] = torch.randn(down, generator=generator) / weight[0].numel() ** 0.5
            found[f"{key}.lora_up.weight"] = torch.randn(up, generator=generator) / 4
            found[f"{key}.alpha"] = torch.tensor(float(RANK))
    return found


def painted(model) -> torch.Tensor:
    return tiny.sample(model, tiny.cond(model, 1), tiny.cond(model, 2), tiny.latent(), steps=2)


@pytest.fixture(params=["sd15", "sdxl"])
def model(request, sd15_model, sdxl_model):
    return {"sd15": sd15_model, "sdxl": sdxl_model}[request.param]


def test_an_empty_gate_is_no_lora_and_a_full_one_is_the_ordinary_loader(model) -> None:
    lora = lora_of(model)
    plain = painted(model)
    off, full = (gate_lora(model, None, lora, gate(text), 0.7, 1.0) for text in ("-all", "all"))
    assert off.acting == 0 and torch.equal(painted(off.model), plain)
    ordinary, _ = comfy.sd.load_lora_for_models(model, None, lora, 0.7, 1.0)
    assert full.acting == full.weights > 100 and torch.equal(painted(full.model), painted(ordinary))
    assert not torch.equal(painted(full.model), plain)
    assert torch.equal(painted(model), plain)  # nothing stayed


def test_one_layer_changes_the_weights_of_its_block_alone(sd15_model) -> None:
    layer = architecture_of(sd15_model).layers[5]
    found = gate_lora(sd15_model, None, lora_of(sd15_model, "transformer_blocks"), gate(str(layer)), 1.0, 1.0)
    changed = {name.removeprefix("diffusion_model.") for name in found.model.patches}
    assert changed and changed <= set(architecture_of(sd15_model).parameters(layer))


def test_features_and_weights_of_a_gate_count(sd15_model) -> None:
    lora = lora_of(sd15_model, "attn1.to_")
    found = gate_lora(sd15_model, None, lora, gate("q:o3:0.5"), 2.0, 1.0)
    strengths = {name: patch[0][0] for name, patch in found.model.patches.items()}
    assert strengths["diffusion_model.output_blocks.3.1.transformer_blocks.0.attn1.to_q.weight"] == 1.0
    assert not any("to_k" in name or "to_v" in name for name in strengths)


def test_two_gates_share_the_layers_between_two_loras(sd15_model) -> None:
    style, subject = (lora_of(sd15_model, "transformer_blocks", seed) for seed in (1, 2))
    first = gate_lora(sd15_model, None, style, gate("o"), 1.0, 1.0).model
    both = gate_lora(first, None, subject, gate("all, -o"), 1.0, 1.0).model
    alone = gate_lora(sd15_model, None, subject, gate("all"), 1.0, 1.0).model
    assert both.patches.keys() == alone.patches.keys() != first.patches.keys()
    assert all(len(patches) == 1 for patches in both.patches.values())


def test_the_node_reads_a_file_and_says_what_acts(sd15_model, clip, tmp_path: Path, monkeypatch) -> None:
    save_file(lora_of(sd15_model), tmp_path / "style.safetensors")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(tmp_path)], {".safetensors"}))
    out = CBGateLoRA.execute(sd15_model, "style.safetensors", 1.0, "gate", gate("o3"), clip)
    acting, total = (int(word) for word in out.ui["cb_summary"][0].split() if word.isdigit())
    assert 0 < acting < total
    with pytest.raises(ValueError, match="'gate' is not connected"):
        CBGateLoRA.execute(sd15_model, "style.safetensors", 1.0, "gate")
    with pytest.raises(ValueError, match=r"nothing in style\.safetensors fits this model"):
        save_file({"unknown.weight": torch.zeros(2)}, tmp_path / "style.safetensors")
        CBGateLoRA.execute(sd15_model, "style.safetensors", 1.0, "all")


def test_an_unreadable_folder_does_not_keep_the_node_from_loading(monkeypatch) -> None:
    def refused(name: str) -> list[str]:
        raise PermissionError(name)

    monkeypatch.setattr(folder_paths, "get_filename_list", refused)
    assert CBGateLoRA.define_schema().node_id == "CBGateLoRA"
