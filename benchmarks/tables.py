"""Writes the tables of benchmarks/README.md from the results kept in benchmarks/results.

The page is prose with a block for each table, `<!-- NAME -->` to `<!-- end -->`; only what stands in the blocks is
replaced.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from devtools import files

FOLDER = Path(__file__).resolve().parent
PAGE, RESULTS = FOLDER / "README.md", FOLDER / "results"
Writer = Callable[[Any], str]  # a cell of a table from what was found
BLOCK = re.compile(r"<!-- (?P<name>[\w ,-]+) -->\n.*?<!-- end -->", re.DOTALL)


def main() -> None:
    files.replace(PAGE, with_tables(PAGE.read_text(encoding="utf-8")).encode())
    print(PAGE.name)


def with_tables(page: str) -> str:
    """The page with every block as the results have it. Raises KeyError for a block that no table fills."""
    return BLOCK.sub(lambda found: f"<!-- {found['name']} -->\n{TABLES[found['name']]()}<!-- end -->", page)


def results(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def percent(found: dict[str, float]) -> str:
    mean, low, high = (round(100 * found[key]) for key in ("mean", "low", "high"))  # of integers none is -0
    return f"{mean} % [{low}, {high}]"


def points(found: dict[str, float]) -> str:
    """A difference of shares."""
    mean, low, high = (round(100 * found[key]) for key in ("mean", "low", "high"))
    return f"{mean:+d} [{low:+d}, {high:+d}]"


def plain(digits: int, sign: str = "") -> Writer:
    form = f"{sign}.{digits}f"
    return lambda found: f"{found['mean']:{form}} [{found['low']:{form}}, {found['high']:{form}}]"


def signed(digits: int) -> Writer:
    """A difference."""
    return plain(digits, "+")


def measures(settings: dict[str, Any], columns: dict[str, Writer], first: str) -> str:
    """One row for each setting, one column for each measure, written by the column's function."""
    rows = ([name, *(write(found[measure]) for measure, write in columns.items())] for name, found in settings.items())
    return table([first, *columns], rows)


def bars() -> str:
    """What has a bar, by what is painted."""
    return _bars(results("bars")["painted"])


def bars_transformer() -> str:
    """What has a bar, by where a reference's tokens stand."""
    return _bars_of_best(
        {"shift": "bars_transformer", "keep": "bars_transformer_keep", "untwist": "bars_transformer_untwist"}
    )


def bars_of_sharing() -> str:
    """What full sharing does at several weights of a reference's tokens, and after training on with either kind of
    couples."""
    trained = {"trained on as before": "bars_control", "with the same twice": "bars_repeated"}
    return _bars_of_best({"share 1": "bars_share1", "2": "bars_share2", "4": "bars_share4"} | trained)


def _bars_of_best(kept: dict[str, str]) -> str:
    return _bars({name: results(file)["painted"]["best drawn, no medium"] for name, file in kept.items()})


def _bars(painted: dict[str, Any]) -> str:
    wanted = {
        "subject as prompted": "90 %", "both subjects as prompted": "70 %", "hand as prompted": "90 %",
        "style moved by full sharing, of the way": "50 %",
        "full sharing loses one subject": "10 points here,",
        "full sharing loses one of two or their relation": "or here,",
        "full sharing leaks the reference's subject": "or a leak of 10 %", "more than without": "",
    }  # fmt: skip
    rows = (
        [name, *(percent(each["bars"][name]) if name in each["bars"] else "" for each in painted.values()), bar]
        for name, bar in wanted.items()
    )
    return table(["", *painted, "bar"], rows)


def bars_hands() -> str:
    """Of the dozen drawn best, without a medium: which hand a picture is told to be by, for each that is prompted."""
    found = results("bars")["painted"]["best drawn, no medium"]["hands"]
    rows = []
    for hand, each in found.items():
        shares = {other: share for other, share in each.items() if other not in ("references", hand)}
        most = [f"{other} {100 * shares[other]:.0f} %" for other in sorted(shares, key=shares.__getitem__)[:-3:-1]]
        rows.append([hand, str(each["references"]), f"{100 * each.get(hand, 0):.0f} %", ", ".join(most)])
    return table(["hand in the prompt", "references", "as prompted", "taken for"], rows)


