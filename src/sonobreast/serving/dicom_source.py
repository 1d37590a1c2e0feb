"""What the outputs copy from the source file: patient, study and the reference to it, brought into a valid form.

Patient data go from file to file here and nowhere else.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, BinaryIO

from sonobreast.data.dicom import guarded
from sonobreast.data.dicom_header import read_head, refuse

_TEXTS = {"PatientID": 64, "StudyID": 16, "AccessionNumber": 16, "PatientName": 324, "ReferringPhysicianName": 324}
_FORMS = {
    "PatientBirthDate": r"\d{8}",
    "StudyDate": r"\d{8}",
    "StudyTime": r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?",
    "PatientSex": r"[MFO]",
}
_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_FURTHER = (
    *("SpecificCharacterSet", "ImageLaterality", "Laterality", "Rows", "Columns", "NumberOfFrames"),
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
        If a UID is missing: outputs could not refer to the image.
    """
    return guarded(source, _copy)


def _copy(stream: BinaryIO) -> Any:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

    syntax, there, _ = read_head(stream, (*_UIDS, *_TEXTS, *_FORMS, *_FURTHER))
    missing = [k for k in _UIDS if not there.get(k) or not UID(str(there[k].value)).is_valid]
    if missing:
        raise refuse(
            f"{', '.join(missing)} is missing or not valid: outputs cannot refer to the image",
            "export the image from the PACS again",
        )
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    for keyword in _UIDS:
        setattr(ds, keyword, str(there[keyword].value))
    for keyword, longest in _TEXTS.items():
        text = str(there.get(keyword) or "").strip()
        setattr(ds, keyword, text if len(text) <= longest and text.isprintable() and "\\" not in text else "")
    for keyword, form in _FORMS.items():
        text = str(there.get(keyword) or "").strip()
        setattr(ds, keyword, text if re.fullmatch(form, text) else "")
    side = str(there.get("ImageLaterality") or there.get("Laterality") or "").strip()
    ds.Laterality = side if side in ("L", "R") else ""
    ds.Rows, ds.Columns = int(there.Rows), int(there.Columns)
    ds.PatientOrientation = ""  # not known in free-hand ultrasound
    if int(there.get("NumberOfFrames") or 1) > 1:
        ds.NumberOfFrames = int(there.NumberOfFrames)
    _copy_compression(there, syntax, ds)
    return ds


def _copy_compression(there: Any, syntax: str, ds: Any) -> None:
    """Whether pixels were ever compressed with loss: once 01, always 01 (PS3.3 C.7.6.1.1.5)."""
    lossy = syntax in _METHODS or str(there.get("LossyImageCompression") or "") == "01"
    ds.LossyImageCompression = "01" if lossy else "00"
    ratio, method = there.get("LossyImageCompressionRatio"), there.get("LossyImageCompressionMethod")
    if lossy and ratio:
        ds.LossyImageCompressionRatio = ratio
    if lossy and (method or syntax in _METHODS):
        ds.LossyImageCompressionMethod = method or _METHODS[syntax]
