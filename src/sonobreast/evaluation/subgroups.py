"""For whom a model holds: the figures of parts of the test images, by what is known of each image.

Shared by a study's own report and by the evaluation on another hospital's images.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from sonobreast.errors import SonobreastError
from sonobreast.evaluation.glossary import metric_names
from sonobreast.evaluation.intervals import Interval, bootstrap
from sonobreast.evaluation.predictions import scored_table, whole_tables
from sonobreast.evaluation.segmentation_summary import read_segmentation
from sonobreast.records import read_json, read_table, write_table

# What images are told apart by -> its title. Other hospitals' layouts name the columns so (Case.extra).
SUBGROUPS = {
    "site": "site",
    "device": "device",
    "birads": "BI-RADS",
    "histology": "histology",
    "age": "age",
    "size": "lesion size",
    "picture": "image size",
    "marks": "burned-in text and marks",
}
METRICS = ("auc_malignant", "sensitivity_malignant", "specificity_malignant", "accuracy")
LESION_COLUMNS = ("image", "truth", "true_area_px")
NO_LESION, NOT_KNOWN = "no lesion", "not known"
FEW = 10
"""Of fewer images of a side (malignant, or the others) a row says so."""
_MOST_VALUES = 8  # of more, the rare ones are put together
_SIZES_MM = (("below 10 mm", 0.0, 10.0), ("10 to 20 mm", 10.0, 20.0), ("20 mm or more", 20.0, math.inf))
_SIZES_SHARE = (
    ("below 2 % of the image", 0.0, 0.02),
    ("2 to 8 % of the image", 0.02, 0.08),
    ("8 % of the image or more", 0.08, math.inf),
)
_AGES = (("below 40", 0.0, 40.0), ("40 to 49", 40.0, 50.0), ("50 to 69", 50.0, 70.0), ("70 or more", 70.0, math.inf))
_PICTURES = (
    ("longer side below 500 px", 0.0, 500.0),
    ("longer side 500 to 799 px", 500.0, 800.0),
    ("longer side 800 px or more", 800.0, math.inf),
)
_ORDER = [n for bins in (_SIZES_MM, _SIZES_SHARE, _AGES, _PICTURES) for n, *_ in bins]
_COLUMNS = {
    "site": ("site", "hospital", "center", "centre"),
    "device": ("device", "scanner", "manufacturer", "machine", "us_machine"),
    "birads": ("birads", "bi-rads", "bi_rads"),
    "histology": ("histology", "pathology"),
    "age": ("age", "patient_age"),
}
_MARKS = ("burned-in-text", "burned-in-marks")  # codes of an audit's findings
Figures = Callable[[npt.NDArray[np.bool_]], Mapping[str, Interval]]


def lesion_sizes(table: pd.DataFrame) -> pd.Series[str]:
    """The size class of each image's lesion, by its mask: equivalent diameter, or share of the image; "" where unknown.

    The equivalent diameter is that of a circle of the same area, ``2 sqrt(area / pi)``. Millimetres are used if the
    spacing of every image with a mask is known, so that one table has one unit.
    """
    area = pd.to_numeric(table["lesion_px"], errors="coerce").to_numpy(float)
    spacing = pd.to_numeric(table["spacing_mm"], errors="coerce").to_numpy(float)
    some = np.isfinite(area) & (area > 0)
    if some.any() and np.isfinite(spacing[some]).all():
        value, bins = 2.0 * np.sqrt(area / np.pi) * spacing, _SIZES_MM
    else:
        value, bins = area / pd.to_numeric(table["image_px"], errors="coerce").to_numpy(float), _SIZES_SHARE
    return _binned(np.where(some, value, np.nan), bins, table.index)


def _binned(value: npt.NDArray[Any], bins: Sequence[tuple[str, float, float]], index: pd.Index[Any]) -> pd.Series[str]:
    names = np.full(len(value), "", dtype=object)
    for name, low, high in bins:
        names[(value >= low) & (value < high)] = name
    return pd.Series(names, index=index)


def rows(table: pd.DataFrame, figures: Figures) -> Iterator[dict[str, Any]]:
    """The figures of each part of the images, attribute by attribute.

    An attribute that is the same for all images makes no parts and is left out, a known site excepted. Values that are
    rare, where there are many, are put together.

    Parameters
    ----------
    table : DataFrame
        One row an image: ``label`` and what is known of it, any of the keys of ``SUBGROUPS``, as text, "" where not
        known; or ``lesion_px, spacing_mm, image_px`` in place of ``size``.
    figures : callable
        From the rows of a part, bool (n,), to its figures by name.

    Yields
    ------
    dict
        ``by, title, value, images, malignant, few`` and the figures. ``few``: fewer than 10 images on one side.
    """
    if "lesion_px" in table:
        size = lesion_sizes(table)
        none = pd.to_numeric(table["lesion_px"], errors="coerce").to_numpy(float) == 0
        table = table.assign(size=size.mask(none & (size == "").to_numpy() & bool((size != "").any()), NO_LESION))
    malignant = (table["label"] == "malignant").to_numpy()
    for column, title in SUBGROUPS.items():
        if column not in table:
            continue
        value = table[column].fillna("").astype(str).str.strip()
        if value.nunique() < 2 and (column != "site" or not value.iloc[0]):
            continue
        value = _few_together(value)
        for name in sorted(set(value), key=_place):
            part = (value == name).to_numpy()
            cancers = int((part & malignant).sum())
            yield {
                "by": column,
                "title": title,
                "value": name or NOT_KNOWN,
                "images": int(part.sum()),
                "malignant": cancers,
                "few": min(cancers, int(part.sum()) - cancers) < FEW,
                **{m: i.as_dict() for m, i in figures(part).items()},
            }


def _few_together(value: pd.Series[str]) -> pd.Series[str]:
    count = Counter(v for v in value if v)
    if len(count) <= _MOST_VALUES:
        return value
    kept = {v for v, _ in count.most_common(_MOST_VALUES - 1)}
    others = f"{len(count) - len(kept)} others"
    return value.map(lambda v: v if not v or v in kept else others)


def _place(name: str) -> tuple[Any, ...]:
    """Size and age classes in their order, then names with numbers read as numbers; "no lesion", "" last."""
    parts = [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in re.split(r"(\d+)", name) if p]
    last = 2 if name == "" else 1 if name == NO_LESION or re.fullmatch(r"\d+ others", name) else 0
    return (last, _ORDER.index(name) if name in _ORDER else 0, parts)


def study_subgroups(out: Path, table: pd.DataFrame, *, resamples: int = 2000) -> list[dict[str, Any]]:
    """Figures of parts of a study's test images, as the model decides.

    Parameters
    ----------
    out : Path
        Folder of the study: ``manifest.csv`` says what is known of each image, ``segmentation.csv`` or ``lesions.csv``
        how large its lesion is; an audit of the same images, in or beside the folder, what is burned in.
    table : DataFrame
        Rows of one configuration of its ``predictions.csv``.
    resamples : int

    Returns
    -------
    list of dict
        See `rows`; the figures are those of ``METRICS`` that the classes have. Repeats and seeds are averaged, as
        everywhere in the report; intervals resample groups. Empty where nothing tells images apart.

    Raises
    ------
    SonobreastError
        If a table is damaged, or no repeat is whole.
    """
    whole, _ = whole_tables(table)
    parts = list(whole.values())
    names = [m for m in METRICS if m in metric_names(scored_table(parts[0]).classes)]
    group = parts[0]["group"].to_numpy()
    about = attributes(out, parts[0]["image"].tolist()).assign(label=parts[0]["label"].to_numpy())

    def figures(part: npt.NDArray[np.bool_]) -> Mapping[str, Interval]:
        repeats = [scored_table(p[part]) for p in parts]
        return bootstrap(repeats, group[part], metrics=names, resamples=resamples, method="bca")

    return list(rows(about, figures))


def write(path: Path, found: Sequence[Mapping[str, Any]]) -> None:
    """Write ``subgroups.csv``: one row a part, each figure with the ends of its 95 % interval, empty where not defined.

    Raises
    ------
    SonobreastError
        If the file cannot be written.
    """
    names = [m for m in METRICS if found and m in found[0]]
    ends = [(m, end) for m in names for end in ("estimate", "low", "high")]
    columns = ("by", "value", "images", "malignant", *(m if e == "estimate" else f"{m}_{e}" for m, e in ends))
    lines = [[r["by"], r["value"], r["images"], r["malignant"], *(r[m][e] for m, e in ends)] for r in found]
    write_table(path, columns, [dict(zip(columns, line, strict=True)) for line in lines])


def attributes(out: Path, images: Sequence[str]) -> pd.DataFrame:
    """What is known of a study's images, one row each, in the order given: the columns that `rows` takes.

    Raises
    ------
    SonobreastError
        If ``manifest.csv`` is missing or damaged.
    """
    manifest = {r["image"]: r for r in read_table(out / "manifest.csv", ("image", "width", "height", "source"))}
    mine = [manifest.get(i, {}) for i in images]
    header = {c.strip().casefold(): c for c in next(iter(manifest.values()), {})}
    found: dict[str, Any] = {}
    for name, columns in _COLUMNS.items():
        column = next((header[c] for c in columns if c in header), None)
        if column is not None:
            found[name] = [r.get(column, "") for r in mine]
    if len({r.get("source", "") for r in mine}) > 1:
        found.setdefault("site", [r.get("source", "") for r in mine])
    table = pd.DataFrame(found, index=range(len(images)))
    if "age" in table:
        age = pd.to_numeric(table["age"], errors="coerce").to_numpy(float)
        table["age"] = _binned(age, _AGES, table.index)
    width, height = (np.array([float(r.get(k) or "nan") for r in mine]) for k in ("width", "height"))
    table["picture"] = _binned(np.maximum(width, height), _PICTURES, table.index)
    area = lesion_areas(out)
    if area:
        table["lesion_px"] = [area.get(i, math.nan) for i in images]
        table["spacing_mm"] = [r.get("spacing_mm", "") for r in mine]
        table["image_px"] = width * height
    marked = _marked(out, {i: manifest[i].get("sha256", "") for i in images if i in manifest})
    if marked is not None:
        table["marks"] = ["found" if i in marked else "none found" for i in images]
    return table


def lesion_areas(out: Path) -> dict[str, float]:
    """Pixels of each image's true lesion: 0 where it is known to have none, NaN where nobody outlined it.

    From ``segmentation.csv`` where networks segment, else from ``lesions.csv``; empty where neither is there.
    """
    if (out / "segmentation.csv").is_file():
        table = read_segmentation(out / "segmentation.csv").drop_duplicates("image")
        pairs = table[["image", "true_area_px"]].itertuples(index=False, name=None)
        return {str(image): float(area) for image, area in pairs}
    if (out / "lesions.csv").is_file():
        lines = read_table(out / "lesions.csv", LESION_COLUMNS)
        return {r["image"]: float(r["true_area_px"]) if r["true_area_px"] else math.nan for r in lines}
    return {}


def find_audit(out: Path, digests: Mapping[str, str]) -> Path | None:
    """``audit.json`` of an audit that saw all of these images, in the study's folder or one beside it; None without.

    Parameters
    ----------
    out : Path
        Folder of the study.
    digests : mapping of str to str
        Image -> SHA-256 of its file; at least one.
    """
    for file in (out / "audit.json", *sorted(out.glob("*/audit.json")), *sorted(out.parent.glob("*/audit.json"))):
        try:
            seen = {r["image"]: r["sha256"] for r in read_table(file.with_name("manifest.csv"), ("image", "sha256"))}
            findings = read_json(file)["findings"]
        except (SonobreastError, KeyError):
            continue  # a damaged audit is no part of this study
        if digests and isinstance(findings, list) and all(seen.get(i) == d for i, d in digests.items()):
            return file
    return None


def _marked(out: Path, digests: Mapping[str, str]) -> set[str] | None:
    """Images with burned-in text or marks, from an audit that saw all of these images; None where there is none."""
    file = find_audit(out, digests)
    if file is None:
        return None
    findings = read_json(file)["findings"]
    return {str(files[0]) for f in findings if f.get("code") in _MARKS for files in f.get("files", ()) if files}
