"""Where each item of a reporting checklist stands in a study, read from its files: one function an answer.

A rule looks for the evidence itself (a file, a column, a figure) and says "not done" where there is none. "partly" is
for items of which the files show a share and the authors have to write the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from sonobreast.evaluation.evidence import Evidence
from sonobreast.evaluation.predictions import configuration_title
from sonobreast.records import SUBSETS

Status = Literal["in this run", "partly", "not done", "not applicable", "for the authors"]


class Answer(NamedTuple):
    """Where an item stands: status, the place and value in words, and the report's section it leads to ("": none)."""

    status: Status
    where: str
    anchor: str = ""


Rule = Callable[[Evidence], Answer]
_PEOPLE = {
    "age": ("age", "patient_age"),
    "sex": ("sex", "gender"),
    "ethnicity": ("ethnicity", "race"),
    "BI-RADS": ("birads",),
    "histology": ("histology", "pathology"),
    "breast density": ("tissue_composition", "density"),
    "device": ("device", "scanner", "manufacturer"),
}


def _missing(file: str, what: str = "") -> Answer:
    return Answer("not done", f"{file} is missing{f', so {what}' if what else ''}")


def _count(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def _known(e: Evidence) -> tuple[list[str], list[str]]:
    """What is known of the people ("age of 252 of 256 images"), and what of none."""
    counts = {name: e.known(*columns) for name, columns in _PEOPLE.items()}
    told = [f"{name} of {n} of {len(e.manifest)} images" for name, n in counts.items() if n]
    return told, [name for name, n in counts.items() if not n]


def _percent(figure: Mapping[str, Any]) -> str:
    if figure["estimate"] is None:
        return "not defined"
    if figure["low"] is None or figure["high"] is None:
        return f"{100 * figure['estimate']:.1f} % (no interval)"
    return f"{100 * figure['estimate']:.1f} % ({100 * figure['low']:.1f} to {100 * figure['high']:.1f})"


def _best(e: Evidence) -> Mapping[str, Any] | None:
    if not e.configurations:
        return None
    return max(e.configurations, key=lambda c: c["subset_accuracy"]["validation"])


def technique(e: Evidence) -> Answer:
    if e.recipe is None:
        return Answer("for the authors", "config.yaml is missing: the files do not say which networks")
    names = ", ".join(e.recipe.model.architectures)
    return Answer("for the authors", f"write the title; what was fitted: {names}", "settings")


def goal(e: Evidence) -> Answer:
    if not e.configurations:
        return _missing("metrics.json")
    n = len(e.configurations)
    does = "develops one model" if n == 1 else f"develops and compares {n} models"
    outside = f" and tests on {_outside(e)}" if e.external else "; no test on other data"
    return Answer("partly", f"{does}, tests internally{outside}; the purpose is for the authors", "result")


def _outside(e: Evidence) -> str:
    return ", ".join(dict.fromkeys(f"{x['about']['name']} ({x['about']['images']} images)" for x in e.external))


def data_sources(e: Evidence) -> Answer:
    if not e.manifest:
        return _missing("manifest.csv")
    size = _count(len(e.manifest), "image")
    if e.simulated:
        return Answer("in this run", f"{size}, all simulated (phantom): no hospital, no patients", "data")
    known = [f"{d.title}; {d.citation}" for d in e.data_sets]
    source = "; ".join(known) or f"layout {e.config.get('layout', 'not known')}, no public data set of the catalogue"
    return Answer("partly", f"{size}: {source}. Why this source and whom it stands for: for the authors", "data")


def setting(e: Evidence) -> Answer:
    sites = {r.get("site", "") for r in e.manifest} - {""}
    if sites:
        return Answer("partly", f"manifest.csv names {_count(len(sites), 'site')}; kind of care: for the authors")
    named = "; ".join(d.title for d in e.data_sets)
    return Answer("for the authors", f"the files say no more than: {named}" if named else "the files name no centre")


def eligibility(e: Evidence) -> Answer:
    if not e.manifest or e.recipe is None:
        return _missing("manifest.csv or config.yaml")
    listed = "none left out by a list" if e.exclusions is None else f"{len(e.exclusions)} left out (exclusions.csv)"
    unread = sum(p.get("severity") == "error" for p in e.problems)
    broken = f"{_count(unread, 'file')} left out or without mask (problems.csv)" if unread else "no unusable file"
    classes = ", ".join(e.recipe.data.classes or ("all classes",))
    who = "" if e.simulated else "; how people came into the data set: for the authors"
    return Answer("in this run" if e.simulated else "partly", f"classes {classes}; {listed}; {broken}{who}", "data")


def preprocessing(e: Evidence) -> Answer:
    if e.recipe is None:
        return _missing("config.yaml")
    p = e.recipe.preprocess
    marks = "burned-in marks filled" if p.inpaint_marks else "burned-in marks left as they are"
    text = f"{p.size} x {p.size} px, {p.interpolation}, aspect {p.aspect}, grey values {p.scaling}, {marks}"
    return Answer("in this run", f"config.yaml: {text}; the same for all subsets", "settings")


def preparation(e: Evidence) -> Answer:
    found = preprocessing(e)
    if found.status != "in this run":
        return found
    if e.audited is None:
        text = f"{found.where}; no audit of these images in or beside the folder (sonobreast data audit DIR)"
        return Answer("partly", text, found.anchor)
    return Answer("in this run", f"{found.where}; quality checked in {e.audited.parent.name}/audit.json", found.anchor)


def selected_part(e: Evidence) -> Answer:
    if not e.split or e.recipe is None:
        return _missing("split.csv or config.yaml")
    used = len({r["image"] for r in e.split})
    if e.recipe.data.subsample is None:
        if used == len(e.manifest):
            return Answer("not applicable", f"all {used} images were used", "data")
        return Answer("in this run", f"split.csv: {used} of {len(e.manifest)} images, those of the classes", "data")
    return Answer(
        "in this run",
        f"split.csv: {used} of {len(e.manifest)} images drawn by class, seed {e.recipe.data.subsample_seed}",
        "data",
    )


def deidentification(e: Evidence) -> Answer:
    if e.audited is None:
        return Answer("for the authors", "say how names and dates were removed; no audit looked for burned-in text")
    text = "say how names and dates were removed; where text is burned in stands in "
    return Answer("for the authors", f"{text}{e.audited.parent.name}/audit.json")


def missing_data(e: Evidence) -> Answer:
    if not e.manifest:
        return _missing("manifest.csv")
    n = len(e.manifest)
    lack = [
        f"{name} for {n - e.known(column)} of {n} images"
        for name, column in (("patient", "patient"), ("mask", "mask"), ("pixel spacing", "spacing_mm"))
        if e.known(column) < n
    ]
    said = f"not known: {', '.join(lack)}" if lack else "patient, mask and spacing are known for all"
    how = "unknown patients are replaced by near-duplicate groups, images without mask teach the class alone"
    return Answer("partly", f"manifest.csv: {said}; {how}; missing clinical data: for the authors", "data")


def acquisition(e: Evidence) -> Answer:
    n = e.known("device", "scanner", "manufacturer", "machine")
    if e.simulated:
        return Answer("not applicable", "simulated images: phantom.csv and the recipe say how", "data")
    if not n:
        return Answer("not done", "manifest.csv names no device, probe or setting")
    return Answer("partly", f"manifest.csv: device of {n} of {len(e.manifest)} images; settings: for the authors")


def reference(e: Evidence) -> Answer:
    if e.simulated:
        return Answer("in this run", "simulated: each image's class is the one it was made with", "data")
    if not e.manifest:
        return _missing("manifest.csv")
    n = e.known("histology", "pathology", "verification")
    classes = ", ".join(e.config.get("counts", {})) or "not known"
    if n:
        text = f"classes {classes}; histology or verification of {n} of {len(e.manifest)} images; else: for the authors"
        return Answer("partly", text, "data")
    return Answer("for the authors", f"classes {classes}: manifest.csv does not say how they were established", "data")


def test_annotation(e: Evidence) -> Answer:
    if e.simulated:
        return Answer("in this run", "simulated: class and outline are known exactly", "data")
    masks = e.known("mask")
    text = (
        f"same labels as the training images; outlines of {masks} of {len(e.manifest)} images; by whom: for the authors"
    )
    return Answer("partly", text, "data") if e.manifest else _missing("manifest.csv")


test_annotation.__test__ = False  # type: ignore[attr-defined]  # its name begins like a test


def rater_variability(e: Evidence) -> Answer:
    return Answer("not done", "one label and one outline an image: no agreement of readers can be given")


def partitions(e: Evidence) -> Answer:
    if not e.split or e.recipe is None:
        return _missing("split.csv or config.yaml")
    folds = len({(r["repeat"], r["fold"]) for r in e.split})
    own = "the user's own division" if e.config.get("own_split") else f"drawn with seed {e.recipe.split.seed}"
    how = "hold-out" if folds == 1 else f"{folds} folds"
    grouped = "whole groups" if e.recipe.split.grouping == "group" else "image by image"
    return Answer("in this run", f"split.csv: {how}, stratified by class, {grouped}, {own}", "data")


def disjoint(e: Evidence) -> Answer:
    if not e.split:
        return _missing("split.csv")
    sides: dict[tuple[str, str, str], set[str]] = {}
    for r in e.split:
        sides.setdefault((r["repeat"], r["fold"], r["group"]), set()).add(r["subset"])
    torn = len({g for (_, _, g), s in sides.items() if len(s) > 1})
    if torn:
        return Answer(
            "not done", f"not disjoint: {_count(torn, 'group')} of copies or patients on several sides", "data"
        )
    patients = e.known("patient")
    text = "no group on two sides in any fold (counted in split.csv)"
    if e.manifest and patients == len(e.manifest):
        return Answer("in this run", f"{text}; groups hold whole patients", "data")
    if e.simulated:
        return Answer("in this run", f"{text}; simulated images are independent", "data")
    unknown = f"patient known for {patients} of {len(e.manifest)} images: one woman may be on two sides"
    return Answer("partly", f"{text}; {unknown}", "data")


def sample_size(e: Evidence) -> Answer:
    best = _best(e)
    if best is None:
        return _missing("metrics.json")
    text = f"none was planned: {best['n']} test images in {best['groups']} groups give an accuracy of "
    return Answer("not done", f"{text}{_percent(best['accuracy'])}; sonobreast plan counts for any width", "result")


def model(e: Evidence) -> Answer:
    if e.recipe is None:
        return _missing("config.yaml")
    names = ", ".join(e.recipe.model.architectures)
    size = e.recipe.preprocess.size
    text = f"config.yaml: {names}; input {size} x {size} px, output a probability for each class"
    return Answer("in this run", text, "settings")


def specification(e: Evidence) -> Answer:
    if not e.results:
        return _missing("results.csv")
    if e.weights < len(e.results):
        text = f"weights of {e.weights} of {len(e.results)} runs are kept in runs/; config.yaml has the settings"
        return Answer("partly" if e.recipe else "not done", text, "settings")
    return Answer("in this run", f"runs/: settings and weights of all {_count(e.weights, 'run')}", "settings")


def building(e: Evidence) -> Answer:
    found = training(e)
    if found.status != "in this run":
        return found
    return Answer("in this run", f"{found.where}; {partitions(e).where}", "training")


def software(e: Evidence) -> Answer:
    packages = e.environment.get("packages") or {}
    if not packages or not e.environment.get("sonobreast"):
        return _missing("environment.json", "no version is known")
    some = ", ".join(f"{k} {packages[k]}" for k in ("torch", "scikit-learn") if k in packages)
    return Answer("in this run", f"environment.json: sonobreast {e.environment['sonobreast']}, {some}", "environment")


def initial_weights(e: Evidence) -> Answer:
    if not e.results or "weights" not in e.config:
        return _missing("results.csv or config.yaml")
    told = dict.fromkeys(f"{r['architecture']}: {r['coverage']}" for r in e.results)
    text = "; ".join(told)
    return Answer(
        "in this run", f"results.csv: {text}; seeds {', '.join(sorted({r['seed'] for r in e.results}))}", "result"
    )


def training(e: Evidence) -> Answer:
    if e.recipe is None or not e.results:
        return _missing("config.yaml or results.csv")
    t = e.recipe.training
    text = f"config.yaml: {', '.join(t.optimizers)}, up to {t.epochs} epochs, batch {t.batch_size}, all settings"
    if e.histories < len(e.results):
        return Answer("partly", f"{text}; the curves of {e.histories} of {len(e.results)} runs are there", "training")
    return Answer("in this run", f"{text}; curves of all {_count(e.histories, 'run')}", "training")


def selection(e: Evidence) -> Answer:
    if not e.configurations:
        return _missing("metrics.json")
    looks = max((int(r["here"]) + int(r["before"]) for r in e.looks), default=None)
    seen = "looks.json is missing" if looks is None else f"{_count(looks, 'look')} at a test set on this machine"
    if len(e.configurations) == 1:
        return Answer("in this run", f"one configuration, epoch by validation images; {seen}", "result")
    nested = " and, in each fold, nested" if e.metrics.get("nested_choice") else ""
    return Answer("in this run", f"of {len(e.configurations)} by validation accuracy{nested}; {seen}", "result")


def ensembling(e: Evidence) -> Answer:
    if e.recipe is None:
        return _missing("config.yaml")
    averaged = [x["about"]["model"] for x in e.external if len(x["about"]["runs"]) > 1]
    parts = ["each figure of the report is of single networks"]
    if e.recipe.inference.flips:
        parts.append("mean over an image and its mirror image")
    if e.recipe.training.averaging != "none":
        parts.append(f"weights averaged in training ({e.recipe.training.averaging})")
    if averaged:
        parts.append(f"on other data: {', '.join(dict.fromkeys(averaged))}")
    return Answer("in this run" if len(parts) > 1 else "not applicable", "; ".join(parts), "settings")


def metrics(e: Evidence) -> Answer:
    best = _best(e)
    if best is None:
        return _missing("metrics.json")
    return Answer("in this run", f"metrics.json: {_count(len(best['metrics']), 'figure')}, each explained", "result")


def metrics_with_calibration(e: Evidence) -> Answer:
    best = _best(e)
    if best is None:
        return _missing("metrics.json")
    parts = [p for p in ("calibration", "decisions") if not best.get(p)]
    if parts:
        text = f"metrics.json: {len(best['metrics'])} figures of discrimination and error; no {' or '.join(parts)}"
        return Answer("partly", text, "result")
    return Answer("in this run", "metrics.json: discrimination, calibration and net benefit", "result")


def uncertainty(e: Evidence) -> Answer:
    best = _best(e)
    if best is None:
        return _missing("metrics.json")
    accuracy = best["accuracy"]
    if accuracy["low"] is None:
        return Answer("not done", "metrics.json: the figures have no interval", "result")
    text = f"95 % intervals ({accuracy['method']}, {accuracy['resamples']} resamples of {accuracy['groups']} groups)"
    pairs = (e.metrics.get("comparisons") or {}).get("pairs", ())
    tests = f"; {_count(len(pairs), 'pair')} compared with Holm's correction" if pairs else ""
    return Answer("in this run", f"metrics.json: {text}{tests}", "do-the-configurations-differ" if pairs else "result")


def robustness(e: Evidence) -> Answer:
    done = [e.inspections[k] for k in ("stress", "shortcuts") if k in e.inspections]
    if not done:
        return Answer("not done", "sonobreast stress RUN --data DIR --out OUT/stress would")
    return Answer("in this run", ", ".join(f"{f.parent.name}/{f.name}" for f in done))


def explanation(e: Evidence) -> Answer:
    if "explain" in e.inspections:
        return Answer("in this run", f"{e.inspections['explain'].parent.name}/explain.json")
    if any(c.get("segmentation") for c in e.configurations):
        return Answer("partly", "predicted outlines and whether they agree with the class; no maps", "segmentation")
    return Answer("not done", "sonobreast explain RUN --data DIR --out OUT/explain would")


def internal_test(e: Evidence) -> Answer:
    best = _best(e)
    if best is None or not e.predictions:
        return _missing("metrics.json or predictions.csv")
    title = configuration_title(best["architecture"], best["optimizer"])
    return Answer("in this run", f"{best['n']} test images: {title}, accuracy {_percent(best['accuracy'])}", "result")


def external_test(e: Evidence) -> Answer:
    if not e.external:
        return Answer("not done", "no evaluation of these runs on other data lies in or beside the folder")
    told = [
        f"{x['about']['name']}, {x['about']['images']} images: AUC {_ratio(x['external']['decision']['auc_malignant'])}"
        for x in e.external
    ]
    return Answer("in this run", "; ".join(dict.fromkeys(told)))


def _ratio(figure: Mapping[str, Any]) -> str:
    if figure["estimate"] is None:
        return "not defined"
    return f"{figure['estimate']:.2f}" + (
        "" if figure["low"] is None else f" ({figure['low']:.2f} to {figure['high']:.2f})"
    )


def flow(e: Evidence) -> Answer:
    if not e.manifest or not e.split:
        return _missing("manifest.csv or split.csv")
    used = len({r["image"] for r in e.split})
    out = 0 if e.exclusions is None else len(e.exclusions)
    classes = ", ".join(f"{n} {c}" for c, n in Counter(r["label"] for r in _first_fold(e)).items())
    patients = len({r.get("patient", "") for r in e.manifest} - {""})
    text = f"{used} images used ({classes}), {out} left out by a list"
    if patients or e.simulated:
        return Answer("in this run", f"{text}; {patients} patients named" if patients else text, "data")
    return Answer("partly", f"{text}; the number of patients is not known", "data")


def _first_fold(e: Evidence) -> list[Mapping[str, str]]:
    return [r for r in e.split if (r["repeat"], r["fold"]) == ("0", "0")]


def counts(e: Evidence) -> Answer:
    if not e.split:
        return _missing("split.csv")
    found = Counter((r["subset"], r["label"]) for r in _first_fold(e))
    text = "; ".join(
        f"{s}: " + ", ".join(f"{n} {label}" for (side, label), n in sorted(found.items()) if side == s) for s in SUBSETS
    )
    return Answer("in this run", f"split.csv, first fold: {text}", "data")


def characteristics(e: Evidence) -> Answer:
    if not e.manifest or not e.split:
        return _missing("manifest.csv or split.csv")
    if e.simulated:
        return Answer("not applicable", "simulated images, no patients", "data")
    told, lacking = _known(e)
    if not told:
        return Answer("not done", f"manifest.csv knows no {', '.join(lacking)}; classes of each subset only", "data")
    text = f"manifest.csv: {'; '.join(told)}; not known: {', '.join(lacking) or 'nothing of these'}; not by partition"
    return Answer("partly", text, "subgroups" if e.subgroups else "data")


def performance(e: Evidence) -> Answer:
    found = uncertainty(e)
    best = _best(e)
    if best is None or found.status == "not done":
        return found
    return Answer("in this run", f"accuracy {_percent(best['accuracy'])}; all figures with intervals", "result")


def performance_of_subgroups(e: Evidence) -> Answer:
    found = performance(e)
    if found.status != "in this run":
        return found
    if not e.subgroups:
        return Answer("partly", f"{found.where}; nothing is known that would tell images apart", "result")
    by = ", ".join(dict.fromkeys(str(r["title"]) for r in e.subgroups))
    return Answer("in this run", f"{found.where}; by {by}", "subgroups")


def diagnostic_accuracy(e: Evidence) -> Answer:
    best = _best(e)
    if best is None:
        return _missing("metrics.json")
    if "sensitivity_malignant" not in best["metrics"]:
        return Answer("not applicable", "no class is malignant: accuracy by class stands there", "per-class")
    sides = (_percent(best["metrics"][f"{m}_malignant"]) for m in ("sensitivity", "specificity"))
    return Answer("in this run", "sensitivity {}, specificity {}".format(*sides), "result")


def failure_analysis(e: Evidence) -> Answer:
    if not e.predictions or not e.configurations:
        return _missing("predictions.csv or metrics.json")
    if not e.failures:
        return Answer("not applicable", "no test image of the chosen configuration was called wrong", "where-it-fails")
    text = f"{_count(e.failures, 'confident error')} listed, {e.pictures} with a picture"
    return Answer("partly", f"{text}; why they are wrong is for the authors", "where-it-fails")


def limitations(e: Evidence) -> Answer:
    if not (e.out / "model_card.md").is_file():
        return _missing("model_card.md")
    return Answer("partly", "model_card.md lists those that the files show; others are for the authors")


def protocol(e: Evidence) -> Answer:
    if e.recipe is None:
        return _missing("config.yaml")
    return Answer("partly", "config.yaml has every setting; a protocol written beforehand: for the authors", "settings")


def code_sharing(e: Evidence) -> Answer:
    if not e.environment.get("sonobreast"):
        return _missing("environment.json")
    git = e.environment.get("git")
    state = f", commit {git['commit'][:12]}{' with changes' if git['changed'] else ''}" if git else ""
    return Answer("in this run", f"sonobreast {e.environment['sonobreast']}{state}, Apache-2.0", "environment")


def data_sharing(e: Evidence) -> Answer:
    if e.simulated:
        return Answer("in this run", "simulated: sonobreast data phantom makes them again", "data")
    if not e.data_sets:
        return Answer("for the authors", "the images are from no public data set of the catalogue")
    return Answer("partly", "; ".join(f"{d.page} ({d.licence})" for d in e.data_sets) + "; own data: for the authors")


def availability(e: Evidence) -> Answer:
    code = code_sharing(e)
    if code.status != "in this run":
        return code
    text = f"{code.where}; data: {data_sharing(e).where}; whether the model is shared: for the authors"
    return Answer("partly", text, "environment")


def predictors(e: Evidence) -> Answer:
    if e.recipe is None:
        return _missing("config.yaml")
    return Answer("in this run", "the pixels of one image; no clinical data", "settings")


def subjective_predictors(e: Evidence) -> Answer:
    if not e.results:
        return _missing("results.csv")
    drawn = sorted({r["architecture"] for r in e.results if "radiologist's mask" in r["coverage"]})
    if drawn:
        return Answer(
            "for the authors", f"{', '.join(drawn)} reads the radiologist's outline: say who drew it", "result"
        )
    return Answer("not applicable", "pixels need no reader", "settings")


def clusters(e: Evidence) -> Answer:
    rows = [r for r in e.subgroups if r["by"] in ("site", "device")]
    if rows:
        return Answer("in this run", f"by {', '.join(dict.fromkeys(str(r['title']) for r in rows))}", "subgroups")
    if e.external:
        return Answer("partly", f"on {_outside(e)}, beside the internal figures")
    return Answer("not done", "one source, and neither site nor device is known")


def updating(e: Evidence) -> Answer:
    mended = [x for x in e.external if len(x.get("recalibration", ())) > 1]
    if mended:
        names = ", ".join(dict.fromkeys(x["about"]["name"] for x in mended))
        return Answer("in this run", f"recalibration on local cases of {names}: what it would mend")
    return Answer("not done", "the model is as it was trained; no local cases to recalibrate on")


def output(e: Evidence) -> Answer:
    if not e.predictions or not e.configurations:
        return _missing("predictions.csv or metrics.json")
    classes = ", ".join(e.configurations[0]["classes"])
    text = f"predictions.csv: probabilities of {classes}; the largest decides"
    if e.configurations[0].get("decisions"):
        text += ", or a threshold chosen on validation images"
    return Answer("in this run", text, "result")


def imbalance(e: Evidence) -> Answer:
    if e.recipe is None:
        return _missing("config.yaml")
    if e.recipe.training.class_weights == "balanced":
        text = "loss weighted by class, divisions stratified; it draws probabilities towards equally frequent classes"
        return Answer("in this run", text, "settings")
    return Answer("not done", "classes weigh as they come; divisions are stratified", "settings")


def fairness(e: Evidence) -> Answer:
    if e.simulated:
        return Answer("not applicable", "simulated images, no people")
    by = [r for r in e.subgroups if r["by"] in ("age", "site", "device")]
    _, lacking = _known(e)
    unknown = [x for x in lacking if x in ("age", "sex", "ethnicity", "breast density")]
    if by:
        names = ", ".join(dict.fromkeys(str(r["title"]) for r in by))
        return Answer("partly", f"figures by {names}; not known: {', '.join(unknown) or 'none'}", "subgroups")
    return Answer("not done", f"manifest.csv knows no {', '.join(unknown) or 'group of people'} to compare")


def shift(e: Evidence) -> Answer:
    if e.external:
        return Answer(
            "partly", f"classes and figures of {_outside(e)} beside the study's own; the rest: for the authors"
        )
    if not e.split:
        return _missing("split.csv")
    return Answer("partly", "test images are of the same source, stratified: classes agree by design", "data")


def poor_input(e: Evidence) -> Answer:
    if "domain" in e.inspections:
        f = e.inspections["domain"]
        return Answer("in this run", f"images outside the training domain are told: {f.parent.name}/{f.name}")
    return Answer("not done", "nothing refuses a bad scan; sonobreast domain RUN --data DIR --out OUT/domain would")


RULES: dict[str, Rule] = {
    r.__name__: r
    for r in (
        *(technique, goal, data_sources, setting, eligibility, preprocessing, preparation, selected_part),
        *(deidentification, missing_data, acquisition, reference, test_annotation, rater_variability, partitions),
        *(disjoint, sample_size, model, specification, building, software, initial_weights, training, selection),
        *(ensembling, metrics, metrics_with_calibration, uncertainty, robustness, explanation, internal_test),
        *(external_test, flow, counts, characteristics, performance, performance_of_subgroups, diagnostic_accuracy),
        *(failure_analysis, limitations, protocol, code_sharing, data_sharing, availability, predictors),
        *(subjective_predictors, clusters, updating, output, imbalance, fairness, shift, poor_input),
    )
}
