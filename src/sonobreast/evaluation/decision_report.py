"""What the report says of calibration, decisions and abstention, from a study's ``metrics.json``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sonobreast.evaluation.calibration import LEAST, VARIANTS
from sonobreast.evaluation.decisions import cancers_needed
from sonobreast.evaluation.predictions import OPTIMIZER_TITLES, configuration_title
from sonobreast.evaluation.trust import PARTS

_FEW = re.compile(r"only (\d+) groups behind this figure")
_TILT = 0.03  # said and seen further apart than this are worth a sentence


def decision_section(configurations: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any]) -> dict[str, Any] | None:
    """Content of the sections "Calibration", "Decisions" and "When it abstains"; None in files that lack them.

    Parameters
    ----------
    configurations : sequence of mapping
        Those of ``metrics.json``.
    chosen : mapping
        The one that figures and sentences are about.
    """
    if not all(part in c for c in configurations for part in PARTS):
        return None
    entries = [
        {
            "architecture": c["architecture"],
            "optimizer_title": OPTIMIZER_TITLES.get(c["optimizer"], c["optimizer"]),
            "title": configuration_title(c["architecture"], c["optimizer"]),
            **{part: c[part] for part in PARTS},
        }
        for c in configurations
    ]
    return {
        "configurations": entries,
        "chosen": configuration_title(chosen["architecture"], chosen["optimizer"]),
        "several": len(entries) > 1,
        "least": LEAST,
        "variants": VARIANTS,
        "of": {part: chosen[part] for part in PARTS},
        "calibration_sentences": calibration_sentences(chosen["calibration"]),
        "decision_sentences": decision_sentences(chosen["decisions"]),
        "abstention_sentences": abstention_sentences(chosen["conformal"], chosen["abstention"]),
        "cautions": {part: _cautions(entries, part) for part in PARTS},
        "needs": {f"{100 * s:.0f} %": cancers_needed(s) for s in _aims(chosen["decisions"])},
    }


def _aims(decisions: Mapping[str, Any]) -> list[float]:
    return [p["aim"] for p in decisions.get("points", ())]


def calibration_sentences(calibration: Mapping[str, Any]) -> list[str]:
    """What the calibration figures of one configuration say, in words."""
    if calibration["reason"]:
        return [f"Calibration was not looked at: {calibration['reason']}."]
    variants = calibration["variants"]
    before, after = variants["none"], variants["temperature"]
    what, name = ("malignancy", "malignancy") if before["malignancy"] else ("top", "the class it names")
    ece, chance = before[what]["ece"], before[what]["if_calibrated"]
    said = [
        f"Expected calibration error for {name}: {_number(ece)}; a perfectly calibrated model would show about "
        f"{chance['mean']:.3f} on these images, and more than {chance['high']:.3f} in one of twenty such sets. "
        + (
            "So these probabilities are off."
            if ece["estimate"] > chance["high"]
            else "So these images do not show that the probabilities are off."
        )
    ]
    tilt = after[what]["said"] - after[what]["seen"]
    still_off = after[what]["ece"]["estimate"] > after[what]["if_calibrated"]["high"]
    if what == "malignancy" and abs(tilt) > _TILT and still_off:
        said.append(
            f"After the temperature the mean probability of malignancy is {_percent(after[what]['said'])}, and "
            f"{_percent(after[what]['seen'])} of the images are malignant: it says too "
            f"{'much' if tilt > 0 else 'little'}. A temperature cannot mend that, for it makes all classes surer or "
            "less sure alike; class weights in training are a usual cause."
        )
    warm, cold = after["log_loss"]["estimate"], before["log_loss"]["estimate"]
    t = calibration["temperature"]
    spread = "" if t["least"] == t["greatest"] else f" (from {t['least']:.2f} to {t['greatest']:.2f} over the runs)"
    sure = "less sure" if t["mean"] > 1.02 else "surer" if t["mean"] < 0.98 else "hardly different"
    if t["least"] < 0.98 and t["greatest"] > 1.02:
        sure = "surer in some runs and less sure in others"
    changed = "falls" if warm < cold - 5e-4 else "rises" if warm > cold + 5e-4 else "stays"
    if calibration["fitted"]:
        said.append(
            f"The temperature is {t['mean']:.2f}{spread}: it makes the probabilities {sure}, and the log loss on the "
            f"test images {changed}{'' if changed == 'stays' else f' from {cold:.3f} to {warm:.3f}'}."
        )
    return said


def decision_sentences(decisions: Mapping[str, Any]) -> list[str]:
    """What operating points and decision curve of one configuration say, in words."""
    if decisions["reason"]:
        return [f"Not applicable: {decisions['reason']}."]
    said = []
    for point in decisions["points"]:
        aim = f"{100 * point['aim']:.0f} %"
        if point["reason"]:
            said.append(f"No threshold for a sensitivity of {aim}: {point['reason']}.")
            continue
        found, spared = point["sensitivity"], point["specificity"]
        reached = ""
        if found["high"] is not None and found["high"] < point["aim"]:
            reached = " The aim is missed: thresholds that were right for the validation images are too high here."
        said.append(
            f"The threshold for a sensitivity of {aim}, chosen on validation images and frozen, finds "
            f"{_share(found)} of the test images' cancers and leaves {_share(spared)} of the others without an alarm."
            f"{reached}"
        )
    if decisions["curve"] is None:
        said.append(f"No decision curve: {decisions['curve_reason']}.")
        return said
    ranges = " and ".join(
        f"{100 * a:.0f} %" if a == b else f"{100 * a:.0f} to {100 * b:.0f} %" for a, b in decisions["better"]
    )
    said.append(
        f"Net benefit is above that of biopsy for all and for none, by more than chance explains at any one threshold, "
        f"at threshold probabilities of {ranges}."
        if ranges
        else "At no threshold probability up to 50 % is net benefit shown to be above that of biopsy for all and none."
    )
    return said


def abstention_sentences(conformal: Mapping[str, Any], abstention: Mapping[str, Any]) -> list[str]:
    """What conformal sets and the risk-coverage curve of one configuration say, in words."""
    said = []
    if conformal["reason"]:
        said.append(f"No conformal sets: {conformal['reason']}.")
    elif conformal["single"]["mean"] is not None:
        single, right = conformal["single"], conformal["single_right"]
        correct = "" if right["mean"] is None else f", and {_percent(right['mean'])} of these are right"
        said.append(
            f"Sets that aim to hold the true class in {100 * (1 - conformal['alpha']):.0f} % of each class name one "
            f"class for {_percent(single['mean'])} of the images{correct}; the others "
            f"({_percent(conformal['several']['mean'])} with several classes, {_percent(conformal['empty']['mean'])} "
            "with none) are for a person to read."
        )
    if abstention["reason"]:
        return [*said, f"No risk-coverage curve: {abstention['reason']}."]
    half = abstention["points"][-1]
    risk, all_of_them = half["risk"], abstention["points"][0]["risk"]
    said.append(
        f"Deciding all images, {_share(all_of_them)} are wrong; deciding only the surest "
        f"{100 * half['coverage']:.0f} %, {_share(risk)} of these are."
    )
    if half["cancers_missed"]:
        said.append(
            f"Certainty is no safety: among the surest half are cancers that are not called malignant, "
            f"{_percent(half['cancers_missed'])} of all cancers here."
        )
    return said


def _number(figure: Mapping[str, Any]) -> str:
    if figure["low"] is None:
        return f"{figure['estimate']:.3f} (no interval)"
    return f"{figure['estimate']:.3f} (95 % interval {figure['low']:.3f} to {figure['high']:.3f})"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}\u00a0%"


def _share(figure: Mapping[str, Any]) -> str:
    if figure["estimate"] is None:
        return "– (not defined)"
    if figure["low"] is None:
        return f"{100 * figure['estimate']:.1f}\u00a0% (no interval)"
    return f"{100 * figure['estimate']:.1f}\u00a0% ({100 * figure['low']:.1f}–{100 * figure['high']:.1f})"


def _cautions(entries: Sequence[Mapping[str, Any]], part: str) -> list[str]:
    """Notes of all configurations, once each, and whose they are; those about few groups put together."""
    found: dict[str, list[str]] = {}
    few: list[int] = []
    for e in entries:
        for note in dict.fromkeys(n for text in _notes(e[part]) for n in text.split("; ") if n):
            number = _FEW.match(note)
            if number:
                few.append(int(number[1]))
            else:
                found.setdefault(note, []).append(e["title"])
    said = [note if len(of) == len(entries) else f"{', '.join(of)}: {note}" for note, of in found.items()]
    if few:
        span = str(min(few)) if min(few) == max(few) else f"{min(few)} to {max(few)}"
        said.append(f"some figures rest on {span} groups only: their intervals may be too narrow")
    return said


def _notes(content: Any) -> Iterator[str]:
    """Every ``note`` and all ``notes``, however deep."""
    if isinstance(content, Mapping):
        yield from content.get("notes", ())
        if content.get("note"):
            yield content["note"]
        content = list(content.values())
    if isinstance(content, list):
        for value in content:
            yield from _notes(value)
