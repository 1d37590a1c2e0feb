"""What the outputs copy from the source file: patient, study and the reference to it, brought into a valid form.

Patient data go from file to file here and nowhere else.
"""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path
from typing import Any, BinaryIO

from sonobreast.data.dicom import guarded
from sonobreast.data.dicom_header import read_head, refuse

_TEXTS = {"PatientID": 64, "StudyID": 16, "AccessionNumber": 16}
_NAMES = ("PatientName", "ReferringPhysicianName")
_DATES = ("PatientBirthDate", "StudyDate")
_TIME = re.compile(r"([01][0-9]|2[0-3])([0-5][0-9]([0-5][0-9](\.[0-9]{1,6})?)?)?")
_CLASS = "1.2.840.10008.5.1.4.1.1."
_RETIRED = frozenset(_CLASS + n for n in ("6", "3"))
_MULTI_FRAME = frozenset(_CLASS + n for n in ("3.1", "7.2", "7.3", "7.4"))
_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_FURTHER = (
    *(
        "SpecificCharacterSet",
        "StudyTime",
        "PatientSex",
        "ImageLaterality",
        "Laterality",
        "Rows",
        "Columns",
        "NumberOfFrames",
    ),
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
)
_METHODS = {  # of the transfer syntaxes with loss
    "1.2.840.10008.1.2.4.50": "ISO_10918_1",
    "1.2.840.10008.1.2.4.51": "ISO_10918_1",
    "1.2.840.10008.1.2.4.81": "ISO_14495_1",
    "1.2.840.10008.1.2.4.91": "ISO_15444_1",
}


def read_source(source: Path | bytes) -> Any:
    """Patient, study, identity and size of a DICOM file as a dataset without pixels.

    Text is Unicode whatever the source's character set. A value that is not valid in its attribute is left empty, as
    the standard allows for all that may be empty here.

    Raises
    ------
    SonobreastError
        If a UID is missing, or the SOP class is one of the two retired ones: outputs could not refer to the image.
    """
    return guarded(source, _copy)


def _copy(stream: BinaryIO) -> Any:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

    syntax, there, _ = read_head(stream, (*_UIDS, *_TEXTS, *_NAMES, *_DATES, *_FURTHER))
    missing = [k for k in _UIDS if not there.get(k) or not UID(str(there[k].value)).is_valid]
    if missing:
        raise refuse(
            f"{', '.join(missing)} is missing or not valid: outputs cannot refer to the image",
            "export the image from the PACS again",
        )
    if str(there.SOPClassUID) in _RETIRED:
        raise refuse(
            "the SOP Class (0008,0016) is a retired one of ultrasound, to which highdicom's outputs cannot refer",
            "let the PACS convert it to Ultrasound Image or Multi-frame Image Storage",
        )
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    for keyword in _UIDS:
        setattr(ds, keyword, str(there[keyword].value))
    for keyword, longest in _TEXTS.items():
        text = str(there.get(keyword) or "").strip()
        setattr(ds, keyword, text if len(text) <= longest and text.isprintable() and "\\" not in text else "")
    for keyword in _NAMES:
        text = str(there.get(keyword) or "").strip()
        setattr(ds, keyword, text if _is_name(text) else "")
    for keyword in _DATES:
        text = str(there.get(keyword) or "").strip()
        setattr(ds, keyword, text if _is_date(text) else "")  # de-identified files have 00000000
    time, sex = (str(there.get(k) or "").strip() for k in ("StudyTime", "PatientSex"))
    ds.StudyTime = time if _TIME.fullmatch(time) else ""
    ds.PatientSex = sex if sex in ("M", "F", "O") else ""
    side = str(there.get("ImageLaterality") or there.get("Laterality") or "").strip()
    ds.Laterality = side if side in ("L", "R") else ""
    ds.Rows, ds.Columns = int(there.Rows), int(there.Columns)
    ds.PatientOrientation = ""  # not known in free-hand ultrasound
    frames = int(there.get("NumberOfFrames") or 1)
    if frames > 1 or ds.SOPClassUID in _MULTI_FRAME:  # a clip may have one frame
        ds.NumberOfFrames = frames
    _copy_compression(there, syntax, ds)
    return ds


def _is_name(text: str) -> bool:
    """Up to three spellings of up to five parts, of up to 64 characters each spelling (PS3.5 6.2, PN)."""
    spellings = text.split("=")
    fits = all(len(s) <= 64 and s.count("^") <= 4 for s in spellings)
    return fits and len(spellings) <= 3 and text.isprintable() and "\\" not in text


def _is_date(text: str) -> bool:
    try:
        return bool(re.fullmatch(r"[0-9]{8}", text)) and date.fromisoformat(text) is not None
    except ValueError:
        return False


def _copy_compression(there: Any, syntax: str, ds: Any) -> None:
    """Whether pixels were ever compressed with loss: once 01, always 01 (PS3.3 C.7.6.1.1.5)."""
    lossy = syntax in _METHODS or str(there.get("LossyImageCompression") or "") == "01"
    ds.LossyImageCompression = "01" if lossy else "00"
    ratio, method = there.get("LossyImageCompressionRatio"), there.get("LossyImageCompressionMethod")
    if lossy and ratio:
        ds.LossyImageCompressionRatio = ratio
    if lossy and (method or syntax in _METHODS):
        ds.LossyImageCompressionMethod = method or _METHODS[syntax]
