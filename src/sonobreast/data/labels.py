"""An institution's own labels, and the table by which a person says which class each of them is. None is guessed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from sonobreast.data.clinical_table import read_csv
from sonobreast.data.manifest import Manifest
from sonobreast.errors import SonobreastError, nearest
from sonobreast.records import LESION_CLASSES, Case

GIVEN = "given_label"
"""Key in `Case.extra` under which a mapped case keeps the label that it came with."""


def _key(label: str) -> str:
    """Labels that differ in case and spaces only are one label."""
    return " ".join(label.split()).casefold()


def unknown_labels(cases: Sequence[Case], classes: Sequence[str] = LESION_CLASSES) -> dict[str, int]:
    """Labels that are none of the classes, with their numbers of images, the most frequent first."""
    found = Counter(c.label for c in cases if c.label not in classes)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def read_mapping(path: Path, classes: Sequence[str] = LESION_CLASSES) -> dict[str, str]:
    """Read which class each label is.

    Parameters
    ----------
    path : Path
        A CSV (commas, semicolons or tabs) with the columns ``label`` and ``class``, or a YAML file of
        ``label: class``.
    classes : sequence of str
        The classes there are.

    Returns
    -------
    dict
        Label -> class, with the labels as they are written there.

    Raises
    ------
    SonobreastError
        If the file cannot be read, a line is incomplete, a class is none of those there are, or a label has two.
    """
    yaml_file = path.suffix.lower() in (".yaml", ".yml")
    pairs = _yaml_pairs(path) if yaml_file else _csv_pairs(path)
    mapping: dict[str, str] = {}
    seen: dict[str, str] = {}
    for place, label, class_ in pairs:
        if not label or not class_:
            raise SonobreastError(
                f"{place} has no {'class' if label else 'label'}{f' for {label!r}' if label else ''}",
                file=path,
                remedy=f"write one of {', '.join(classes)} beside each label; images of a label that is none of them "
                "are left out with --exclude",
            )
        known = {c.casefold(): c for c in classes}.get(class_.casefold())
        if known is None:
            raise SonobreastError(
                f"{place} maps {label!r} to the unknown class {class_!r}; {nearest(class_, classes)}",
                file=path,
                remedy=f"the classes are {', '.join(classes)}",
            )
        if seen.setdefault(_key(label), known) != known:
            raise SonobreastError(
                f"{place} maps {label!r} to {known}, an earlier line to {seen[_key(label)]}",
                file=path,
                remedy="keep one line for each label",
            )
        mapping[label] = known
    if not mapping:
        raise SonobreastError("the file maps no label", file=path, remedy="write lines of label,class")
    return mapping


def _csv_pairs(path: Path) -> list[tuple[str, str, str]]:
    lines = read_csv(path, ("label", "class")).lines
    pairs = [(f"line {line.number}", line.cells["label"], line.cells["class"]) for line in lines]
    return [p for p in pairs if p[1] or p[2]]


def _yaml_pairs(path: Path) -> list[tuple[str, str, str]]:
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SonobreastError("a file is missing", file=path, remedy="check the path") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).replace("\n", " ")
        raise SonobreastError(
            f"not a readable YAML file ({reason})", file=path, remedy="write lines of `label: class`"
        ) from error
    if not isinstance(content, dict):
        raise SonobreastError("not a list of `label: class`", file=path, remedy="write lines of `label: class`")
    for value in (*content, *content.values()):
        if isinstance(value, bool) or not isinstance(value, str | int | None):
            raise SonobreastError(
                f"YAML reads {value!r} as {type(value).__name__}, not as a label",
                file=path,
                remedy="put labels such as yes, no, on and 1.0 between quotes",
            )
    return [(f"entry {i}", _string(k), _string(v)) for i, (k, v) in enumerate(content.items(), start=1)]


def _string(value: str | int | None) -> str:
    return "" if value is None else str(value).strip()


def map_labels(
    cases: Sequence[Case],
    mapping: Mapping[str, str],
    *,
    classes: Sequence[str] = LESION_CLASSES,
    origin: Path | None = None,
) -> tuple[Case, ...]:
    """Give each case the class that the mapping has for its label.

    A label that is one of the classes stays what it is unless the mapping names it. Upper and lower case and spaces
    do not matter.

    Parameters
    ----------
    cases : sequence of Case
    mapping : dict
        Label -> class.
    classes : sequence of str
        The classes there are.
    origin : Path or None
        The file that the mapping comes from, for messages.

    Returns
    -------
    tuple of Case
        All cases, in their order; ``extra["given_label"]`` keeps the label that a case came with. Where no label
        changes, the cases are what they were.

    Raises
    ------
    SonobreastError
        If the mapping leads to a class that does not exist, or a label is neither a class nor in the mapping.
    """
    for label, class_ in mapping.items():
        if class_ not in classes:
            raise SonobreastError(
                f"{label!r} is mapped to the unknown class {class_!r}; {nearest(class_, classes)}",
                file=origin,
                remedy=f"the classes are {', '.join(classes)}",
            )
    class_of = {_key(c): c for c in classes} | {_key(label): class_ for label, class_ in mapping.items()}
    missing = Counter(c.label for c in cases if _key(c.label) not in class_of)
    if missing:
        named = ", ".join(f"{label!r} ({n})" for label, n in list(missing.items())[:10])
        first = next(iter(missing))
        hint = f"; {nearest(first, mapping)}" if len(missing) == 1 and mapping else ""
        raise SonobreastError(
            f"the mapping says nothing of {len(missing)} label(s) of {sum(missing.values())} image(s): {named}{hint}",
            file=origin,
            remedy=f"add a line for each (label,class; the classes are {', '.join(classes)}), or leave these images "
            "out with --exclude",
        )
    if all(class_of[_key(c.label)] == c.label for c in cases):
        return tuple(cases)
    return tuple(
        c.model_copy(update={"label": class_of[_key(c.label)], "extra": {**c.extra, GIVEN: c.label}}) for c in cases
    )


def relabel(manifest: Manifest, mapping: Path, classes: Sequence[str] = LESION_CLASSES) -> Manifest:
    """A manifest with the classes of a mapping file.

    Raises
    ------
    SonobreastError
        As `read_mapping` and `map_labels`.
    """
    labels = map_labels(manifest.cases, read_mapping(mapping, classes), classes=classes, origin=mapping)
    return replace(manifest, cases=labels)


def advice(unknown: Mapping[str, int], classes: Sequence[str] = LESION_CLASSES) -> str:
    """What to say of labels that are none of the classes: which they are, and the file to write.

    Parameters
    ----------
    unknown : dict
        From `unknown_labels`.
    """
    named = ", ".join(f"{label!r} ({n})" for label, n in list(unknown.items())[:10])
    more = f" and {len(unknown) - 10} more" if len(unknown) > 10 else ""
    head = (
        f"{len(unknown)} label(s) are none of {', '.join(classes)}: {named}{more}. None is guessed: they are classes "
        "of their own here. Where they mean one of these classes, write which into labels.csv and give it with "
        "--labels labels.csv:"
    )
    return "\n".join((head, "  label,class", *(f"  {_quoted(label)}," for label in list(unknown)[:10])))


def _quoted(label: str) -> str:
    return '"' + label.replace('"', '""') + '"' if set(label) & set(',"\n') else label
