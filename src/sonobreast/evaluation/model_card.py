"""A model card in the Hugging Face format, written from a study's files: what is not known says so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.evidence import Evidence, gather
from sonobreast.evaluation.failures import chosen_configuration
from sonobreast.evaluation.glossary import describe
from sonobreast.evaluation.predictions import Key, configuration_title
from sonobreast.evaluation.subgroups import METRICS
from sonobreast.records import atomic

NOTICE = "Research use only, not a medical device: no output may be used to care for a patient."
# Figure of metrics.json -> the Hub's name of the metric.
_HUB = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced_accuracy",
    "auc_malignant": "roc_auc",
    "sensitivity_malignant": "recall",
    "specificity_malignant": "specificity",
    "f1_macro": "f1",
    "brier": "brier_score",
}
_PERCENT = ("accuracy", "balanced_accuracy", "sensitivity_malignant", "specificity_malignant")


def model_card(out: Path, key: Key | None = None, *, licence: str = "unknown", evidence: Evidence | None = None) -> str:
    """The text of ``model_card.md`` of one configuration of a study.

    Parameters
    ----------
    out : Path
        Folder of the study.
    key : (str, str), optional
        Architecture and optimizer; the configuration with the best mean validation accuracy otherwise.
    licence : str
        Of the trained model, as the Hub names it (``apache-2.0``, ``cc-by-nc-4.0``, ``other``). Nobody but its owner
        can know it, so it is "unknown" where it is not given.
    evidence : Evidence, optional
        `sonobreast.evaluation.evidence.gather` of the same configuration, where the caller has it.

    Returns
    -------
    str
        Markdown with a YAML header (``license, tags, datasets, metrics, model-index``). Figures with intervals.

    Raises
    ------
    SonobreastError
        If the study has no ``metrics.json`` or no such configuration.

    References
    ----------
    Mitchell et al. 2019, Model Cards for Model Reporting, FAT*, 220-229.
    """
    e = evidence or gather(out, key=key)
    if not e.configurations:
        raise SonobreastError(
            "no run of this study is finished", file=out, remedy="run the study; a second call continues it"
        )
    key = key or chosen_configuration(e.metrics)
    mine = [c for c in e.configurations if (c["architecture"], c["optimizer"]) == key]
    if not mine:
        known = ", ".join(configuration_title(c["architecture"], c["optimizer"]) for c in e.configurations)
        raise SonobreastError(
            f"the study has no configuration {configuration_title(*key)}; it has {known}",
            file=out / "metrics.json",
            remedy="name one of these",
        )
    header = yaml.safe_dump(_header(e, mine[0], licence), sort_keys=False, allow_unicode=True, width=110)
    return f"---\n{header}---\n\n" + "\n".join(_body(e, mine[0], licence)).rstrip() + "\n"


def write(path: Path, text: str) -> None:
    """Write the card.

    Raises
    ------
    SonobreastError
        If the file cannot be written.
    """
    with atomic(path) as stream:
        stream.write(text)


def _data_name(e: Evidence) -> str:
    if e.simulated:
        return "simulated breast ultrasound (phantom)"
    return "; ".join(d.title for d in e.data_sets) or "own images, not a public data set of the catalogue"


def _header(e: Evidence, c: Mapping[str, Any], licence: str) -> dict[str, Any]:
    figures = [m for m in _HUB if m in c["metrics"] and c["metrics"][m]["estimate"] is not None]
    source = str(e.config.get("source") or "unknown")
    tags = ["breast-ultrasound", "ultrasound", "medical-imaging", "research-use-only"]
    tags += ["image-segmentation"] if c.get("segmentation") else []
    tags += ["simulated-data"] if e.simulated else []
    metrics = [
        {
            "type": _HUB[m],
            "name": f"{describe(m).title}, 95 % interval {_span(m, c['metrics'][m])}",
            "value": round(float(c["metrics"][m]["estimate"]), 4),
        }
        for m in figures
    ]
    results = [
        {
            "task": {"type": "image-classification", "name": "Breast ultrasound: " + ", ".join(c["classes"])},
            "dataset": {"type": source, "name": f"{_data_name(e)}: the study's own test images", "split": "test"},
            "metrics": metrics,
        }
    ]
    results += [_external_result(x) for x in _external(e, c) if _auc(x)["estimate"] is not None]
    return {
        "license": licence,
        "library_name": "sonobreast",
        "pipeline_tag": "image-classification",
        "tags": tags,
        "datasets": source.split("+"),
        "metrics": list(dict.fromkeys(_HUB[m] for m in figures)),
        "model-index": [{"name": configuration_title(c["architecture"], c["optimizer"]), "results": results}],
    }


def _auc(external: Mapping[str, Any]) -> Mapping[str, Any]:
    figure: Mapping[str, Any] = external["external"]["decision"]["auc_malignant"]
    return figure


def _external(e: Evidence, c: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The evaluations on other data of this configuration's runs."""
    mine = {r["run"] for r in e.results if (r["architecture"], r["optimizer"]) == (c["architecture"], c["optimizer"])}
    return [x for x in e.external if set(x["about"]["runs"]) <= mine]


