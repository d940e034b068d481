"""What a preview shows was measured in the run whose latent it is given, and a run that did nothing says so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import uuid4

import pytest
import torch
from gradsam_case import ALL_ONES, ALL_ZEROS, blended, run, subject_of
from style_case import HEIGHT, WIDTH, model

from conditional_balance.nodes.attribution_preview import CBAttributionPreview
from conditional_balance.nodes.gradsam import CBGradSAMBlend
from conditional_balance.runtime.attribution.measured import KEPT, Attribution, RunMeasured
from conditional_balance.runtime.inject.blend import MODES
from conditional_balance.runtime.runs.notices import EVENT
from tiny import cond, latent

Graph = dict[str, dict[str, Any]]


class Given:
    """A node that hands out the test's own model, prompts, subject, reference and picture."""

    RETURN_TYPES = ("MODEL", "CONDITIONING", "CONDITIONING", "SUBJECT", "LATENT", "IMAGE")
    FUNCTION, CATEGORY = "give", "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def give(self) -> tuple[Any, ...]:
        of = model("sd15")
        reference = latent(5, height=HEIGHT, width=WIDTH)
        picture = torch.zeros(1, 8 * HEIGHT, 8 * WIDTH, 3)
        return of, cond(of, 1), cond(of, 2), subject_of(of), reference, picture


class Doubled:
    """A node that changes a latent."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT",), "double", "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"samples": ("LATENT",)}}

    def double(self, samples: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor]]:
        return ({"samples": 2 * samples["samples"]},)


@pytest.fixture
def execute(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Graph], Any]]:
    """Runs graphs on ComfyUI's own executor with the cache that the test names; returns what each node showed."""
    import execution
    import nodes
    import server

    for node in (Given, Doubled, CBGradSAMBlend, CBAttributionPreview):
        monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, node.__name__, node)
    kind, arguments = request.param
    loop = asyncio.new_event_loop()
    executor = execution.PromptExecutor(server.PromptServer(loop), execution.CacheType[kind], arguments)

    def go(graph: Graph) -> Any:
        shown = [name for name, node in graph.items() if node["class_type"] == "CBAttributionPreview"]
        executor.execute(graph, uuid4().hex, {"client_id": "page"}, shown)
        if not executor.success:
            raise ValueError(next(data for event, data in executor.status_messages if event == "execution_error"))
        return {name: executor.history_result["outputs"][name]["text"][0] for name in shown}

    yield go
    loop.close()


ROOM = {"lru": 20, "ram": 16.0, "ram_inactive": 16.0}
CACHES = {"classic": ("CLASSIC", ROOM), "lru": ("LRU", ROOM), "none": ("NONE", ROOM)}
each_cache = pytest.mark.parametrize("execute", CACHES.values(), ids=list(CACHES), indirect=True)


def sampler(seed: int, model_from: str = "blend") -> dict[str, Any]:
    inputs = {
        "model": [model_from, 0], "positive": ["given", 1], "negative": ["given", 2], "latent_image": [model_from, 1],
        "seed": seed, "steps": 4, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
    }  # fmt: skip
    return {"class_type": "KSampler", "inputs": inputs}


def preview(after: str, **more: Any) -> dict[str, Any]:
    inputs = {"attribution": ["blend", 2], "after": [after, 0], **more}
    return {"class_type": "CBAttributionPreview", "inputs": inputs}


def graph(**nodes: dict[str, Any]) -> Graph:
    schema = CBGradSAMBlend.define_schema()
    defaults = {each.id: each.default for each in schema.inputs if getattr(each, "default", None) is not None}
    blend = {**defaults, "model": ["given", 0], "reference": ["given", 4], "subject": ["given", 3]}
    given = {"class_type": "Given", "inputs": {}}
    return {"given": given, "blend": {"class_type": "CBGradSAMBlend", "inputs": blend}, **nodes}


