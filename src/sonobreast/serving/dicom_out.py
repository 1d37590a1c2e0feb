"""DICOM out: a structured report (SR, TID 1500) and a segmentation (SEG) that belong to the source's study.

highdicom segments single-frame ultrasound only. Of a clip the frame that was looked at is therefore written as an image
of its own (derived, cut to the B-mode region, new series), the segmentation belongs to that image, and the report
refers to the frame of the clip. Patient data go from the source file into these files and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonobreast.data.atomic import cannot_write, write_whole
from sonobreast.data.dicom import OF_SPACING, DicomImage, read_dicom, require
from sonobreast.data.hush import hushed
from sonobreast.errors import SonobreastError
from sonobreast.serving.dicom_codes import Algorithm, concept, series_number
from sonobreast.serving.dicom_report import report
from sonobreast.serving.dicom_source import read_source
from sonobreast.serving.lesion import feret, largest, pieces

RESEARCH_USE = "Research use only. Not a medical device. Computed by software; not read or confirmed by a physician."


@dataclass(frozen=True, eq=False)
class Finding:
    """What was computed of one frame.

    Attributes
    ----------
    probabilities : mapping of str to float
        Class to probability, 0-1.
    mask : ndarray, bool, (h, w), or None
        The lesion on the picture that `sonobreast.data.dicom.read_dicom` gave (cut to the region).
    frame : int or None
        Which frame of a clip, from 1; None: the middle one.
    comments : tuple of str
        Sentences for the report: why the case is out of the model's range, for example.
    spacing_mm : float or None
        Of the pixels, where somebody gave it; None: what the file states.
    """

    probabilities: Mapping[str, float]
    mask: NDArray[np.bool_] | None = None
    frame: int | None = None
    comments: tuple[str, ...] = ()
    spacing_mm: float | None = None


@dataclass(frozen=True)
class Written:
    """The files on disk, and what a person has to know about them.

    Attributes
    ----------
    report : Path
    segmentation, image : Path or None
        None where there is no mask, or where the source needs no derived image.
    long_axis_mm : float or None
        None without mask or pixel spacing.
    notes : tuple of str
    """

    report: Path
    segmentation: Path | None
    image: Path | None
    long_axis_mm: float | None
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Made:
    """The files in memory, and what a person has to know about them.

    Attributes
    ----------
    files : dict of str to bytes
        ``report``; ``segmentation`` where there is a mask; ``image``, the frame of a clip that it belongs to.
    long_axis_mm : float or None
        None without mask or pixel spacing.
    notes : tuple of str
    """

    files: dict[str, bytes]
    long_axis_mm: float | None
    notes: tuple[str, ...]


def make_dicom(source: Path | bytes, finding: Finding, algorithm: Algorithm, *, region: str | int = "largest") -> Made:
    """Report and segmentation of one DICOM image, in memory.

    Parameters
    ----------
    source : Path or bytes
    finding : Finding
    algorithm : Algorithm
    region : {"largest"} or int
        As the picture was read.

    Raises
    ------
    SonobreastError
        If highdicom is not installed; if the source cannot be read or referred to; if the mask has another size than
        the picture or the probabilities are none.
    """
    require("highdicom")
    image = read_dicom(source, frames="middle" if finding.frame is None else (finding.frame,), region=region, key=b"-")
    _check(finding, image)
    return _guarded(lambda: _make(source, image, finding, algorithm), source if isinstance(source, Path) else None)


def write_dicom(
    source: Path | bytes,
    folder: Path,
    finding: Finding,
    algorithm: Algorithm,
    *,
    region: str | int = "largest",
    stem: str = "",
) -> Written:
    """Write report and segmentation of one DICOM image.

    Parameters
    ----------
    source, finding, algorithm, region
        As `make_dicom`.
    folder : Path
        Made if missing. Files: ``report.dcm``, ``segmentation.dcm`` and, for a clip, ``image.dcm``.
    stem : str
        Begins the files' names, where several images go into one folder.

    Raises
    ------
    SonobreastError
        As `make_dicom`; if a file is there already or cannot be written.
    """
    made = make_dicom(source, finding, algorithm, region=region)
    prefix = f"{stem}-" if stem else ""
    paths = {kind: folder / f"{prefix}{kind}.dcm" for kind in made.files}
    for path in paths.values():
        if path.exists():
            raise SonobreastError("the file is there already", file=path, remedy="give another folder, or remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for kind, path in paths.items():
            write_whole(path, made.files[kind])
    except OSError as problem:
        raise cannot_write(problem, folder) from problem
    return Written(paths["report"], paths.get("segmentation"), paths.get("image"), made.long_axis_mm, made.notes)


def _check(finding: Finding, image: DicomImage) -> None:
    values = list(finding.probabilities.values())
    if not values or not all(0.0 <= v <= 1.0 for v in values):
        raise SonobreastError("the probabilities of a finding are not numbers from 0 to 1", remedy="give one a class")
    shape = image.frames[0].shape[:2]
    if finding.mask is not None and finding.mask.shape != shape:
        raise SonobreastError(
            f"the mask is {finding.mask.shape[1]} x {finding.mask.shape[0]}, the picture {shape[1]} x {shape[0]}",
            remedy="bring the mask to the size of the picture that was read",
        )


def _guarded(make: Callable[[], Made], name: Path | None) -> Made:
    """highdicom's errors quote values of the file; what passes here does not, and no traceback leads to them."""
    try:
        with hushed():
            return make()
    except SonobreastError as error:
        what, remedy = error.what, error.remedy
    except Exception as error:
        what = f"report and segmentation cannot be made of this file ({type(error).__name__})"
        remedy = "check the file with dciodvfy (dicom3tools), and export it from the PACS again"
    raise SonobreastError(what, file=name, remedy=remedy)


