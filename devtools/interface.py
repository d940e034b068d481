"""What saved workflows hold of the nodes: `python devtools/run.py devtools/interface.py` writes tests/interface.json.

Additions are written down. A removal or a change would lose something that a saved workflow says: it is refused.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from devtools import face

SAVED = face.ROOT / "tests" / "interface.json"
CURE = "run `python devtools/run.py devtools/interface.py`"
FROM_DISK = {("CBLoadSensitivityProfile", "profile"), ("CBLoadImageClusters", "folder")}
"""Lists of files, which differ from machine to machine."""
STILL_READ = {("CBSelectLayers", "lambda")}
"""Values beyond the widget's range that its node takes from saved workflows (tests/test_saved_workflows.py)."""

Interface = dict[str, Any]


def interface(schemas: Sequence[Any]) -> Interface:
    """By node id: inputs and outputs in their order, without the words that people read."""
    return {
        schema.node_id: {
            "inputs": [_input(schema.node_id, each) for each in schema.inputs],
            "outputs": [each.get_io_type() for each in schema.outputs],
        }
        for schema in sorted(schemas, key=lambda schema: schema.node_id)
    }


def _input(node_id: str, each: Any) -> dict[str, Any]:
    facts = {"id": each.id, "type": each.get_io_type(), "optional": bool(each.optional)}
    told = each.as_dict()
    kept = ("default", "min", "max", "options", "control_after_generate")
    facts |= {name: told[name] for name in kept if told.get(name) is not None}
    if (node_id, each.id) in FROM_DISK:
        facts.pop("options", None)
    return facts


def losses(saved: Interface, now: Interface) -> Iterator[str]:
    """One sentence for each thing that workflows saved with the interface `saved` would lose today."""
    for node_id, node in saved.items():
        if node_id not in now:
            yield f"{node_id}: the node is gone, so saved workflows that hold it no longer load"
            continue
        yield from _lost_inputs(node_id, node["inputs"], now[node_id]["inputs"])
        outputs = now[node_id]["outputs"]
        for number, output in enumerate(node["outputs"]):
            if outputs[number : number + 1] != [output]:
                yield f"{node_id}: output {number} was {output}, so saved links from it carry something else or break"


def _lost_inputs(node_id: str, saved: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    known = {each["id"]: each for each in now}
    for old in saved:
        if old["id"] not in known:
            yield f"{node_id}: input '{old['id']}' is gone, so saved values and links of it are dropped"
        else:
            yield from _lost_values(node_id, old, known[old["id"]])
    order = [each["id"] for each in now if not each["optional"]] + [each["id"] for each in now if each["optional"]]
    kept = [each for optional in (False, True) for each in saved if each["optional"] is optional]
    names = [each["id"] for each in kept if each["id"] in known]
    if order[: len(names)] != names:
        yield f"{node_id}: saved values are read in the order {', '.join(names)}, which has changed: add new ones last"
    required = [each["id"] for each in now if each["id"] not in {old["id"] for old in saved} and not each["optional"]]
    if required:
        yield f"{node_id}: the inputs {', '.join(required)} that are new are not optional, so saved workflows lack them"


def _lost_values(node_id: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    what = f"{node_id}: input '{old['id']}'"
    for fact in ("type", "default", "control_after_generate"):
        if old.get(fact) != new.get(fact):
            yield f"{what} had the {fact} {old.get(fact)!r} and has {new.get(fact)!r}, which changes saved workflows"
    if new["optional"] < old["optional"]:
        yield f"{what} is no longer optional, so saved workflows that leave it open no longer run"
    gone = [option for option in old.get("options", ()) if option not in new.get("options", ())]
    if gone and "options" in new:
        yield f"{what} has lost {', '.join(map(repr, gone))}, so workflows that chose it no longer run"
    narrower = old.get("min", 0) < new.get("min", 0) or old.get("max", 0) > new.get("max", 0)
    if narrower and (node_id, old["id"]) not in STILL_READ:
        yield f"{what} took {old.get('min')} to {old.get('max')} and takes {new.get('min')} to {new.get('max')} only"


def main() -> None:
    now = interface(face.schemas())
    saved = json.loads(SAVED.read_text(encoding="utf-8")) if SAVED.exists() else {}
    lost = list(losses(saved, now))
    if lost:
        sys.exit("Not written, as saved workflows would lose something:\n" + "\n".join(lost))
    SAVED.write_text(json.dumps(now, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
