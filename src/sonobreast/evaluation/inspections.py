"""What the study's report says of the four further examinations of its runs, each of which has a page of its own.

They are taken up from folders inside the study's. Run names of two studies of one recipe are the same, so each
examination carries digests of the runs' predictions: one of other runs is named and not shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sonobreast.errors import SonobreastError
from sonobreast.evaluation import domain_page, explain_page, inspection_plots, robustness_page, shortcuts_page
from sonobreast.evaluation.localisation import CENTRE
from sonobreast.evaluation.robustness import TITLES as STRESS_TITLES
from sonobreast.evaluation.shortcuts import TITLES as PART_TITLES
from sonobreast.evaluation.shortcuts_page import VIEWS
from sonobreast.records import read_json

INSPECTIONS = ("domain", "explain", "stress", "shortcuts")
"""Names of the examinations: of the command, of the folder inside the study's, and of the file in it."""
_TITLES = {
    "explain": "Where it looked",
    "domain": "Does it know what it should not judge",
    "stress": "Under stress",
    "shortcuts": "Short-cuts",
}
_MOST_SENTENCES = 4
_HARDEST = 3


@dataclass(frozen=True)
class Inspection:
    """One examination of a study's runs, as far as it is there.

    Attributes
    ----------
    name : str
        Of `INSPECTIONS`.
    file : Path or None
        None where there is none.
    content : mapping
        Of the file; empty where it is not of this study's runs.
    why : str
        Why a file that is there is not taken.
    """

    name: str
    file: Path | None = None
    content: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""


def examined(runs: Sequence[Path]) -> dict[str, Any]:
    """Which runs were examined, for ``about``, so that `find` knows them again.

    Returns
    -------
    dict
        ``runs``: names of the folders; ``run_digests``: name -> SHA-256 of the run's ``predictions.csv``.
    """
    return {
        "runs": [run.name for run in runs],
        "run_digests": {run.name: _digest(run / "predictions.csv") for run in runs},
    }


def _digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError:
        return ""


def find(out: Path) -> dict[str, Inspection]:
    """Examinations of this study's runs in folders inside the study's.

    The folder that has the examination's name comes first, then others by name.

    Parameters
    ----------
    out : Path
        Folder of the study.

    Returns
    -------
    dict of str to Inspection
        One for each of `INSPECTIONS`.
    """
    return {name: _find(out, name) for name in INSPECTIONS}


def _find(out: Path, name: str) -> Inspection:
    named = out / name / f"{name}.json"
    others = [f for f in sorted(out.glob(f"*/{name}.json")) if f != named]
    refused: Inspection | None = None
    for file in [*([named] if named.is_file() else []), *others]:
        try:
            content = read_json(file)
            why = _foreign(out, content["about"])
        except (SonobreastError, KeyError, TypeError):
            content, why = {}, "it cannot be read"
        if not why:
            return Inspection(name, file, content)
        refused = refused or Inspection(name, file, {}, why)
    return refused or Inspection(name)


def _foreign(out: Path, about: Mapping[str, Any]) -> str:
    """Why an examination is not of this study's runs; "" where it is."""
    given = [str(r) for r in about.get("runs", ())]
    if not given:
        return "it does not say which runs it is of"
    strange = [r for r in given if not (out / "runs" / r / "predictions.csv").is_file()]
    if strange:
        return f"it is of runs that this study does not have, first {strange[0]}"
    told = about.get("run_digests") or {}
    changed = [r for r in given if r in told and told[r] != _digest(out / "runs" / r / "predictions.csv")]
    if changed:
        return f"it is of runs of another study, which have the same names, first {changed[0]}"
    return ""