def _make(source: Path | bytes, image: DicomImage, finding: Finding, algorithm: Algorithm) -> Made:
    origin = read_source(source)
    given = finding.spacing_mm
    notes = [n.text for n in image.notes if given is None or n.code not in OF_SPACING]
    mask = finding.mask if finding.mask is not None and finding.mask.any() else None
    files: dict[str, bytes] = {}
    base, derived, segmentation, length = origin, None, None, None
    if mask is not None:
        if "NumberOfFrames" in origin:
            base = derived = derived_image(origin, image)
            notes.append(
                "segmentations of clips are not written by highdicom: the frame was stored as an image of its own, "
                "and the segmentation belongs to that"
            )
            files["image"] = _bytes(derived)
        else:
            mask = on_screen(mask, image)
        segmentation = segment(base, mask, algorithm)
        files["segmentation"] = _bytes(segmentation)
        spacing = image.spacing_mm if given is None else (given, given)
        parts = pieces(mask)
        length = None if spacing is None else feret(largest(parts), spacing)
        if given is not None:
            notes.append(f"the long axis is by a pixel spacing of {given:g} mm that was given by hand, not by the file")
        if len(parts) > 1:
            notes.append(f"the segmentation has {len(parts)} parts; the long axis is that of the largest")
    comments = (RESEARCH_USE, *notes, *finding.comments)
    said = report(origin, derived, segmentation, image.numbers[0], finding.probabilities, length, algorithm, comments)
    files["report"] = _bytes(said)
    return Made(files, length, tuple(notes))


def on_screen(mask: NDArray[np.bool_], image: DicomImage) -> NDArray[np.bool_]:
    """A mask of the region put back on the whole screen, bool (rows, columns)."""
    if image.region is None:
        return mask
    left, top, right, bottom = image.region.box
    whole = np.zeros((image.rows, image.columns), bool)
    whole[top:bottom, left:right] = mask
    return whole