def judges() -> str:
    found = results("bars")["judges"]
    names = next(iter(found.values()))
    rows = ([name, *(_judged(each[name]) for each in found.values())] for name in names)
    return table(["", *found], rows)


def _judged(found: float | dict[str, float]) -> str:
    """A rate, or an AUC with its interval."""
    if isinstance(found, float):
        return f"{100 * found:.1f} %"
    mean, low, high = (100 * found[key] for key in ("mean", "low", "high"))
    return f"{mean:.1f} % [{low:.1f}, {high:.1f}]"


def settings_of_sampling() -> str:
    columns = dict.fromkeys(("one subject", "both of two", "sure of the subjects", "place", "hand"), percent)
    return measures(
        results("subjects")["settings, cfg x steps"], {**columns, "style distance": plain(3)}, "cfg x steps"
    )


def balance(setting: str, file: str = "balance") -> str:
    shares = ("content", "one subject", "both of two", "place", "leaked")
    columns = {"style distance": plain(3), "hand distance": plain(3)} | dict.fromkeys(shares, percent)
    return measures(results(file)["settings"][setting], columns, "layers, lambda")


def balance_at_equal_style(setting: str, file: str = "balance") -> str:
    columns = dict.fromkeys(("content", "subjects", "sure of the subjects", "place", "leaked"), points)
    return measures(results(file)["at equal style"][setting], columns, "")


def balance_over_all() -> str:
    """What fewer layers, or none, keep beyond all layers in UNets trained on."""
    files = {
        "as before": "balance_control", "the same twice": "balance_repeated",
        "the same twice, 64 others": "balance_repeated_more",
    }  # fmt: skip
    rows = {
        f"{couples}: {way}": results(file)["minus all layers"]["known hands"][way]
        for couples, file in files.items()
        for way in ("none", "ranked 0.1", "ranked 0.2")
    }
    return _over_all(rows, "couples: layers over all")


def balance_drawn_over_all() -> str:
    """What fewer layers, or none, keep beyond all layers where references are drawings."""
    return _over_all(results("balance_drawn")["minus all layers"]["drawn references"], "layers over all")


def _over_all(rows: dict[str, Any], first: str) -> str:
    columns = {"style distance": signed(3)} | dict.fromkeys(("content", "subjects", "place"), points)
    return measures(rows, columns, first)


def positions() -> str:
    columns: dict[str, Writer] = {
        "style distance": plain(3), "layout copied": signed(2), "content": percent, "one subject": percent,
        "place": percent, "place leaked": percent, "leaked": percent,
    }  # fmt: skip
    return measures(results("positions")["ways"], columns, "position, sharing; layers")


def swaps() -> str:
    columns = {"style distance": plain(3)} | dict.fromkeys(("content", "one subject", "both of two"), percent)
    return measures(results("swaps")["ways"], columns, "lambda, layers")


def swaps_moved() -> str:
    columns = {"style distance": signed(3)} | dict.fromkeys(("content", "sure of the subjects"), points)
    found = results("swaps")
    gaps = {f"{amount}, per-step minus static": gap for amount, gap in found["per-step minus static"].items()}
    return measures(found["beyond the gate it was made of"] | gaps, columns, "lambda, layers")


def structure(file: str = "structure") -> str:
    found = results(file)
    columns = {"edge F1": plain(2), "subject": percent, "to B": plain(3), "B rather than A": percent}
    return measures(found["anchors"] | found["settings"], columns | {"style distance": plain(3)}, "setting")


def structure_gained(at_equal: str, file: str = "structure") -> str:
    found = results(file)["geometry gained over a weaker ControlNet"][at_equal]
    return measures(found, {"nearer to B's geometry": plain(3), "B rather than A": points}, "gate")


SITUATIONS = ("one subject", "two subjects", "look-alikes")


def attribution(pictures: str, file: str = "attribution") -> str:
    columns = dict.fromkeys((*SITUATIONS, "IoU own"), plain(2))
    columns |= {"IoU best": plain(2), "pointing": percent, "on the other": percent}
    return measures(results(file)[pictures], columns, "method, layers")


def attribution_by_word(pictures: str, file: str) -> str:
    """DAAM's rule as it is, and what each way finds from the subject's word alone, propagated."""
    found = results(file)[pictures]
    shown = {way: told for way, told in found.items() if way == "DAAM's rule" or way.endswith(", propagated")}
    columns = dict.fromkeys((*SITUATIONS, "IoU own"), plain(2)) | {"on the other": percent}
    return measures(shown, columns, "method, layers")