def _external_result(x: Mapping[str, Any]) -> dict[str, Any]:
    auc = _auc(x)
    name = f"{describe('auc_malignant').title}, 95 % interval {_span('auc_malignant', auc)}"
    return {
        "task": {"type": "image-classification", "name": "Breast ultrasound: malignant against the rest"},
        "dataset": {"type": "external", "name": f"{x['about']['name']}: another hospital", "split": "test"},
        "metrics": [{"type": "roc_auc", "name": name, "value": round(float(auc["estimate"]), 4)}],
    }


def _span(name: str, figure: Mapping[str, Any]) -> str:
    if figure["low"] is None or figure["high"] is None:
        return "not given"
    if name in _PERCENT:
        return f"{100 * figure['low']:.1f} to {100 * figure['high']:.1f} %"
    return f"{figure['low']:.3f} to {figure['high']:.3f}"


def _value(name: str, figure: Mapping[str, Any]) -> str:
    if figure["estimate"] is None:
        return "not defined"
    return f"{100 * figure['estimate']:.1f} %" if name in _PERCENT else f"{figure['estimate']:.3f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield ""
    yield "| " + " | ".join(header) + " |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""


def _body(e: Evidence, c: Mapping[str, Any], licence: str) -> Iterator[str]:
    title = configuration_title(c["architecture"], c["optimizer"])
    yield f"# {title}: {', '.join(c['classes'])} on breast ultrasound"
    yield ""
    yield f"**{NOTICE}**"
    yield ""
    if e.simulated:
        yield "**Trained and tested on simulated images: no figure here says anything about patients.**"
        yield ""
    yield from ("## Intended use", "")
    yield (
        "Research and teaching: to compare networks on the same images, to study shift between hospitals, and as a "
        "baseline. The user is somebody who can read the figures below with their intervals."
    )
    yield from ("", "## Out of scope", "")
    yield "- Any decision about a patient: diagnosis, triage, second reading, screening."
    yield "- Other organs, other modalities, Doppler, elastography, photographs of a screen: it answers all the same."
    yield f'- Classes other than {", ".join(c["classes"])}: it cannot say "something else".'
    yield "- Other scanners, probes and hospitals, unless it was tested there."
    yield from ("", "## The model", "")
    yield from _model(e, c)
    yield from ("", "## Training data", "")
    yield from _training_data(e)
    yield from ("", "## How it was chosen", "")
    yield _choice(e)
    yield from ("", "## Evaluation", "")
    yield from _evaluation(e, c)
    yield from ("## Subgroups", "")
    yield from _subgroups(e)
    yield from ("## Limitations", "")
    yield from (f"- {s}" for s in limitations(e, c))
    yield from ("", "## Environmental cost", "")
    yield _cost(e, c)
    yield from ("", "## Licence", "")
    yield _licences(e, c, licence)


