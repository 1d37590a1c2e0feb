"""Reporting checklists filled in from a study's files: CLAIM 2024 and TRIPOD+AI, never a blanket yes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import yaml

from sonobreast.evaluation.checklist_rules import RULES, Answer, Status
from sonobreast.evaluation.evidence import Evidence
from sonobreast.records import write_table

CHECKLISTS = ("claim2024", "tripod_ai")
COLUMNS = ("checklist", "item", "section", "asks", "status", "where", "anchor")
STATUSES: tuple[Status, ...] = get_args(Status)
_NO_PEOPLE = Answer("not applicable", "simulated images, no patients")


@dataclass(frozen=True)
class Item:
    """One item of a checklist and its answer.

    Attributes
    ----------
    item, section, asks : str
        Its number there, its part, and what it asks for in our own words.
    status : {"in this run", "partly", "not done", "not applicable", "for the authors"}
    where : str
        File, value, or what the authors have to write.
    anchor : str
        Section of the report, "" where none tells it.
    """

    item: str
    section: str
    asks: str
    status: Status
    where: str
    anchor: str


@dataclass(frozen=True)
class Checklist:
    """A checklist with the answers of one study, in its own order."""

    name: str
    citation: str
    items: tuple[Item, ...]

    @property
    def counts(self) -> dict[Status, int]:
        """Items of each status, in the order of ``STATUSES``."""
        found = Counter(i.status for i in self.items)
        return {s: found[s] for s in STATUSES if found[s]}


@cache
def _definition(key: str) -> Any:
    file = resources.files("sonobreast.evaluation") / f"{key}.yaml"
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def fill(evidence: Evidence) -> tuple[Checklist, ...]:
    """Both checklists, answered from what the study's files show."""
    filled = []
    for key in CHECKLISTS:
        content = _definition(key)
        items = []
        for entry in content["items"]:
            answer = _answer(entry, evidence)
            items.append(Item(entry["item"], entry["section"], entry["asks"], *answer))
        filled.append(Checklist(content["name"], content["citation"], tuple(items)))
    return tuple(filled)


def _answer(entry: dict[str, Any], evidence: Evidence) -> Answer:
    if entry.get("people") and evidence.simulated:
        return _NO_PEOPLE
    if "rule" in entry:
        return RULES[entry["rule"]](evidence)
    return Answer("for the authors", str(entry["authors"]))


def write(path: Path, checklists: Sequence[Checklist]) -> None:
    """Write ``checklist.csv``: one row an item.

    Raises
    ------
    SonobreastError
        If the file cannot be written.
    """
    write_table(path, COLUMNS, ({"checklist": c.name, **vars(i)} for c in checklists for i in c.items))