def sections(
    found: Mapping[str, Inspection], out: Path, configuration: str, networks: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, Figure]]:
    """Content of the report's sections, and their figures.

    Parameters
    ----------
    found : mapping
        From `find`.
    out : Path
        Folder of the study.
    configuration : str
        The chosen one, such as ``MobileNetV2-adam``: commands name it where the study has several.
    networks : sequence of str
        The study's configurations but for the ensemble, which has no maps: these are made of the first instead.

    Returns
    -------
    content : list of dict
        ``name, title, command``; ``why`` where a file is not taken; ``link`` where there is a page; and where there is
        an examination ``sentences, columns, rows, notes, alt, caption`` (absent: not done).
    figures : dict of str to Figure
        By name.
    """
    content: list[dict[str, Any]] = []
    figures: dict[str, Figure] = {}
    for name, title in _TITLES.items():
        one = found[name]
        of = networks[0] if name == "explain" and configuration not in networks else configuration
        named = f" --configuration {of}" if len(networks) > 1 else ""
        section: dict[str, Any] = {
            "name": name,
            "title": title,
            "command": f"sonobreast {name} OUT --data DIR --out OUT/{name}{named}",
            "why": one.why and f"{_relative(one, out)} is not shown: {one.why}",
            "link": "",
        }
        if one.content and one.file is not None:
            try:
                words, figure = _OF[name](one.content)
                section |= words
                if figure is not None:
                    figures[name] = figure
                page = one.file.with_suffix(".html")
                section["link"] = page.relative_to(out).as_posix() if page.is_file() else ""
            except (KeyError, TypeError, ValueError, IndexError, StopIteration):
                section["why"] = f"{_relative(one, out)} is not shown: it is not as this version writes it"
        content.append(section)
    return content, figures


def _relative(one: Inspection, out: Path) -> str:
    return "" if one.file is None else one.file.relative_to(out).as_posix()


def _cell(figure: Mapping[str, Any] | None, form: str) -> dict[str, Any]:
    return {"figure": figure, "form": form}


def _text(text: str, small: str = "") -> dict[str, Any]:
    return {"text": text, "small": small}


def _domain(found: Mapping[str, Any]) -> tuple[dict[str, Any], Figure | None]:
    mine = found["detectors"][found["detector"]]
    kinds = {**mine["outsiders"], **mine["others"]}
    judged = {k: f["refused"]["estimate"] for k, f in mine["outsiders"].items() if f["images"]}
    hard = sorted(judged, key=lambda k: (judged[k], k))[:_HARDEST]
    rows = [[_text("own test scans, wrongly refused", _images(mine["test"])), *_refused(mine["test"])]]
    rows += [[_text(k, _images(kinds[k])), *_refused(kinds[k])] for k in [*hard, *mine["others"]]]
    notes = [
        f"The {len(hard)} kinds of outsiders that are refused least, of {len(mine['outsiders'])}"
        + (", and scans of other hospitals" if mine["others"] else "")
        + ". AUC: chance that such a picture lies farther from the training images than a test scan does.",
        "Refused scans may be good scans, and an accepted one may still be judged wrongly.",
    ]
    if found["groups_least"] < found["groups_needed"]:
        notes.append(
            f"Too few validation images to promise that {100 * found['accept']:.0f} % are accepted: "
            f"{found['groups_needed']} independent groups are needed, there are {found['groups_least']}."
        )
    words = {
        "sentences": _with_model(found, domain_page.sentences(found, most=_HARDEST)),
        "columns": ["pictures", "refused, %\n95 % interval", "AUC\n95 % interval"],
        "rows": rows,
        "notes": notes,
        "alt": "Share of pictures refused, by kind",
        "caption": "Share of pictures refused, with 95 % intervals. Dotted: what the threshold was to refuse of scans. "
        "Own test scans should stand at the left, outsiders at the right.",
    }
    return words, inspection_plots.refused_plot(inspection_plots.refused_frame(found), 1.0 - found["accept"])


def _images(figures: Mapping[str, Any]) -> str:
    return f"{figures['images']} images in {figures['groups']} groups"


