"""A simulated ultrasound examination as DICOM files, for tests and lessons: never a real patient.

The picture of `sonobreast.data.phantom` stands on a scanner's screen: a strip on top with a burned-in (invented) name,
a scale at the side, and SequenceOfUltrasoundRegions that says where the B-mode part is.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sonobreast.data.atomic import cannot_write, write_whole
from sonobreast.data.dicom import require
from sonobreast.data.phantom import Phantom

US_IMAGE = "1.2.840.10008.5.1.4.1.1.6.1"
US_MULTI_FRAME = "1.2.840.10008.5.1.4.1.1.3.1"
HEADER_ROWS = 48
"""Rows of the screen above the B-mode region."""
SCALE_COLUMNS = 40
"""Columns of the screen to the right of it."""
INVENTED_NAME = "SIMULATED^PATIENT"


def screen(phantom: Phantom) -> NDArray[np.uint8]:
    """The simulated picture on a screen with a burned-in header and a scale, uint8 (H + 48, W + 40)."""
    height, width = phantom.image.shape
    canvas = Image.new("L", (width + SCALE_COLUMNS, height + HEADER_ROWS))
    canvas.paste(Image.fromarray(phantom.image), (0, HEADER_ROWS))
    pen = ImageDraw.Draw(canvas)
    pen.text((6, 6), f"{INVENTED_NAME.replace('^', ', ')}   SIMULATED, NO PATIENT", fill=255)
    pen.text((6, 24), f"{phantom.patient}   01.01.2000", fill=255)
    step = 10.0 / phantom.spacing_mm
    for mark in range(int(height / step) + 1):
        y = HEADER_ROWS + round(mark * step)
        pen.line((width + 6, y, width + 16, y), fill=200)
    return np.asarray(canvas)


def dicom_dataset(phantom: Phantom, *, n_frames: int = 1, seed: int = 0) -> Any:
    """A simulated image as a pydicom dataset: Ultrasound Image, or Multi-frame with more than one frame.

    Parameters
    ----------
    phantom : Phantom
    n_frames : int
        Further frames differ by noise of one grey level.
    seed : int
        Of the UIDs and the noise: the same call gives the same dataset.

    Returns
    -------
    pydicom FileDataset
        Explicit VR Little Endian, MONOCHROME2, 8 bits.

    Raises
    ------
    SonobreastError
        If pydicom is not installed.
    """
    require()
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

    picture = screen(phantom)
    rng = np.random.default_rng(seed)
    frames = [picture]
    for _ in range(n_frames - 1):
        frames.append(np.clip(picture.astype(np.int16) + rng.integers(-1, 2, picture.shape), 0, 255).astype(np.uint8))

    def uid(*words: object) -> Any:
        return generate_uid(entropy_srcs=["sonobreast phantom", *map(str, (seed, phantom.patient, *words))])

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(US_IMAGE if n_frames == 1 else US_MULTI_FRAME)
    meta.MediaStorageSOPInstanceUID = uid("image", n_frames, picture.tobytes())
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID("1.2.826.0.1.3680043.8.498.1")
    ds = FileDataset("", {}, preamble=b"\0" * 128, file_meta=meta)
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid("study"), uid("series")
    ds.ImageType = ["ORIGINAL", "PRIMARY", "BREAST", "0001"]
    ds.Modality, ds.Manufacturer, ds.ManufacturerModelName = "US", "sonobreast", "Simulated B-mode"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = INVENTED_NAME, phantom.patient, "20000101", "O"
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = "20000101"
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = "120000"
    ds.StudyID, ds.SeriesNumber, ds.InstanceNumber, ds.AccessionNumber = "1", 1, 1, ""
    ds.ReferringPhysicianName = ""
    ds.PatientOrientation = ""
    ds.Laterality = "R"
    ds.BurnedInAnnotation = "YES"
    ds.LossyImageCompression = "00"
    if n_frames > 1:
        ds.NumberOfFrames, ds.FrameTime, ds.FrameIncrementPointer = n_frames, "33.3", 0x00181063
    region = Dataset()
    height, width = phantom.image.shape
    region.RegionSpatialFormat, region.RegionDataType, region.RegionFlags = 1, 1, 0
    region.RegionLocationMinX0, region.RegionLocationMinY0 = 0, HEADER_ROWS
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = width - 1, HEADER_ROWS + height - 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX = region.PhysicalDeltaY = phantom.spacing_mm / 10.0
    ds.SequenceOfUltrasoundRegions = [region]
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.Rows, ds.Columns = picture.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    data = b"".join(f.tobytes() for f in frames)
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB"
    return ds


def write_dicom(path: Path, phantom: Phantom, *, n_frames: int = 1, seed: int = 0) -> None:
    """Write `dicom_dataset` as a DICOM Part 10 file.

    Raises
    ------
    SonobreastError
        If pydicom is not installed, or the file cannot be written.
    """
    buffer = BytesIO()
    dicom_dataset(phantom, n_frames=n_frames, seed=seed).save_as(buffer, enforce_file_format=True)
    try:
        write_whole(path, buffer.getvalue())
    except OSError as problem:
        raise cannot_write(problem, path) from problem