def _model(e: Evidence, c: Mapping[str, Any]) -> Iterator[str]:
    network = e.networks.get(c["architecture"], {})
    mine = [r for r in e.results if (r["architecture"], r["optimizer"]) == (c["architecture"], c["optimizer"])]
    coverage = "; ".join(dict.fromkeys(r["coverage"] for r in mine)) or "unknown"
    yield f"- Architecture: {c['architecture']}" + (
        f" (timm: {network['timm_name']})" if network.get("timm_name") else ""
    )
    if e.recipe is not None:
        p = e.recipe.preprocess
        marks = "; burned-in marks are filled first" if p.inpaint_marks else ""
        yield f"- Input: one image, {p.size} x {p.size} px ({p.aspect}), grey values {p.scaling}{marks}"
    masks = ", and a lesion mask" if c.get("segmentation") else ""
    yield f"- Output: a probability for each of {', '.join(c['classes'])}{masks}; the largest decides"
    yield f"- Weights: {coverage}; origin {network.get('origin') or 'unknown'}"
    yield f"- Trained networks: {c['runs']} (folds, repeats and seeds); the figures are those of single networks"
    version = e.environment.get("sonobreast")
    yield f"- Made with sonobreast {version or '(version unknown)'}, recipe {e.recipe.name if e.recipe else 'unknown'}"


def _training_data(e: Evidence) -> Iterator[str]:
    yield f"- Source: {_data_name(e)}"
    for d in e.data_sets:
        yield f"- Citation: {d.citation}; from {d.page}"
    used = {r["image"]: r for r in e.split}
    labels = [r["label"] for r in used.values()]
    if used:
        classes = ", ".join(f"{labels.count(x)} {x}" for x in dict.fromkeys(labels))
        yield f"- Images used: {len(used)} ({classes}) in {len({r['group'] for r in used.values()})} groups"
        sizes = [len({r["image"] for r in e.split if (r["repeat"], r["fold"], r["subset"]) == ("0", "0", s)})
                 for s in ("train", "validation", "test")]  # fmt: skip
        folds = len({(r["repeat"], r["fold"]) for r in e.split})
        first = "" if folds == 1 else f", first of {folds} folds"
        yield "- Training {}, validation {}, test {} images{}".format(*sizes, first)
    else:
        yield "- Images used: unknown (split.csv is missing)"
    patients = len({r.get("patient", "") for r in e.manifest} - {""})
    yield f"- Patients: {patients or 'unknown'}; age, sex and origin of the patients: {_people(e)}"
    if e.exclusions:
        yield f"- Left out by a list: {len(e.exclusions)} images (exclusions.csv says why)"


def _people(e: Evidence) -> str:
    known = [name for name in ("age", "sex", "ethnicity") if e.known(name)]
    return f"{', '.join(known)} in manifest.csv, the others unknown" if known else "unknown"


def _choice(e: Evidence) -> str:
    looks = max((int(r["here"]) + int(r["before"]) for r in e.looks), default=None)
    seen = "How often the test images were looked at is unknown." if looks is None else (
        f"Trained networks that were scored on a test set on this machine: {looks}."
    )  # fmt: skip
    n = len(e.configurations)
    if n == 1:
        return f"The study had one configuration; the kept epoch was chosen on validation images. {seen}"
    return (
        f"The study compared {n} configurations. By default this card describes the one with the best mean validation "
        f"accuracy; the test images had no say. {seen}"
    )


def _evaluation(e: Evidence, c: Mapping[str, Any]) -> Iterator[str]:
    groups = c["groups"]
    yield (
        f"{c['n']} test images in {groups} groups of the same source as the training images. Intervals are 95 %, "
        f"{c['accuracy']['method']}."
    )
    shown = [m for m in _HUB if m in c["metrics"]]
    rows = [[describe(m).title, _value(m, c["metrics"][m]), _span(m, c["metrics"][m])] for m in shown]
    for label in c["classes"]:
        recall = c["per_class"][label]["recall"]
        rows.append([f"Recall, {label}", _value("accuracy", recall), _span("accuracy", recall)])
    yield from _table(["figure", "value", "95 % interval"], rows)
    outside = _external(e, c)
    if not outside:
        yield "Tests on images of another hospital: none that belongs to these files."
        yield ""
    for x in outside:
        auc, drop = _auc(x), x["drop"]["decision"]["auc_malignant"]
        gap = "" if drop["low"] is None else f"; internal minus external {drop['estimate']:+.3f} ({_span('', drop)})"
        yield (
            f"On {x['about']['images']} images of {x['about']['name']} ({x['about']['model']}): AUC for malignancy "
            f"{_value('', auc)} ({_span('', auc)}){gap}."
        )
        yield ""