def _refused(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [_cell(figures["refused"], "percent"), _cell(figures.get("auc"), "number")]


def _with_model(found: Mapping[str, Any], sentences: Sequence[str]) -> list[str]:
    """The first sentence says whose figures these are."""
    return [f"{found['about']['model']}. {s}" if not i else s for i, s in enumerate(sentences)]


def _explain(found: Mapping[str, Any]) -> tuple[dict[str, Any], Figure | None]:
    about = found["about"]
    titles = {m["name"]: m["title"] for m in found["methods"]} | {CENTRE: "blob in the middle (control)"}
    whole = [f for f in found["localisation"] if f["part"] == "all"]
    last = {s["method"]: s for s in found["sanity"]}  # of all weights: it is the last step
    rows = [
        [
            _text(titles[f["method"]], f"{f['images']} images"),
            _cell(f["energy"], "number"),
            _cell(None if f["method"] == CENTRE else f["over_centre"]["energy"], "signed"),
            _cell(f["pointing"], "number"),
            _text(_correlation(last.get(f["method"]))),
        ]
        for f in whole
    ]
    drawn = f"{about['images']} of {about['of_all']} images" if about["images"] < about["of_all"] else "all images"
    notes = [
        f"{about['model']}; {drawn}, {about['with_mask']} with an outlined lesion; what speaks for "
        f"“{about['target']}”. A map shows what a score depends on, not that it is right."
    ]
    if whole:
        notes.append(
            "Energy: share of the relevance inside the lesion. Pointing game: the maximum lies in the lesion. Changed "
            "weights: rank correlation with the map of a network whose weights were permuted; a high one means that "
            "the map shows the picture and not what was learned."
        )
    if found["why_not_scored"]:
        notes.append(f"Scores against lesions: {found['why_not_scored']}.")
    names = ["energy inside lesion", "more than\nthe blob", "pointing game,\nhits", "changed\nweights"]
    words = {
        "sentences": explain_page.sentences(found),
        "columns": ["map", f"{names[0]}\n95 % interval", *names[1:]],
        "rows": rows,
        "notes": notes,
        "alt": "Energy of the maps inside the lesion",
        "caption": "Share of a map's relevance that lies inside the lesion, with 95 % intervals: all images, those "
        "called right and those called wrong. Dotted: the lesions' mean share of the image, what a map without any "
        "preference would have.",
    }
    figure = inspection_plots.energy_plot(inspection_plots.energy_frame(found, titles)) if whole else None
    return words, figure


def _correlation(sanity: Mapping[str, Any] | None) -> str:
    """Not tried, or of maps that do not vary: a dash."""
    value = None if sanity is None else sanity["spearman"]
    return "–" if value is None or value != value else f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def _stress(found: Mapping[str, Any]) -> tuple[dict[str, Any], Figure | None]:
    main = robustness_page.headline(found)
    metrics = list(dict.fromkeys((main, "accuracy", "ece" if "ece" in found["metrics"] else "overconfidence")))
    titles = {k["name"]: k["title"] for k in found["kinds_in_words"]}
    rows = []
    several = len(found["models"]) > 1
    for model in found["models"]:
        worst = sorted(model["kinds"], key=lambda k: -(k["drop"][main]["estimate"] or 0.0))
        name = model["model"] if several else ""
        parts = [("mean of all kinds", model["mean_drop"])]
        parts += [(titles[k["kind"]], k["drop"]) for k in worst[: 1 if several else _HARDEST]]
        rows += [[_text(title, name), *(_cell(drop[m], "signed") for m in metrics)] for title, drop in parts]
    frame = robustness_page.summary_frame(found, tuple(dict.fromkeys((main, "accuracy"))))
    words = {
        "sentences": robustness_page.sentences(found)[:_MOST_SENTENCES],
        "columns": ["corruption, five strengths", *(f"{_loss(m)}\n95 % interval" for m in metrics)],
        "rows": rows,
        "notes": [
            _judged(found),
            f"Mean over the strengths, against the images as they are; the kinds that harm most of {len(titles)}, "
            "which are worst by chance as well. Corruptions are simulated.",
        ],
        "alt": "Mean losses by kind of corruption",
        "caption": "Loss against the images as they are, mean over the five strengths of a kind, and over all. To the "
        "right: worse. Lines: paired 95 % intervals.",
    }
    return words, robustness_page.summary_plot(frame)


def _loss(metric: str) -> str:
    short = STRESS_TITLES[metric].split(",")[0]
    return f"{short}: loss" if metric in ("auc_malignant", "accuracy") else f"{short}: rise"


def _judged(found: Mapping[str, Any]) -> str:
    about = found["about"]
    who = f"{found['models'][0]['model']}: " if len(found["models"]) == 1 else ""
    text = f"{who}{found['images']} images in {found['groups']} independent groups"
    text += f", a draw of {about['available']}" if about["drawn"] < about["available"] else ""
    if not about["own"]:
        return f"{text}, none of the study's own set ({about['name']}): judged by the mean of all runs."
    return f"{text}, each judged by runs for which it is a {about['subset']} image."


def _shortcuts(found: Mapping[str, Any]) -> tuple[dict[str, Any], Figure | None]:
    several = len(found["models"]) > 1
    parts, marks = ("border", "background-filled"), ("unmarked", "calipers", "text")
    rows = []
    for model in found["models"]:
        views = ("background-filled", "border") if several else tuple(v for v in VIEWS if v != "unmarked")
        name = model["model"] if several else ""
        for view in [v for v in views if v in model["parts"]]:
            part = model["parts"][view]
            metric = _metric(model)
            rows.append(
                [
                    _text(VIEWS[view], name or f"{part['images']} images"),
                    _cell(part["value"][metric], "number"),
                    _cell(None if view == "whole" else part["loss"][metric], "signed"),
                    _text(""),
                ]
            )
        for view in marks:
            shift = next((r for r in model["shifts"].get(view, ()) if not r["label"] and "shift" in r), None)
            if shift is not None:
                small = name or f"{shift['images']} images"
                rows.append(
                    [_text(VIEWS[view], small), _text(""), _text(""), _cell(shift["shift"], "signed")],
                )
    notes = [_judged(found)]
    notes += [f"Not applicable: {VIEWS[v]}: {why}." for v, why in found["not_applicable"].items()]
    notes.append(
        "A background that does far better than its outline says that something beside the lesion tells the class. It "
        "need not be a fault, but may not hold in another hospital."
    )
    title = PART_TITLES[_metric(found["models"][0])]
    words = {
        "sentences": shortcuts_page.sentences(found, parts=parts, marks=())[:_MOST_SENTENCES],
        "columns": [
            "what is shown",
            f"{title.replace(', ', ',' + chr(10))}",
            "whole − part\n95 % interval",
            "shift of the malignant\nprobability",
        ],
        "rows": rows,
        "notes": notes,
        "alt": "Figures of parts of the images",
        "caption": "What is known from a part of the picture, with 95 % intervals. Dotted: chance (of the accuracy: "
        "always saying the most frequent class of these images).",
    }
    return words, shortcuts_page.parts_plot(shortcuts_page.parts_frame(found))


def _metric(model: Mapping[str, Any]) -> str:
    """Of malignant against benign: the size of the lesion hardly helps there; the accuracy where it is not defined."""
    value = model["parts"]["whole"]["value"]
    return "auc_lesions" if (value.get("auc_lesions") or {}).get("estimate") is not None else "accuracy"


_OF: Mapping[str, Callable[[Mapping[str, Any]], tuple[dict[str, Any], Figure | None]]] = {
    "domain": _domain,
    "explain": _explain,
    "stress": _stress,
    "shortcuts": _shortcuts,
}