@each_cache
def test_a_run_taken_from_the_cache_shows_its_own_measurements(execute: Callable[[Graph], Any]) -> None:
    alone = {seed: execute(graph(s=sampler(seed), p=preview("s")))["p"] for seed in (11, 2)}
    assert alone[11] != alone[2]
    again = execute(graph(s=sampler(11), new=preview("s", image=["given", 5])))["new"]
    assert again == alone[11]


@each_cache
def test_two_samplers_that_share_one_blend_show_each_their_own(execute: Callable[[Graph], Any]) -> None:
    both = execute(graph(a=sampler(11), b=sampler(2), pa=preview("a"), pb=preview("b")))
    picture = ["given", 5]  # a preview that no cache has seen
    alone = {seed: execute(graph(s=sampler(seed), p=preview("s", image=picture)))["p"] for seed in (11, 2)}
    assert (both["pa"], both["pb"]) == (alone[11], alone[2]) and both["pa"] != both["pb"]


@each_cache
def test_a_latent_that_was_changed_on_the_way_is_refused(execute: Callable[[Graph], Any]) -> None:
    changed = {"class_type": "Doubled", "inputs": {"samples": ["s", 0]}}
    with pytest.raises(ValueError, match="'after' is not a latent that a sampler made with this Grad-SAM Blend"):
        execute(graph(s=sampler(11), d=changed, p=preview("d")))


