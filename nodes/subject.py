"""The node that says what the picture's subject is."""

from __future__ import annotations

from comfy.sd import CLIP
from comfy_api.latest import io

from ..runtime.attribution.subject import described, read_subject
from ..runtime.inject.picture import check_clip
from .schema import Schema, found_by
from .shown import summary, timed

CATEGORY = "conditional balance/attribution"
Subject = io.Custom("SUBJECT")


class CBSubject(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="CBSubject",
            display_name="Subject of the Prompt",
            category=CATEGORY,
            search_aliases=found_by("subject prompt", "clip text encode", "token", "object"),
            description="Encodes a prompt and finds the words in it that name the subject, for nodes that look where "
            "the model draws it.",
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP that came with the model."),
                io.String.Input(
                    "prompt",
                    default="a red fox in the snow",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The whole prompt, as you would write it for CLIP Text Encode; weights such as (fox:1.2), "
                    "embeddings and long prompts work.",
                ),
                io.String.Input(
                    "phrase",
                    default="red fox",
                    multiline=True,
                    tooltip="The subject, in the prompt's own words: 'fox' or 'red fox'. Write several subjects on "
                    "lines of their own, or separate them with commas. A word that the prompt repeats counts each "
                    "time.",
                ),
                io.String.Input(
                    "surroundings",
                    optional=True,
                    default="",
                    tooltip="Words of the prompt that name what lies around the subject, such as 'snow'. Masks become "
                    "much better with them: the subject is then where its words win over these. Leave it empty when "
                    "the prompt names none.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="conditioning",
                    tooltip="The encoded prompt: connect to the sampler's positive input.",
                ),
                Subject.Output(
                    display_name="subject", tooltip="The subject's tokens, for Grad-SAM Mask and Grad-SAM Blend."
                ),
            ],
        )

    @classmethod
    @timed
    def execute(cls, clip: CLIP, prompt: str, phrase: str, surroundings: str = "") -> io.NodeOutput:
        check_clip(clip, "prompt")
        subject = read_subject(clip, prompt, phrase, surroundings)
        return io.NodeOutput(subject.conditioning, subject, ui=summary(described(subject)))


NODES = [CBSubject]