def _bytes(dataset: Any) -> bytes:
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def segment(base: Any, mask: NDArray[np.bool_], algorithm: Algorithm) -> Any:
    """A binary segmentation of a single-frame image, one segment.

    Parameters
    ----------
    base : pydicom Dataset
        The image, single-frame; pixels are not needed.
    mask : ndarray, bool, (base.Rows, base.Columns)
    algorithm : Algorithm

    Returns
    -------
    highdicom.seg.Segmentation
    """
    import highdicom as hd

    from sonobreast import __version__

    described = hd.seg.SegmentDescription(
        segment_number=1,
        segment_label="Lesion",
        segmented_property_category=concept("49755003", "SCT", "Morphologically Abnormal Structure"),
        segmented_property_type=concept("52988006", "SCT", "Lesion"),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=algorithm.name,
            version=algorithm.version,
            family=concept("123110", "DCM", "Artificial Intelligence"),
        ),
        tracking_uid=hd.UID(),
        tracking_id="Lesion 1",
        anatomic_regions=[concept("76752008", "SCT", "Breast")],
    )
    made = hd.seg.Segmentation(
        source_images=[base],
        pixel_array=mask.astype(np.uint8)[np.newaxis],
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[described],
        series_instance_uid=hd.UID(),
        series_number=series_number("segmentation"),
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="sonobreast",
        manufacturer_model_name="sonobreast",
        software_versions=__version__,
        device_serial_number="0",
        content_label="LESION",
        content_description="Lesion by a network. Research use only",
        series_description="sonobreast segmentation (research use only)",
    )
    made.PatientOrientation = ""
    return made


def derived_image(origin: Any, image: DicomImage) -> Any:
    """One frame of a clip as a single-frame ultrasound image of its own, cut to the region.

    Returns
    -------
    pydicom FileDataset
        Explicit VR Little Endian, MONOCHROME2 or RGB, 8 bits, with SourceImageSequence and the region's calibration.
    """
    import highdicom as hd
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    picture = image.frames[0]
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.6.1")
    meta.MediaStorageSOPInstanceUID = hd.UID()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds = FileDataset("", {}, preamble=b"\0" * 128, file_meta=meta)
    for element in origin:
        if element.keyword not in ("NumberOfFrames", "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID"):
            ds[element.tag] = element
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.SeriesInstanceUID, ds.SeriesNumber, ds.InstanceNumber = hd.UID(), series_number("image"), 1
    ds.SeriesDescription = f"Frame {image.numbers[0]}, for the segmentation"
    ds.Modality, ds.Manufacturer, ds.ManufacturerModelName = "US", "sonobreast", "sonobreast"
    ds.ImageType = ["DERIVED", "SECONDARY"]
    ds.DerivationDescription = f"Frame {image.numbers[0]} of {image.n_frames}, cut to the B-mode region"
    ds.ContentDate = ds.ContentTime = ""
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = origin.SOPClassUID, origin.SOPInstanceUID
    reference.ReferencedFrameNumber = image.numbers[0]
    ds.SourceImageSequence = [reference]
    if any(n.code == "dicom-burned-in" for n in image.notes):
        ds.BurnedInAnnotation = "YES"
    ds.Rows, ds.Columns = picture.shape[:2]
    ds.SamplesPerPixel = 1 if picture.ndim == 2 else 3
    ds.PhotometricInterpretation = "MONOCHROME2" if picture.ndim == 2 else "RGB"
    if picture.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    if image.spacing_mm is not None:
        ds.SequenceOfUltrasoundRegions = [_calibrated(image.spacing_mm, picture.shape)]
    data = picture.tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB"
    return ds


def _calibrated(spacing_mm: tuple[float, float], shape: tuple[int, ...]) -> Any:
    from pydicom.dataset import Dataset

    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 0, 0
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = shape[1] - 1, shape[0] - 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaY, region.PhysicalDeltaX = (v / 10.0 for v in spacing_mm)
    return region