@pytest.mark.parametrize("execute", [CACHES["classic"]], ids=["classic"], indirect=True)
def test_what_did_not_happen_is_told_under_the_blend(
    execute: Callable[[Graph], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import server

    events: list[tuple[str, Any]] = []
    monkeypatch.setattr(server.PromptServer.instance, "send_sync", lambda *event: events.append(event[:2]))
    short = graph(s=sampler(11), p=preview("s"))
    short["blend"]["inputs"]["windows"] = "0.1-0.2, 0.5-0.9"
    short["s"]["inputs"]["denoise"] = 0.5
    execute(short)
    fresh, begun, *_, told = (data for name, data in events if name == EVENT)
    assert (fresh["by"], fresh["texts"]) == (None, ()) and (begun["by"], begun["texts"]) == ("s", ())
    assert told["node"] == "blend" and told["by"] == "s"
    assert told["texts"][0].startswith("Nothing was done in 0.1-0.2: the run's steps begin at")
    assert told["texts"][1].startswith("The run begins at 0.5") and "set 'denoise' to 1, or" in told["texts"][1]


@pytest.mark.parametrize("mode", MODES)
def test_results_are_found_by_the_latent_of_their_run(mode: str) -> None:
    kept, attribution = blended(model("sd15"), mode=mode)
    outs = [run(kept, seed=seed) for seed in range(3)]
    found = [attribution.of(out) for out in outs]
    assert len({id(each) for each in found}) == 3
    assert not torch.equal(found[0].windows[0].maps, found[1].windows[0].maps)
    assert attribution.of(outs[0]) is found[0] and attribution.of(outs[0].half()) is found[0]
    run(kept, seed=0)
    again = attribution.of(outs[0])
    assert torch.equal(again.windows[0].maps, found[0].windows[0].maps)
    with pytest.raises(ValueError, match="'after' is not a latent that a sampler made"):
        attribution.of(outs[0][:, :, 1:])


@pytest.mark.parametrize("mode", MODES)
def test_the_last_prediction_that_some_samplers_hand_on_belongs_to_the_run_too(mode: str) -> None:
    from comfy_extras import nodes_custom_sampler as custom

    of = model("sd15")
    kept, attribution = blended(of, mode=mode)
    sigmas = torch.tensor([10.0, 5.0, 2.0, 1.0, 0.5])  # stops with noise in the latent
    with torch.inference_mode():
        out = custom.SamplerCustomAdvanced.execute(
            custom.Noise_RandomNoise(3), custom.CFGGuider.execute(kept, cond(of, 1), cond(of, 2), 4.0).args[0],
            custom.KSamplerSelect.execute("euler").args[0], sigmas, latent(0, height=HEIGHT, width=WIDTH),
        ).args  # fmt: skip
    assert not torch.equal(out[0]["samples"], out[1]["samples"])
    assert attribution.of(out[0]["samples"]) is attribution.of(out[1]["samples"])


def test_a_run_that_was_cancelled_is_not_remembered() -> None:
    kept, attribution = blended(model("sd15"))

    def stop(*args: Any) -> None:
        raise KeyError("here")

    kept.set_model_unet_function_wrapper(stop)
    with pytest.raises(KeyError):
        run(kept)
    with pytest.raises(ValueError, match="'attribution' is empty"):
        attribution.of(latent(1)["samples"])


def test_a_bounded_number_of_runs_is_remembered() -> None:
    found, runs = Attribution(), [RunMeasured() for _ in range(3 * KEPT)]
    latents = [latent(seed)["samples"] for seed in range(len(runs))]
    for number, each in enumerate(runs):
        found.keep([latents[number], -latents[number]], each)
    assert found.of(latents[-1]) is runs[-1] and found.of(-latents[-KEPT]) is runs[-KEPT]
    with pytest.raises(ValueError, match=f"Only the last {KEPT} runs are remembered"):
        found.of(latents[-KEPT - 1])


# a blend that does nothing, or too much ------------------------------------------------------------------------------


def told(caplog: pytest.LogCaptureFixture, windows: str = "0.2-0.6, 0.6-0.9", batch: int = 1, **options: Any) -> str:
    """The warnings of a run, each of which stands in the log too; settings of the blend are `mask`, `mode`, ..."""
    of = model("sd15")
    ours = {name: options.pop(name) for name in ("mask", "mode", "reference") if name in options}
    kept, attribution = blended(of, windows, **ours)
    with caplog.at_level(logging.WARNING):
        out = run(kept, batch=batch, **options)
    found = attribution.of(out)
    assert all(f"Grad-SAM Blend: {warning}" in caplog.messages for warning in found.warnings)
    return " ".join(found.warnings)


@pytest.mark.parametrize("mode", MODES)
def test_windows_that_the_run_does_not_reach_are_told(caplog: pytest.LogCaptureFixture, mode: str) -> None:
    words = told(caplog, "0.1-0.3, 0.2-0.4", denoise=0.4, mode=mode)
    assert words.startswith("Nothing was done in 0.1-0.3, 0.2-0.4: the run's steps begin at 0.6")
    assert "Raise 'denoise' or the number of steps, or move 'windows'." in words
    words = told(caplog, "0.1-0.3, 0.7-0.9", denoise=0.4, mode=mode)
    assert words.startswith("Nothing was done in 0.1-0.3: the run's")


def test_a_run_of_one_step_and_one_against_the_noise_are_told(caplog: pytest.LogCaptureFixture) -> None:
    assert told(caplog, steps=1).startswith("Nothing was done in 0.2-0.6, 0.6-0.9: the run's steps begin at 0 to 0 of")
    assert told(caplog) == ""
    of = model("sd15")
    kept, attribution = blended(of, "0.2-0.6, 0.7")
    import comfy.sample
    import comfy.samplers

    for levels in ([0.03, 1.0, 5.0, 14.0], [1.0, 1.0]):
        with torch.inference_mode(), caplog.at_level(logging.WARNING):
            out = comfy.sample.sample_custom(
                kept, torch.zeros(1, 4, HEIGHT, WIDTH), 1.0, comfy.samplers.ksampler("euler"), torch.tensor(levels),
                cond(of, 1), cond(of, 2), latent(3, height=HEIGHT, width=WIDTH)["samples"], disable_pbar=True,
            )  # fmt: skip
        (warning,) = attribution.of(out).warnings
        assert warning.startswith("Nothing was done in 0.2-0.6, 0.7: noise rises in this run, as in an inversion")
        assert attribution.of(out).windows == ()
        with pytest.raises(ValueError, match=r"This run measured nothing\. Nothing was done in"):
            CBAttributionPreview.execute(attribution, {"samples": out})


def sampled(of: Any, levels: Sequence[float]) -> torch.Tensor:
    """A run of so many noise levels on a picture, as SamplerCustom makes it."""
    import comfy.sample
    import comfy.samplers

    noise, picture = latent(1, height=HEIGHT, width=WIDTH)["samples"], latent(3, height=HEIGHT, width=WIDTH)["samples"]
    with torch.inference_mode():
        return comfy.sample.sample_custom(
            of, noise, 4.0, comfy.samplers.ksampler("euler"), torch.tensor(levels), cond(of, 1), cond(of, 2), picture,
            disable_pbar=True,
        )  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("level", [14.6, 3.0, 0.0])
def test_a_run_without_a_step_is_told(mode: str, level: float) -> None:
    """One noise level is left where a schedule is split at its end."""
    kept, attribution = blended(model("sd15"), "0.2-0.6, 0.7", mode=mode)
    out = sampled(kept, [level])
    assert torch.equal(out, sampled(model("sd15"), [level]))
    (warning,) = attribution.of(out).warnings
    assert warning.startswith("Nothing was done in 0.2-0.6, 0.7: the run takes no step, as its schedule holds one")


@pytest.mark.parametrize("mode", MODES)
def test_windows_at_one_step_are_told_apart_from_calls_that_were_not_made(mode: str) -> None:
    """As a second sampler that goes on where the first one stopped finds them: 0.48 is the number before its start."""
    kept, attribution = blended(model("sd15"), "0.22, 0.48, 0.5-0.95, 0.85", mode=mode)
    out = sampled(kept, [1.2, 0.4, 0.0])
    run = attribution.of(out)
    assert [str(each.window) for each in run.windows] == ["0.48", "0.5-0.95"]
    outside, taken, *seams = run.warnings
    assert [each.startswith("0.5-0.95 acts in the last step") for each in seams] == [True] * (mode != "only measure")
    assert outside.startswith("Nothing was done in 0.22: the run's steps begin at 0.")
    assert taken == "Nothing was done in 0.85: at its step 0.5-0.95 acts already."


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (ALL_ONES, "The mask covers everything: raise 'amount', lower 'dilate', or choose otsu."),
        (ALL_ZEROS, "Nothing was found: lower 'amount', or choose otsu."),
    ],
)
def test_a_mask_that_is_full_or_empty_is_told(caplog: pytest.LogCaptureFixture, mask: Any, says: str) -> None:
    assert told(caplog, mask=mask) == ""
    assert [f"Grad-SAM Blend: in window {window}: {says}" in caplog.messages for window in ("0.2-0.6", "0.6-0.9")]
    kept, attribution = blended(model("sd15"), "0.2", mask=mask)
    output = CBAttributionPreview.execute(attribution, {"samples": run(kept)})
    assert says in output.args[2]


@pytest.mark.parametrize(
    ("rows", "batch", "says"),
    [
        (2, 3, "holds 2 rows for 3 pictures, so they are repeated in turn: give one for all, or one for each."),
        (3, 2, "holds 3 rows for 2 pictures, so the last are left out: give one for all, or one for each."),
        (1, 3, ""),
        (3, 3, ""),
        (3, 1, "holds 3 rows for 1 picture, so the last are left out: give one for all, or one for each."),
    ],
)
def test_references_and_prompts_of_another_number_than_the_pictures_are_told(
    caplog: pytest.LogCaptureFixture, rows: int, batch: int, says: str
) -> None:
    reference = latent(5, rows, HEIGHT, WIDTH)["samples"]
    assert told(caplog, reference=reference, batch=batch) == (says and f"'reference' {says}")
    of = model("sd15")
    prompts = [[cond(of, 1)[0][0].expand(rows, -1, -1), {}]]
    words = told(caplog, positive=prompts, batch=batch)
    assert words == (says and f"The prompt has{says.removeprefix('holds')}")
