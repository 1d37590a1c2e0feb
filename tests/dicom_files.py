"""DICOM files of every kind that scanners write, made here from simulated pictures, and dcmtk's view of them."""

from __future__ import annotations

import io
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sonobreast.data.dicom_phantom import dicom_dataset
from sonobreast.data.phantom import Phantom, simulate

KEY = b"a key for the tests only"
SECRETS = ("SIMULATED", "P0001", "P0002", "P0003", "P0004", "P0005", "20000101", "2.25.")
"""What a message or a log must not hold: name, patient numbers, birth date, root of the UIDs."""
NATIVE = {
    "implicit": "1.2.840.10008.1.2",
    "explicit": "1.2.840.10008.1.2.1",
    "big endian": "1.2.840.10008.1.2.2",
    "deflated": "1.2.840.10008.1.2.1.99",
}


@cache
def phantom(size: int = 96) -> Phantom:
    return simulate(1, seed=1, size=size)


def dataset(*, n_frames: int = 1, size: int = 96) -> Any:
    return dicom_dataset(phantom(size), n_frames=n_frames)


def colours(ds: Any, *, coloured: bool = False) -> NDArray[np.uint8]:
    """The screen in RGB, grey or with a few coloured marks in the B-mode part (less than what Doppler has)."""
    grey = np.frombuffer(ds.PixelData[: ds.Rows * ds.Columns], np.uint8).reshape(ds.Rows, ds.Columns)
    rgb = np.repeat(grey[:, :, None], 3, axis=2).copy()
    if coloured:
        rgb[60:64, 10:30] = (255, 220, 0)
        rgb[80:84, 10:30] = (0, 90, 255)
    return rgb


def set_pixels(ds: Any, data: bytes, *, samples: int = 1, photometric: str = "MONOCHROME2", bits: int = 8) -> Any:
    ds.SamplesPerPixel, ds.PhotometricInterpretation = samples, photometric
    if samples == 3:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = 8 if bits <= 8 else 16
    ds.BitsStored, ds.HighBit = bits, bits - 1
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB" if bits <= 8 else "OW"
    return ds


def with_photometric(photometric: str, *, planar: int = 0) -> Any:
    """A native file of this photometric interpretation."""
    from pydicom.pixels import convert_color_space

    ds = dataset()
    grey = colours(ds)[..., 0]
    rgb = colours(ds, coloured=True)
    if photometric.startswith("MONOCHROME"):
        return set_pixels(ds, grey.tobytes(), photometric=photometric)
    if photometric == "PALETTE COLOR":
        picture = Image.fromarray(rgb).quantize(256)
        table = np.zeros((256, 3), np.uint8)
        colours_used = np.asarray(picture.getpalette(), np.uint8).reshape(-1, 3)
        table[: len(colours_used)] = colours_used
        set_pixels(ds, np.asarray(picture).tobytes(), photometric=photometric)
        for channel, name in enumerate(("Red", "Green", "Blue")):
            setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
            data = (table[:, channel].astype("<u2") * 257).tobytes()
            setattr(ds, f"{name}PaletteColorLookupTableData", data)
        return ds
    values = rgb if photometric == "RGB" else convert_color_space(rgb, "RGB", "YBR_FULL")
    if photometric == "YBR_FULL_422":
        pairs = np.empty((ds.Rows, ds.Columns // 2, 4), np.uint8)  # Y1 Y2 Cb Cr (PS3.3 C.7.6.3.1.2)
        pairs[..., 0], pairs[..., 1] = values[:, 0::2, 0], values[:, 1::2, 0]
        pairs[..., 2], pairs[..., 3] = values[:, 0::2, 1], values[:, 0::2, 2]
        return set_pixels(ds, pairs.tobytes(), samples=3, photometric=photometric)
    if planar:
        values = np.moveaxis(values, 2, 0)
    set_pixels(ds, np.ascontiguousarray(values).tobytes(), samples=3, photometric=photometric)
    ds.PlanarConfiguration = planar
    return ds


def in_syntax(ds: Any, uid: str) -> Any:
    """The same file in another uncompressed transfer syntax."""
    ds.file_meta.TransferSyntaxUID = uid
    return ds


def compressed(ds: Any, uid: str, frames: list[bytes], photometric: str | None = None) -> Any:
    """The same file with frames that an encoder made."""
    from pydicom.encaps import encapsulate

    ds.file_meta.TransferSyntaxUID = uid
    ds.PixelData = encapsulate(frames)
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    if photometric is not None:
        ds.PhotometricInterpretation = photometric
    return ds


def pillow_frame(picture: NDArray[np.uint8], kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return buffer.getvalue()


def save(ds: Any, path: Path) -> Path:
    if ds.file_meta.TransferSyntaxUID == NATIVE["big endian"]:  # pydicom does not turn the bytes round
        ds.file_meta.TransferSyntaxUID = NATIVE["explicit"]
        run(tool("dcmconv"), "+tb", save(ds, path.with_name("little-" + path.name)), path)
        return path
    implicit = ds.file_meta.TransferSyntaxUID == NATIVE["implicit"]
    ds.save_as(path, implicit_vr=implicit, enforce_file_format=True)
    return path


def content(ds: Any) -> bytes:
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: dcmtk, dicom3tools)")
    return found


def run(*command: object) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def seen_by_dcmtk(path: Path, decoder: str = "", *options: str) -> NDArray[np.uint8]:
    """The picture as dcmtk decodes and shows it, cut to the B-mode region."""
    shown = path.with_suffix(".pnm")
    source = path
    if decoder:
        source = path.with_name("native-" + path.name)
        run(tool(decoder), path, source)
    run(tool("dcm2pnm"), "+Wi" if "window" in options else "-W", *(["1"] if "window" in options else []), source, shown)
    ds = dataset()
    return np.asarray(Image.open(shown))[48 : ds.Rows, : ds.Columns - 40]


def verify(path: Path) -> None:
    """dciodvfy without an error; warnings of the toolkit are allowed."""
    done = subprocess.run([tool("dciodvfy"), str(path)], capture_output=True, text=True, check=False)
    errors = [line for line in (done.stderr + done.stdout).splitlines() if line.startswith(("Error", "Abort"))]
    assert not errors, "\n".join(errors)