def attribution_settings() -> str:
    return measures(results("attribution")["settings"]["drawn"], dict.fromkeys(SITUATIONS, plain(2)), "setting")


def attribution_beside() -> str:
    found = results("attribution")["against the default"]
    columns = [(kind, told) for kind in found for told in ("alone", "against the rest")]

    def beside(way: str, kind: str, told: str) -> str:
        return signed(2)(found[kind][way][told]) if told in found[kind].get(way, {}) else ""

    rows = ([way, *(beside(way, *column) for column in columns)] for way in found["drawn"])
    return table(["way", *(f"{kind}, {told}" for kind, told in columns)], rows)


def layers_agreement(file: str = "layers") -> str:
    found, count = results(file)["agreement"], len(results(file)["layers"])
    rows = ([name, plain(2)(told), ", ".join(f"{each:.2f}" for each in told["each"])] for name, told in found.items())
    return table([f"Spearman over {count} layers", "mean of references", "each reference"], rows)


def layers_alone(file: str) -> str:
    return measures(results(file)["by layer"], {"gain": plain(3), "loss": plain(1)}, "layer, alone")


def layers_chosen(file: str = "layers") -> str:
    return measures(results(file)["chosen"], {"gain": plain(3), "loss": plain(1)}, "ranking, share")


def attribution_cost() -> str:
    cost = results("attribution")["cost"]
    heads = ["method", "conditional forwards", "peak memory over a guided step", "the same without weights"]
    held, without = cost["memory against a guided step"], cost["the same without weights"]
    rows = ([name, f"{n:.2f}", f"{held[name]:.2f}", f"{without[name]:.2f}"] for name, n in cost["forwards"].items())
    return table(heads, rows)


def blend(file: str = "blend", beside: tuple[str, ...] = ()) -> str:
    """`beside`: measures of what is left of the reference's own subject."""
    columns: dict[str, Writer] = dict.fromkeys(("subject", "place", "both", *beside), percent)
    return measures(results(file)["ways"]["all"], columns | {"PSNR outside": plain(1), "seam": plain(2)}, "way")


def references() -> str:
    columns = {"style distance": plain(3), "leak": plain(2), "leaked": percent, "content": percent}
    return measures(results("references")["ways"], columns, "way")


def references_damped() -> str:
    columns = {"style distance": plain(3), "leak": plain(2), "leaked": points, "content": points}
    return measures(results("references")["damping"], columns, "without its subject, less with it")


def references_cost() -> str:
    rows = ([name, f"{ratio:.2f}"] for name, ratio in results("references")["cost over a plain run"].items())
    return table(["run", "of a plain one"], rows)


def references_trip() -> str:
    rows = ([name, f"{found:.0f} dB"] for name, found in results("references")["round trip, dB"].items())
    return table(["inversion", "comes back to within"], rows)


def guidance() -> str:
    found = results("guidance")
    columns: dict[str, Writer] = {
        "style distance": plain(3), "content": percent, "one subject": percent, "both of two": percent,
        "leak": plain(2), "spread": plain(2),
    }  # fmt: skip
    rows = (
        [way, *(write(told[measure]) for measure, write in columns.items()), _forwards(found["forwards"][way])]
        for way, told in found["ways"].items()
    )
    return table(["way", *columns, "forwards, again"], rows)


def _forwards(told: dict[str, float]) -> str:
    return f"{told['first seed']:g}, {told['second seed']:g}"


def guidance_beside() -> str:
    columns: dict[str, Writer] = {
        "style distance": signed(3), "content": points, "place": points, "leak": signed(2),
    }  # fmt: skip
    return measures(results("guidance")["less sharing"], columns, "way, less sharing at ranked 0.43")


def lora(part: str) -> str:
    columns: dict[str, Writer] = {
        "style distance": plain(3), "hand distance": plain(3), "content": percent, "subject": percent,
        "sure of the subject": percent, "leak": plain(2), "leaked": percent,
    }  # fmt: skip
    return measures(results("lora")[part], columns, "LoRA at")


def lora_less(part: str) -> str:
    columns: dict[str, Writer] = {
        "style distance": signed(3), "content": points, "subject": points, "leak": signed(2),
    }  # fmt: skip
    return measures(results("lora")[part], columns, "LoRA at")


