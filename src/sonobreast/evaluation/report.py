"""One HTML file that can be read off-line, drawn from the stage files of a study and nothing else."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from matplotlib.figure import Figure

from sonobreast.config import Recipe, leaves, load_recipe, parse_recipe, recipe_names
from sonobreast.errors import SonobreastError
from sonobreast.evaluation import plots, published
from sonobreast.evaluation.checklist import fill
from sonobreast.evaluation.checklist import write as write_checklists
from sonobreast.evaluation.comparison import HEADLINE_METRICS
from sonobreast.evaluation.comparison_text import p_text
from sonobreast.evaluation.decision_plots import draw_decisions
from sonobreast.evaluation.decision_report import decision_section
from sonobreast.evaluation.ensemble import ENSEMBLE
from sonobreast.evaluation.evidence import gather
from sonobreast.evaluation.failure_report import failure_section
from sonobreast.evaluation.glossary import describe, metric_names
from sonobreast.evaluation.inspections import find, sections
from sonobreast.evaluation.model_card import model_card
from sonobreast.evaluation.model_card import write as write_card
from sonobreast.evaluation.planning import cases_for_half
from sonobreast.evaluation.plausibility import check_paper
from sonobreast.evaluation.predictions import (
    KEYS,
    OPTIMIZER_TITLES,
    configuration_title,
    read_patients,
    read_predictions,
)
from sonobreast.evaluation.predictive import PREVALENCES
from sonobreast.evaluation.segmentation_report import overlay_pictures, segmentation_section
from sonobreast.evaluation.segmentation_summary import read_segmentation
from sonobreast.evaluation.subgroups import METRICS
from sonobreast.evaluation.subgroups import write as write_subgroups
from sonobreast.evaluation.summary import is_complete, study_metrics
from sonobreast.page import write_page
from sonobreast.records import NO_OPTIMIZER, SUBSETS, atomic, check_version, read_json, read_table, write_json

# Figures that show images of the data set; they are drawn while the study runs and left out with --no-images.
PICTURES = ("samples", "augmentation")
_MOST_PAIRS = 28  # those of eight configurations
_MASK = "radiologist's mask"  # in the coverage of features that describe it


@dataclass(frozen=True)
class Study:
    """The stage files of a study, read."""

    out: Path
    recipe: Recipe
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    results: pd.DataFrame
    histories: Mapping[tuple[str, str], Mapping[str, pd.DataFrame]]
    split: pd.DataFrame
    problems: Sequence[Mapping[str, str]]
    failed: Mapping[str, str]
    environment: Mapping[str, Any]
    left_out: Sequence[Mapping[str, str]]
    looks: Sequence[Mapping[str, Any]]


def read_study(out: Path) -> Study:
    """Read a study's folder.

    Raises
    ------
    SonobreastError
        If it is no study, holds no finished run, or a file is missing or damaged.
    """
    file = out / "config.yaml"
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        check_version(config["schema_version"], file)
        recipe = parse_recipe(config["recipe"], origin=file)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError) as error:
        raise SonobreastError(
            "this folder holds no study", file=out, remedy="give the folder that `sonobreast study run --out` wrote"
        ) from error
    if not (out / "metrics.json").is_file():
        raise SonobreastError(
            "no run of this study is finished", file=out, remedy="run the study; a second call continues it"
        )
    results = pd.DataFrame(read_table(out / "results.csv", ("run", "architecture", "optimizer")))
    histories: dict[tuple[str, str], dict[str, pd.DataFrame]] = {}
    for run, architecture, optimizer in zip(results["run"], results["architecture"], results["optimizer"], strict=True):
        if architecture == ENSEMBLE:
            continue  # a mean of others, without epochs of its own
        history = (
            pd.DataFrame(read_table(out / "runs" / run / "history.csv", ("epoch",))).replace("", "nan").astype(float)
        )
        histories.setdefault((architecture, optimizer), {})[run] = history
    return Study(
        out,
        recipe,
        config,
        read_json(out / "metrics.json"),
        results,
        histories,
        pd.DataFrame(read_table(out / "split.csv", ("repeat", "fold", "subset", "label"))),
        read_table(out / "problems.csv") if (out / "problems.csv").is_file() else [],
        read_json(out / "failed.json")["runs"] if (out / "failed.json").is_file() else {},
        read_json(out / "environment.json"),
        read_table(out / "exclusions.csv", ("image", "reason")) if (out / "exclusions.csv").is_file() else [],
        read_json(out / "looks.json")["test_sets"] if (out / "looks.json").is_file() else [],
    )


def write_report(out: Path, *, images: bool = True, prevalences: Sequence[float] = ()) -> Path:
    """Draw ``figures/*.png`` and write ``report.html``, ``model_card.md``, ``checklist.csv`` and ``subgroups.csv``.

    A ``metrics.json`` of an earlier version is made anew from ``predictions.csv``.

    Parameters
    ----------
    out : Path
        Folder of the study.
    images : bool
        Whether the report shows images of the data set.
    prevalences : sequence of float
        Shares of cancer for the predictive values; ``metrics.json`` is made anew for them. It keeps its own otherwise.

    Raises
    ------
    SonobreastError
        See `read_study`.
    """
    study = read_study(out)
    if prevalences or not is_complete(study.metrics, segments=(out / "segmentation.csv").is_file()):
        study = replace(study, metrics=_metrics_anew(out, prevalences or PREVALENCES))
    best = {r: int(b) for r, b in zip(study.results["run"], study.results["best_epoch"], strict=True)}
    pretrained = dict(zip(study.results["architecture"], study.results["pretrained_share"].astype(float), strict=True))
    drawings = plots.draw_study(
        study.metrics,
        study.histories,
        best,
        study.recipe.paper,
        _largest_class(study),
        pretrained,
        _pairs_shown(study.metrics),
    )
    drawings |= draw_decisions(_chosen(study.metrics["configurations"]))
    inspections, further = _inspections(study)
    figures: dict[str, str] = {}
    for name, figure in ({n: draw() for n, draw in drawings.items()} | further).items():
        content = plots.png(figure)
        with atomic(out / "figures" / f"{name}.png", "wb") as stream:
            stream.write(content)
        figures[name] = base64.b64encode(content).decode()
    if images:
        for name in PICTURES:
            file = out / "figures" / f"{name}.png"
            if file.is_file():
                figures[name] = base64.b64encode(file.read_bytes()).decode()
        figures |= overlay_pictures(out / "figures", study.metrics)
    shown = {"figures": figures, "images": images, "p_text": p_text, "inspections": inspections}
    shown |= {**_content(study), **_cards(study, images)}
    write_page(out / "report.html", "evaluation/report.html.j2", shown)
    return out / "report.html"


def _inspections(study: Study) -> tuple[list[dict[str, Any]], dict[str, Figure]]:
    """The further examinations, of the configuration that the report leads with where a command needs one."""
    names = {f"{c['architecture']}-{c['optimizer']}": c for c in study.metrics["configurations"]}
    best = _chosen(study.metrics["configurations"])
    networks = [n for n, c in names.items() if c["architecture"] != ENSEMBLE]
    return sections(find(study.out), study.out, next(n for n, c in names.items() if c is best), networks)


def _cards(study: Study, images: bool) -> dict[str, Any]:
    """Errors, subgroups and checklists; writes ``subgroups.csv``, ``model_card.md``, ``checklist.csv``."""
    out = study.out
    evidence = gather(out)
    if not images:
        evidence = replace(evidence, pictures=0)
    write_subgroups(out / "subgroups.csv", evidence.subgroups)
    write_card(out / "model_card.md", model_card(out, evidence=evidence))
    checklists = fill(evidence)  # after the card, which it looks for
    write_checklists(out / "checklist.csv", checklists)
    return {
        "failures": failure_section(out, study.metrics, images=images),
        "subgroups": evidence.subgroups,
        "subgroup_metrics": [m for m in METRICS if evidence.subgroups and m in evidence.subgroups[0]],
        "checklists": checklists,
    }


def _metrics_anew(out: Path, prevalences: Sequence[float]) -> dict[str, Any]:
    """Write ``metrics.json`` from the study's predictions."""
    table, patients = read_predictions(out / "predictions.csv"), read_patients(out / "manifest.csv")
    masks = read_segmentation(out / "segmentation.csv") if (out / "segmentation.csv").is_file() else None
    write_json(out / "metrics.json", study_metrics(table, patients, masks, prevalences=prevalences))
    return read_json(out / "metrics.json")


def _pairs_shown(metrics: Mapping[str, Any], part: str = "comparisons") -> list[Mapping[str, Any]]:
    """Pairs for figure and table: all, or only those of the chosen configuration where these would be too many."""
    pairs: list[Mapping[str, Any]] = (metrics.get(part) or {}).get("pairs", [])
    if len(pairs) <= _MOST_PAIRS:
        return pairs
    best = _chosen(metrics["configurations"])
    chosen = {k: best[k] for k in KEYS}
    return [p for p in pairs if chosen in (p["a"], p["b"])]


def _chosen(configurations: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return max(configurations, key=lambda c: c["subset_accuracy"]["validation"])


def _cases_for_half(figure: Mapping[str, Any]) -> dict[str, Any] | None:
    """What an interval half as wide would need, from the accuracy that the report leads with."""
    if figure["low"] is None or figure["high"] is None:
        return None
    needed = cases_for_half(figure["estimate"], figure["low"], figure["high"], figure["n"], figure["level"])
    if needed is None:
        return None
    return {"images": needed[0], "effect": needed[1], "points": 100 * (figure["high"] - figure["low"])}


def _content(study: Study) -> dict[str, Any]:
    recipe, paper = study.recipe, study.recipe.paper
    configurations = [_configuration(c, study) for c in study.metrics["configurations"]]
    classes = study.metrics["configurations"][0]["classes"]
    used = study.split[(study.split["repeat"] == "0") & (study.split["fold"] == "0")]
    shown = [m for m in HEADLINE_METRICS if m in metric_names(classes)]
    return {
        "recipe": recipe,
        "paper": None if paper is None else published.paper(paper),
        **_beside_overall(configurations, paper),
        "config": study.config,
        "classes": classes,
        "class_table": _class_table(study),
        "split_table": _split_table(used, classes, paper),
        "folds": study.split[["repeat", "fold"]].drop_duplicates().shape[0],
        "configurations": configurations,
        "metrics_shown": [describe(m) for m in shown],
        "coverage_line": " ".join(
            f"{a}: {part['coverage'].iloc[0]}." for a, part in study.results.groupby("architecture", sort=False)
        ),
        "by_mask": [a for a, part in study.results.groupby("architecture") if _MASK in part["coverage"].iloc[0]],
        "chosen": _chosen(configurations),
        "notes": _notes(study.metrics["configurations"], shown),
        "nested": study.metrics["nested_choice"],
        "half": _cases_for_half((study.metrics["nested_choice"] or _chosen(configurations))["accuracy"]),
        "comparisons": study.metrics["comparisons"],
        "pairs": _pairs_shown(study.metrics),
        "segmentation": segmentation_section(study.metrics, _pairs_shown(study.metrics, "segmentation_comparisons")),
        "decisions": decision_section(study.metrics["configurations"], _chosen(configurations)),
        "malignant_share": _malignant_share(study),
        "describe": describe,
        "title_of": lambda key: configuration_title(key["architecture"], key["optimizer"]),
        "largest_class": _largest_class(study),
        "runs": len(study.results),
        "failed": study.failed,
        "problems": study.problems,
        "differences": differences(study),
        "settings": _settings(recipe),
        "environment": study.environment,
        "curves_name": plots.curves_name,
        **_groups(used),
        "own_split": bool(study.config.get("own_split")),
        "left_out": study.left_out,
        "left_out_reasons": _reasons(study.left_out),
        "looks": _looks(study.looks),
        "simulated": study.config.get("source") == "phantom",
    }


def _configuration(c: Mapping[str, Any], study: Study) -> dict[str, Any]:
    architecture, optimizer = c["architecture"], c["optimizer"]
    paper = study.recipe.paper
    mine = study.results[(study.results["architecture"] == architecture) & (study.results["optimizer"] == optimizer)]
    return {
        **c,
        "title": configuration_title(architecture, optimizer),
        "optimizer_title": OPTIMIZER_TITLES.get(optimizer, optimizer),
        "coverage": mine["coverage"].iloc[0],
        "pretrained": float(mine["pretrained_share"].iloc[0]),
        "epochs": "–" if optimizer == NO_OPTIMIZER else _span(mine["epochs"].astype(float)),
        "best_epoch": "–" if optimizer == NO_OPTIMIZER else _span(mine["best_epoch"].astype(float)),
        "seconds": float(mine["seconds"].astype(float).sum()),
        "printed": plots.published_accuracies(paper, architecture, optimizer),
        "printed_classes": None if paper is None else published.table4(paper, architecture, optimizer),
        "printed_overall": None if paper is None else published.overall(paper, architecture),
        "curves": plots.curves_name(architecture, optimizer),
    }


def _beside_overall(configurations: Sequence[Mapping[str, Any]], paper: str | None) -> dict[str, Any]:
    """Whether the paper prints figures over all classes of these networks, and what is wrong with them."""
    if paper is None or not any(c["printed_overall"] for c in configurations):
        return {"printed_overall": False}
    wrong = [f for f in check_paper(paper) if f.severity in ("error", "warning") and f.table == "Table 3"]
    return {
        "printed_overall": True,
        "printed_findings": [f"{f.row}: {f.message}" if f.row else f.message for f in wrong],
    }


def _groups(used: pd.DataFrame) -> dict[str, Any]:
    """Images of groups of two or more, and test images of which one is in training, in the first fold."""
    size = used["group"].value_counts()
    trained = set(used.loc[used["subset"] == "train", "group"])
    test = used.loc[used["subset"] == "test", "group"]
    return {
        "used_images": len(used),
        "groups_of_two": int((size > 1).sum()),
        "grouped_images": int((used["group"].map(size) > 1).sum()),
        "leaked": (int(test.isin(trained).sum()), len(test)),
    }


def _reasons(left_out: Sequence[Mapping[str, str]]) -> list[tuple[str, int]]:
    """Reasons with their number, those that name an image put together, the most frequent first."""
    words = [
        row["reason"].split(" of ")[0] if row["reason"].startswith("copy of ") else row["reason"] for row in left_out
    ]
    return Counter(words).most_common(12)


def _looks(looks: Sequence[Mapping[str, Any]]) -> dict[str, int] | None:
    """Looks at the test set that was looked at most."""
    if not looks:
        return None
    return {**{k: max(int(row[k]) for row in looks) for k in ("here", "before")}, "sets": len(looks)}


def _span(values: pd.Series[float]) -> str:
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low}–{high}"


def _largest_class(study: Study) -> float | None:
    support = [v["support"] for v in study.metrics["configurations"][0]["per_class"].values()]
    return max(support) / sum(support) if sum(support) else None


def _notes(configurations: Sequence[Mapping[str, Any]], shown: Sequence[str]) -> dict[str, list[str]]:
    """What a reader must know beside the figures of each part, once each."""
    figures: dict[str, list[Mapping[str, Any]]] = {"metrics": [], "patients": [], "predictive_values": []}
    for c in configurations:
        figures["metrics"] += [c["metrics"][m] for m in shown]
        figures["patients"] += [c["patients"]["metrics"][m] for m in shown] if c["patients"] else []
        figures["predictive_values"] += [v[w] for v in c["predictive_values"] or [] for w in ("ppv", "npv")]
    return {part: list(dict.fromkeys(f["note"] for f in found if f["note"])) for part, found in figures.items()}


def _malignant_share(study: Study) -> float | None:
    support = {k.strip().casefold(): v["support"] for k, v in study.metrics["configurations"][0]["per_class"].items()}
    return support["malignant"] / sum(support.values()) if support.get("malignant") else None


def _class_table(study: Study) -> list[dict[str, Any]]:
    """Aulia's Table 1: images of each class in the data, used here, and as the paper prints them."""
    paper = study.recipe.paper
    printed = published.class_counts(paper) if paper else None
    first = study.split[(study.split["repeat"] == "0") & (study.split["fold"] == "0")]
    used = first["label"].value_counts()
    found = study.config["counts"]
    rows = [
        {"label": c, "found": n, "used": int(used.get(c, 0)), "printed": (printed or {}).get(c)}
        for c, n in found.items()
    ]
    total = {
        "label": "total",
        "found": sum(found.values()),
        "used": len(first),
        "printed": (printed or {}).get("total"),
    }
    return [*rows, total]


def _split_table(used: pd.DataFrame, classes: Sequence[str], paper: str | None) -> list[dict[str, Any]]:
    """Aulia's Table 2: images of each class and subset."""
    printed = published.split_counts(paper) if paper else None
    rows = []
    for label in [*classes, "total"]:
        mine = used if label == "total" else used[used["label"] == label]
        rows.append(
            {
                "label": label,
                "counts": {s: int((mine["subset"] == s).sum()) for s in SUBSETS},
                "printed": (printed or {}).get(label),
            }
        )
    return rows


def differences(study: Study) -> list[str]:
    """What differs between this run and the paper it follows, in sentences."""
    recipe = study.recipe
    sentences = []
    coverage = study.results.drop_duplicates("architecture")
    for architecture, share, text in zip(
        coverage["architecture"], coverage["pretrained_share"].astype(float), coverage["coverage"], strict=True
    ):
        if share < 1.0:
            whole = " The paper used complete ImageNet weights." if recipe.paper == "aulia2026" else ""
            sentences.append(f"{architecture}: {text}.{whole}")
    if recipe.paper is None:
        return []
    counts = published.split_counts(recipe.paper)
    first = study.split[(study.split["repeat"] == "0") & (study.split["fold"] == "0")]
    if counts is not None and any(
        int(((first["label"] == c) & (first["subset"] == s)).sum()) != counts[c][s]
        for c in counts
        if c != "total"
        for s in SUBSETS
    ):
        sentences.append("The numbers of images differ from the paper's Table 2.")
    elif counts is not None:
        sentences.append(
            "The numbers of images are the paper's, but which images were drawn and how they were divided is not "
            "published: another draw gives other figures."
        )
    sentences += [f"{key} was changed to {value}." for key, value in changed_settings(recipe)]
    sentences += [f"{key} is {_setting(recipe, key)}: {why}." for key, why in _beyond_base(recipe)]
    return sentences


def _beyond_base(recipe: Recipe) -> list[tuple[str, str]]:
    """Reasons that a derived recipe of the package adds to the recipe named after its paper."""
    if recipe.paper is None or recipe.paper not in recipe_names() or recipe.name == recipe.paper:
        return []
    base = load_recipe(recipe.paper)
    return [(k, why) for k, why in recipe.ours.items() if k not in base.ours]


def changed_settings(recipe: Recipe) -> list[tuple[str, str]]:
    """Settings that differ from the package's recipe of the same name: (dotted name, value)."""
    if recipe.name not in recipe_names():
        return []
    base = load_recipe(recipe.name)
    names = dict.fromkeys([*_names(base), *_names(recipe)])
    changed = {k: _setting(recipe, k) for k in names if _setting(base, k) != _setting(recipe, k)}
    # A group that was switched off is one change, not one for each of its settings.
    return [(k, v) for k, v in changed.items() if not any(k.startswith(f"{group}.") for group in changed)]


def _names(recipe: Recipe) -> list[str]:
    skip = {"schema_version", "name", "title", "paper"}
    return [k for k in leaves(recipe.model_dump(mode="json", exclude={"ours"})) if k not in skip]


def _setting(recipe: Recipe, name: str) -> str:
    value: Any = recipe.model_dump(mode="json")
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(str(v) for v in value)
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items()) or "none"
    return "none" if value is None else str(value)


def _settings(recipe: Recipe) -> list[dict[str, str]]:
    changed = dict(changed_settings(recipe))
    return [
        {
            "name": name,
            "value": _setting(recipe, name),
            "ours": recipe.ours.get(name, ""),
            "changed": "changed for this run" if name in changed else "",
        }
        for name in _names(recipe)
    ]