def _subgroups(e: Evidence) -> Iterator[str]:
    if not e.subgroups:
        yield from ("Nothing is known of the images that would tell subgroups apart.", "")
        return
    names = [m for m in METRICS if m in e.subgroups[0]]
    rows = [
        [
            f"{r['title']}: {r['value']}",
            str(r["images"]),
            str(r["malignant"]),
            *(f"{_value(m, r[m])} ({_span(m, r[m])})" if r[m]["estimate"] is not None else "–" for m in names),
        ]
        for r in e.subgroups
    ]
    yield "As the model decides. Many small groups: the lowest of them is low by chance as well."
    yield from _table(["part", "images", "malignant", *(describe(m).title for m in names)], rows)


def limitations(e: Evidence, c: Mapping[str, Any]) -> list[str]:
    """What the files show that a user has to know, in sentences."""
    found = []
    if e.simulated:
        found.append("The images are simulated: nothing here holds for patients.")
    if e.recipe is not None and e.recipe.split.grouping == "none":
        found.append(
            "Images were divided one by one: copies may be in training and test, so the figures are likely too high."
        )
    elif not e.simulated and e.known("patient") < len(e.manifest):
        unknown = len(e.manifest) - e.known("patient")
        found.append(
            f"The patient of {unknown} of {len(e.manifest)} images is unknown: images of one woman may be in"
            " training and test, beyond the near-duplicates that were kept together."
        )
    mine = [r for r in e.results if (r["architecture"], r["optimizer"]) == (c["architecture"], c["optimizer"])]
    share = min((float(r["pretrained_share"]) for r in mine), default=None)
    if share is not None and share < 1.0 and e.networks.get(c["architecture"], {}).get("timm_name"):
        found.append(f"Only {100 * share:.0f} % of the backbone's parameters are pre-trained.")
    if any("radiologist's mask" in r["coverage"] for r in mine):
        found.append("It reads the radiologist's outline, which a new patient does not have.")
    if not _external(e, c):
        found.append("It was not tested in another hospital, where figures usually are lower.")
    accuracy = c["accuracy"]
    if accuracy["low"] is not None:
        width = 100 * (accuracy["high"] - accuracy["low"])
        found.append(
            f"The 95 % interval of the accuracy is {width:.0f} points wide: these test images cannot say more."
        )
    if c.get("missing"):
        found.append(f"{c['missing']} test images are missing, because runs failed.")
    if "shortcuts" not in e.inspections:
        found.append("Whether it leans on short-cuts (burned-in calipers and text, borders) was not tested here.")
    if not c.get("calibration"):
        found.append("Its probabilities were not checked for calibration here: 0.9 need not mean nine in ten.")
    few = [r for r in e.subgroups if r["few"]]
    if few:
        found.append(f"{len(few)} of {len(e.subgroups)} subgroups have fewer than ten images on one side.")
    found.append("It answers for any picture, also for one that is no breast ultrasound.")
    return found


def _cost(e: Evidence, c: Mapping[str, Any]) -> str:
    mine = [r for r in e.results if (r["architecture"], r["optimizer"]) == (c["architecture"], c["optimizer"])]
    if not mine:
        return "Unknown (results.csv is missing)."
    hours, whole = (sum(float(r["seconds"]) for r in rows) / 3600 for rows in (mine, e.results))
    device = e.environment.get("device") or "device unknown"
    processor = e.environment.get("processor") or "processor unknown"
    return (
        f"Training took {hours:.2f} hours for the {len(mine)} networks of this configuration, {whole:.2f} hours for "
        f"all {len(e.results)} of the study, on {processor} ({device}). Energy and emissions were not measured."
    )


def _licences(e: Evidence, c: Mapping[str, Any], licence: str) -> str:
    network = e.networks.get(c["architecture"], {})
    data = "; ".join(f"{d.title}: {d.licence}" for d in e.data_sets) or ("simulated" if e.simulated else "unknown")
    own = "unknown: whoever gives the model away has to choose one" if licence == "unknown" else licence
    begun = network.get("licence") or "unknown"
    return f"This model: {own}. The weights it began with: {begun}. The images: {data}. sonobreast: Apache-2.0."