def microcond() -> str:
    found = results("microcond")["moved"]
    rows = ([way, *(f"{x:.2f}, {off:.2f}" for x, off in zip(told["moved"], told["off"], strict=True))]
            for way, told in found["ways"].items())  # fmt: skip
    return table(["moved, off", *(f"{percent:.0%}" for percent in found["percents"])], rows)


TABLES: dict[str, Callable[[], str]] = {
    "bars": bars,
    "bars, hands": bars_hands,
    "bars, transformer": bars_transformer,
    "bars, sharing": bars_of_sharing,
    "judges": judges,
    "sampling": settings_of_sampling,
    "balance, known hands": lambda: balance("known hands"),
    "balance, at equal style": lambda: balance_at_equal_style("known hands"),
    "balance, best drawn": lambda: balance("known hands", "balance_best"),
    "balance, best drawn at equal style": lambda: balance_at_equal_style("known hands", "balance_best"),
    "balance, drawn references": lambda: balance("drawn references", "balance_drawn"),
    "balance, drawn references over all": balance_drawn_over_all,
    "balance, drawn references at equal style": lambda: balance_at_equal_style("drawn references", "balance_drawn"),
    "balance, over all": balance_over_all,
    "balance, same twice": lambda: balance("known hands", "balance_repeated"),
    "balance, same twice at equal style": lambda: balance_at_equal_style("known hands", "balance_repeated"),
    "balance, same twice, others": lambda: balance("known hands", "balance_repeated_more"),
    "balance, same twice, others at equal style": lambda: balance_at_equal_style(
        "known hands", "balance_repeated_more"
    ),
    "balance, unseen hands": lambda: balance("unseen hands", "balance_unseen"),
    "balance, unseen hands at equal style": lambda: balance_at_equal_style("unseen hands", "balance_unseen"),
    "balance, transformer": lambda: balance("known hands", "balance_transformer"),
    "balance, transformer at equal style": lambda: balance_at_equal_style("known hands", "balance_transformer"),
    "balance, transformer, keep": lambda: balance("known hands", "balance_transformer_keep"),
    "balance, transformer, keep, at equal style": lambda: balance_at_equal_style(
        "known hands", "balance_transformer_keep"
    ),
    "positions": positions,
    "swaps": swaps,
    "swaps, moved": swaps_moved,
    "layers, agreement": layers_agreement,
    "layers, chosen": layers_chosen,
    "layers, transformer, alone": lambda: layers_alone("layers_transformer"),
    "layers, transformer, agreement": lambda: layers_agreement("layers_transformer"),
    "layers, transformer, chosen": lambda: layers_chosen("layers_transformer"),
    "structure": structure,
    "structure, at equal subjects": lambda: structure_gained("at equal subject recognition"),
    "structure, at equal edges": lambda: structure_gained("at equal edge agreement"),
    "structure, best drawn": lambda: structure("structure_best"),
    "structure, best drawn at equal edges": lambda: structure_gained("at equal edge agreement", "structure_best"),
    "attribution, drawn": lambda: attribution("drawn"),
    "attribution, generated": lambda: attribution("generated"),
    "attribution, settings": attribution_settings,
    "attribution, beside the default": attribution_beside,
    "attribution, cost": attribution_cost,
    "attribution, transformer, drawn": lambda: attribution("drawn", "attribution_transformer"),
    "attribution, transformer, generated": lambda: attribution("generated", "attribution_transformer"),
    "attribution, best drawn": lambda: attribution_by_word("drawn", "attribution_best"),
    "attribution, best generated": lambda: attribution_by_word("generated", "attribution_best"),
    "blend": blend,
    "blend, best drawn": lambda: blend("blend_best", ("theirs stays",)),
    "blend, transformer": lambda: blend("blend_transformer"),
    "references": references,
    "references, damped": references_damped,
    "references, cost": references_cost,
    "references, round trip": references_trip,
    "guidance": guidance,
    "guidance, beside sharing": guidance_beside,
    "lora": lambda: lora("style"),
    "lora, less whole": lambda: lora_less("less whole"),
    "lora, pair": lambda: lora("pair"),
    "lora, pair less both": lambda: lora_less("pair, less both whole"),
    "microcond": microcond,
}


if __name__ == "__main__":
    main()
