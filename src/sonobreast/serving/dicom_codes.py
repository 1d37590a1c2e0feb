"""What report and segmentation share: codes of concepts, series numbers, and who computed it.

SNOMED CT and DICOM where they have the meaning, the private scheme ``99SONOBREAST`` where not (what a classifier says
of a picture is no diagnosis, so no code of a diagnosis is used for it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_SERIES = {"report": 9701, "segmentation": 9702, "image": 9703}
SCHEME = "99SONOBREAST"


@dataclass(frozen=True)
class Algorithm:
    """What computed the finding: goes into every output.

    Attributes
    ----------
    name, version : str
        Such as "joint:MobileNetV2" and the bundle's version.
    parameters : tuple of str
        Such as "calibration: temperature 1.3".
    """

    name: str
    version: str
    parameters: tuple[str, ...] = ()


def concept(value: str, scheme: str, meaning: str) -> Any:
    """A coded concept."""
    import highdicom as hd

    return hd.sr.CodedConcept(value=value, scheme_designator=scheme, meaning=meaning)


def private(value: str, meaning: str) -> Any:
    """A concept that no public scheme has."""
    return concept(value, SCHEME, meaning)


def series_number(kind: str) -> int:
    """High numbers, which scanners do not use: a viewer lists them last."""
    return _SERIES[kind]
