"""DICOM in: every storage that scanners use against dcmtk's decoder, every refusal, no word about the patient."""

from __future__ import annotations

import io
import logging
import os
import random
import signal
import stat
import subprocess
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import dicom_files as files
from tests.dicom_files import KEY, SECRETS, compressed, content, dataset, phantom, save, seen_by_dcmtk

from sonobreast.data.dicom import contents, decode_rgb, is_dicom, read_dicom, sample
from sonobreast.data.pseudonym import pseudonym, pseudonym_key
from sonobreast.errors import SonobreastError

pytest.importorskip("pydicom", reason="needs sonobreast[dicom]")
pytest.importorskip("gdcm", reason="needs sonobreast[dicom]")

JPEG = "1.2.840.10008.1.2.4.50"
JPEG_LS, J2K_LOSSLESS, J2K = (f"1.2.840.10008.1.2.4.{n}" for n in (80, 90, 91))
RLE = "1.2.840.10008.1.2.5"
PHOTOMETRICS = ["MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422", "PALETTE COLOR"]
ROUNDING = {"MONOCHROME1": 1, "YBR_FULL": 1, "YBR_FULL_422": 1}
"""Grey levels: dcm2pnm inverts 255 to 1 and not to 0, and the YBR matrix is not exact in 8 bits."""


def read(source: Any, **options: Any) -> Any:
    return read_dicom(source, key=KEY, **options)


def picture(source: Any) -> np.ndarray:
    return read(source).frames[0]


def whole_grey() -> np.ndarray:
    """The uncut screen, grey."""
    return files.colours(dataset())[..., 0]


def refusal(source: Any, **options: Any) -> str:
    with pytest.raises(SonobreastError) as caught:
        read(source if isinstance(source, bytes | Path) else content(source), **options)
    error = caught.value
    assert error.remedy
    assert error.__cause__ is None
    assert error.__context__ is None
    whole = "".join(traceback.format_exception(error))
    assert not any(s in whole for s in SECRETS)
    return error.what


# What scanners write, against an independent decoder


@pytest.mark.parametrize("syntax", files.NATIVE)
@pytest.mark.parametrize("photometric", PHOTOMETRICS)
def test_uncompressed_pictures_are_those_of_dcmtk(photometric: str, syntax: str, tmp_path: Path) -> None:
    if photometric == "PALETTE COLOR" and syntax == "big endian":
        pytest.skip("refused, and tested below")
    path = save(files.in_syntax(files.with_photometric(photometric), files.NATIVE[syntax]), tmp_path / "a.dcm")
    ours, theirs = picture(path), seen_by_dcmtk(path)
    assert ours.shape == theirs.shape
    if photometric.startswith("MONOCHROME"):
        inverted = photometric == "MONOCHROME1"
        assert np.array_equal(ours, 255 - phantom().image if inverted else phantom().image)
    assert np.abs(ours.astype(int) - theirs).max() <= ROUNDING.get(photometric, 0)
    assert np.array_equal(ours, picture(path.read_bytes()))


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_colour_by_plane(photometric: str, tmp_path: Path) -> None:
    path = save(files.with_photometric(photometric, planar=1), tmp_path / "a.dcm")
    assert np.abs(picture(path).astype(int) - seen_by_dcmtk(path)).max() <= 1
    assert np.array_equal(picture(path), picture(content(files.with_photometric(photometric))))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "PALETTE COLOR"])
@pytest.mark.parametrize("encoder", ["dcmcrle", "dcmcjpls", "dcmcjpeg", "pydicom"])
def test_lossless_pictures_are_the_uncompressed_ones(photometric: str, encoder: str, tmp_path: Path) -> None:
    native = save(files.with_photometric(photometric), tmp_path / "a.dcm")
    path = tmp_path / "b.dcm"
    options: tuple[str, ...] = ()
    if encoder == "pydicom":
        ds = files.with_photometric(photometric)
        ds.compress(RLE, generate_instance_uid=False)
        save(ds, path)
    else:
        if encoder == "dcmcjpeg" and photometric == "YBR_FULL":
            pytest.skip("dcmtk turns it into RGB before it encodes")
        options = ("+e1",) if encoder == "dcmcjpeg" else ()
        files.run(files.tool(encoder), *options, native, path)
    decoder = {"dcmcrle": "dcmdrle", "dcmcjpls": "dcmdjpls", "dcmcjpeg": "dcmdjpeg", "pydicom": "dcmdrle"}[encoder]
    assert np.array_equal(picture(path), picture(native))
    off = np.abs(picture(path).astype(int) - seen_by_dcmtk(path, decoder))
    assert off.max() <= ROUNDING.get(photometric, 0)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2", "RGB"])
@pytest.mark.parametrize("process", ["+eb", "+ee", "near-lossless"])
def test_lossy_pictures_are_those_of_dcmtk(photometric: str, process: str, tmp_path: Path) -> None:
    native, path = save(files.with_photometric(photometric), tmp_path / "a.dcm"), tmp_path / "b.dcm"
    if process == "near-lossless":
        files.run(files.tool("dcmcjpls"), "+en", native, path)
        decoder = "dcmdjpls"
    else:
        files.run(files.tool("dcmcjpeg"), process, native, path)
        decoder = "dcmdjpeg"
    ours, theirs = picture(path), seen_by_dcmtk(path, decoder)
    assert ours.shape == theirs.shape
    off = np.abs(ours.astype(int) - theirs)
    # Baseline colour is YBR_FULL_422: two libraries interpolate the halved colour of sharp marks each in its own way.
    assert np.percentile(off, 98) <= 3
    sharp = 96 if photometric == "RGB" else 4
    assert off.max() <= (ROUNDING.get(photometric, 0) if process == "near-lossless" else sharp)
    assert np.abs(ours.astype(int) - picture(native)).mean() < 4


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "RGB", "YBR_RCT"])
def test_jpeg_2000_lossless(photometric: str) -> None:
    ds = files.with_photometric("MONOCHROME2" if photometric == "MONOCHROME2" else "RGB")
    expected = picture(content(ds))
    whole = files.colours(dataset(), coloured=True)
    whole = whole if photometric != "MONOCHROME2" else whole_grey()
    frame = files.pillow_frame(whole, "JPEG2000", irreversible=False, mct=int(photometric == "YBR_RCT"), no_jp2=True)
    assert np.array_equal(picture(content(compressed(ds, J2K_LOSSLESS, [frame], photometric))), expected)


def test_jpeg_2000_lossy_is_near_and_as_gdcm_decodes_it() -> None:
    from pydicom import dcmread
    from pydicom.pixels import pixel_array

    ds = dataset()
    whole = files.colours(ds)[..., 0]
    frame = files.pillow_frame(whole, "JPEG2000", irreversible=True, quality_layers=[8], no_jp2=True)
    data = content(compressed(ds, J2K, [frame]))
    theirs = pixel_array(dcmread(io.BytesIO(data)), decoding_plugin="gdcm")[48:, :96]
    assert np.abs(picture(data).astype(int) - theirs).max() <= 1
    assert 0 < np.abs(picture(data).astype(int) - phantom().image).mean() < 6


def test_a_windowed_16_bit_picture_is_that_of_dcmtk(tmp_path: Path) -> None:
    for signed in (False, True):
        ds = dataset()
        deep = files.colours(ds)[..., 0].astype(np.int32) * 13 - (900 if signed else 0)
        files.set_pixels(ds, deep.astype("<i2" if signed else "<u2").tobytes(), bits=16 if signed else 12)
        ds.PixelRepresentation = int(signed)
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 2, -10, "US"
        ds.WindowCenter, ds.WindowWidth = (600 if signed else 2800), 2000
        path = save(ds, tmp_path / f"{signed}.dcm")
        ours = picture(path)
        assert 0 in ours
        assert 255 in ours
        assert np.abs(ours.astype(int) - seen_by_dcmtk(path, "", "window")).max() <= 1


# Frames, regions, spacing


def test_the_region_is_cut_out_with_its_spacing_and_the_header_is_gone(tmp_path: Path) -> None:
    path = save(dataset(), tmp_path / "a.dcm")
    image = read(path)
    assert np.array_equal(image.frames[0], phantom().image)
    assert image.spacing_mm == pytest.approx((phantom().spacing_mm,) * 2, rel=1e-12)
    assert (image.region.box, image.rows, image.columns) == ((0, 48, 96, 144), 144, 136)
    assert (image.modality, image.burned_in, image.n_regions, image.notes) == ("US", True, 1, ())
    assert image.device == "sonobreast Simulated B-mode"
    assert decode_rgb(path).shape == (96, 96, 3)


def test_without_regions_nothing_is_cut_and_that_is_said() -> None:
    ds = dataset()
    del ds.SequenceOfUltrasoundRegions
    image = read(content(ds))
    assert image.frames[0].shape == (144, 136)
    assert image.region is None
    assert image.spacing_mm is None
    assert any("nothing was cut away" in n.text for n in image.notes)
    assert any("burned in" in n.text for n in image.notes)
    ds.PixelSpacing, ds.BurnedInAnnotation = [0.1, 0.2], "NO"
    image = read(content(ds))
    assert image.spacing_mm == (0.1, 0.2)
    assert not any("burned in" in n.text for n in image.notes)


def split_screen(kind: int = 1, form: int = 1) -> Any:
    """Two regions side by side; the right one is smaller and of another kind where that is asked for."""
    from copy import deepcopy

    ds = dataset()
    left = ds.SequenceOfUltrasoundRegions[0]
    right = deepcopy(left)
    left.RegionLocationMaxX1, right.RegionLocationMinX0 = 51, 56
    right.RegionDataType, right.RegionSpatialFormat = kind, form
    right.PhysicalDeltaX = right.PhysicalDeltaY = 0.01
    ds.SequenceOfUltrasoundRegions = [right, left]
    return ds


def test_of_a_split_screen_the_largest_region_is_read_or_each() -> None:
    data = content(split_screen())
    image = read(data)
    assert np.array_equal(image.frames[0], phantom().image[:, :52])
    assert image.n_regions == 2
    assert any("split" in n.text for n in image.notes)
    assert contents(data).n_regions == 2
    left, right = (read(data, region=r) for r in (1, 2))
    assert np.array_equal(left.frames[0], image.frames[0])
    assert np.array_equal(right.frames[0], phantom().image[:, 56:])
    assert right.spacing_mm == pytest.approx((0.1, 0.1))
    assert (left.region.number, right.region.number) == (1, 2)
    assert any("region 1 of 2 from the left (columns 1 to 52, rows 49 to 144)" in n.text for n in left.notes)
    assert "no B-mode region 3" in refusal(data, region=3)
    ds = dataset()
    del ds.SequenceOfUltrasoundRegions
    assert "no B-mode region 2" in refusal(ds, region=2)
    assert read(content(ds), region=1).region is None


def test_a_region_that_is_named_twice_is_one() -> None:
    from copy import deepcopy

    ds = dataset()
    twin = deepcopy(ds.SequenceOfUltrasoundRegions[0])
    ds.SequenceOfUltrasoundRegions.append(twin)
    assert contents(content(ds)).n_regions == 1
    assert read(content(ds)).notes == ()
    assert read(content(ds)).spacing_mm is not None
    twin.PhysicalDeltaX = twin.PhysicalDeltaY = 0.05
    assert read(content(ds)).spacing_mm is None


def test_what_contradicts_itself_has_no_millimetres() -> None:
    ds = dataset()
    ds.PixelSpacing = [phantom().spacing_mm * 1.01] * 2
    assert read(content(ds)).spacing_mm == pytest.approx((phantom().spacing_mm,) * 2)
    ds.PixelSpacing = [phantom().spacing_mm * 1.5] * 2
    image = read(content(ds))
    assert image.spacing_mm is None
    assert [n.code for n in image.notes] == ["dicom-doubtful-spacing"]


def test_colour_flow_beside_the_picture_leaves_it_and_on_it_refuses() -> None:
    assert read(content(split_screen(kind=2))).frames[0].shape == (96, 52)
    ds = split_screen(kind=2)
    ds.SequenceOfUltrasoundRegions[0].RegionLocationMinX0 = 20
    assert "colour flow" in refusal(ds)


@pytest.mark.parametrize(("form", "name"), [(2, "M-mode"), (3, "spectral Doppler"), (4, "waveform")])
def test_other_modes_are_refused(form: int, name: str) -> None:
    assert name in refusal(split_screen(form=form))


def test_image_type_is_asked_where_there_are_no_regions() -> None:
    ds = dataset()
    ds.ImageType = ["ORIGINAL", "PRIMARY", "BREAST", "0011"]
    read(content(ds))
    del ds.SequenceOfUltrasoundRegions
    assert "colour Doppler" in refusal(ds)


def test_doppler_without_any_word_of_it_is_seen_in_its_colours() -> None:
    ds = dataset()
    rgb = files.colours(ds)
    rgb[70:100, 20:60, 0] = 255 - rgb[70:100, 20:60, 0] // 3
    rgb[70:100, 20:60, 2] //= 2
    files.set_pixels(ds, rgb.tobytes(), samples=3, photometric="RGB")
    assert "coloured" in refusal(ds)


def test_a_tinted_picture_is_grey_again() -> None:
    ds = dataset()
    grey = files.colours(ds)[..., 0].astype(float)
    tinted = np.stack([np.minimum(grey * 1.1, 255), grey * 0.85, grey * 0.5], axis=2).astype(np.uint8)
    files.set_pixels(ds, tinted.tobytes(), samples=3, photometric="RGB")
    shown = picture(content(ds))
    assert shown.ndim == 2
    assert np.corrcoef(shown.ravel(), phantom().image.ravel())[0, 1] > 0.999


def test_regions_outside_of_the_picture_are_cut_to_it() -> None:
    ds = dataset()
    region = ds.SequenceOfUltrasoundRegions[0]
    region.RegionLocationMaxY1 = ds.Rows  # one too many, as some scanners count
    assert read(content(ds)).notes == ()
    region.RegionLocationMaxY1 = 100_000
    image = read(content(ds))
    assert image.frames[0].shape == (96, 96)
    assert image.spacing_mm is None
    assert [n.code for n in image.notes] == ["dicom-doubtful-spacing"]
    region.RegionLocationMinX0 = 95
    assert "outside of the picture or is smaller" in refusal(ds)
    region.RegionLocationMinX0, region.RegionLocationMaxX1 = 90, 10
    assert "outside of the picture or is smaller" in refusal(ds)


@pytest.mark.parametrize(("units", "delta"), [(1, 0.01), (3, 0.0), (3, 99.0), (3, None)])
def test_no_spacing_is_guessed(units: int, delta: float | None) -> None:
    ds = dataset()
    region = ds.SequenceOfUltrasoundRegions[0]
    region.PhysicalUnitsXDirection, region.PhysicalDeltaX = units, delta
    image = read(content(ds))
    assert image.spacing_mm is None
    assert any("no pixel spacing" in n.text for n in image.notes)


def test_frames_are_sampled_by_rule(tmp_path: Path) -> None:
    assert sample(1, "middle") == sample(1, "ends") == sample(1, 9) == (0,)
    assert sample(500, "middle") == sample(500, 1) == (250,)
    assert sample(500, "ends") == (0, 250, 499)
    assert sample(500, 5) == (50, 150, 250, 350, 450)
    assert sample(3, 7) == (0, 1, 2)
    for bad in ("all", 0, -1):
        with pytest.raises(SonobreastError):
            sample(5, bad)
    path = save(dataset(n_frames=5), tmp_path / "clip.dcm")
    clip = read(path, frames=5)
    assert clip.numbers == (1, 2, 3, 4, 5)
    assert clip.notes == ()
    ends = read(path, frames="ends")
    assert ends.numbers == (1, 3, 5)
    assert all(np.array_equal(f, clip.frames[n - 1]) for f, n in zip(ends.frames, ends.numbers, strict=True))
    assert "frame 1, 3, 5 of the 5 frames" in ends.notes[0].text


@pytest.mark.parametrize("syntax", ["native", "rle"])
def test_500_frames_need_no_more_memory_than_one(syntax: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    from sonobreast.data import dicom_frames

    ds = dataset(n_frames=500)
    if syntax == "rle":
        one = dataset()
        one.compress(RLE, generate_instance_uid=False)
        from pydicom.encaps import get_frame

        compressed(ds, RLE, [get_frame(one.PixelData, 0, number_of_frames=1)] * 500)
    path = save(ds, tmp_path / "clip.dcm")
    assert path.stat().st_size > (9e6 if syntax == "native" else 3e6)
    decoded = []
    plain = dicom_frames._decode
    monkeypatch.setattr(dicom_frames, "_decode", lambda f, h: decoded.append(1) or plain(f, h))
    read(path)
    tracemalloc.start()
    read(path, frames="ends")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(decoded) == 4
    assert peak < 1.5e6


def test_frames_in_several_fragments_are_found_by_the_offset_table_or_by_how_they_begin() -> None:
    from pydicom.encaps import encapsulate

    ds = dataset(n_frames=2)
    one = dataset()
    frames = [
        files.pillow_frame(255 - files.colours(one)[..., 0], "JPEG"),
        files.pillow_frame(files.colours(one)[..., 0], "JPEG"),
    ]
    compressed(ds, JPEG, frames)
    expected = read(content(ds), frames="ends").frames
    assert expected[0].mean() != expected[1].mean()
    ds.PixelData = encapsulate(frames, fragments_per_frame=3)
    assert all(np.array_equal(a, b) for a, b in zip(read(content(ds), frames="ends").frames, expected, strict=True))
    ds.PixelData = encapsulate(frames, fragments_per_frame=3, has_bot=False)
    assert all(np.array_equal(a, b) for a, b in zip(read(content(ds), frames="ends").frames, expected, strict=True))
    ds.NumberOfFrames = 3
    assert "no offset table" in refusal(ds)
    for wrong in (1, None):
        ds.NumberOfFrames = wrong
        assert "hold 2 pictures, NumberOfFrames (0028,0008) says 1" in refusal(ds)
    ds = dataset(n_frames=2)
    ds.compress(RLE, generate_instance_uid=False)
    ds.NumberOfFrames = 1
    assert "hold 2 pictures" in refusal(ds)


# Refusals


def test_truncated_pixel_data(tmp_path: Path) -> None:
    data = content(dataset())
    assert "end too early" in refusal(data[:-500])
    assert "ends before the pixel data" in refusal(data[:600])
    assert "no pixel data" in refusal(data[: data.index(b"\xe0\x7f\x10\x00OB")])
    clip = content(dataset(n_frames=4))
    assert "2 of 4 frame" in refusal(clip[: -(144 * 136 + 100)])
    ds = dataset()
    compressed(ds, JPEG, [files.pillow_frame(files.colours(ds)[..., 0], "JPEG")])
    assert "end too early" in refusal(content(ds)[:-300])
    path = tmp_path / "given.dcm"
    path.write_bytes(data[:-500])
    with pytest.raises(SonobreastError) as caught:
        read(path)
    assert caught.value.file == str(path)


def test_a_jpeg_that_ends_early_inside_its_item() -> None:
    ds = dataset()
    frame = files.pillow_frame(files.colours(ds)[..., 0], "JPEG")
    assert refusal(compressed(ds, JPEG, [frame[: len(frame) // 2]]))


def test_a_wrong_transfer_syntax_is_named() -> None:
    ds = dataset()
    frame = files.pillow_frame(files.colours(ds)[..., 0], "JPEG")
    data = content(compressed(ds, JPEG_LS, [frame]))
    assert "says JPEG-LS Lossless, but the pixel data begin as JPEG" in refusal(data)
    native = content(dataset())
    # The header says JPEG, the pixels are plain; and the other way round.
    assert "but the pixel data are not" in refusal(_relabelled(native, JPEG))
    plain = _relabelled(content(compressed(dataset(), JPEG, [frame])), files.NATIVE["explicit"])
    assert "but the pixel data are compressed" in refusal(plain)
    assert "High-Throughput JPEG 2000" in refusal(_relabelled(native, "1.2.840.10008.1.2.4.201"))
    assert "(unknown)" in refusal(_relabelled(native, "1.2.3.4.5.6"))


def _relabelled(data: bytes, uid: str) -> bytes:
    """The file with another transfer syntax in its file meta group and nothing else changed."""
    from pydicom import dcmread
    from pydicom.filewriter import write_file_meta_info

    source = io.BytesIO(data)
    meta = dcmread(source, stop_before_pixels=True).file_meta
    group = int.from_bytes(data[140:144], "little")
    meta.TransferSyntaxUID = uid
    head = io.BytesIO()
    write_file_meta_info(head, meta)
    return data[:132] + head.getvalue() + data[144 + group :]


def test_a_compressed_picture_of_another_size_is_not_given_to_a_decoder() -> None:
    ds = dataset()
    bomb = files.pillow_frame(np.zeros((4000, 4000), np.uint8), "JPEG")
    assert "is 4000 x 4000" in refusal(compressed(ds, JPEG, [bomb]))
    small = files.pillow_frame(np.zeros((144, 136, 3), np.uint8), "JPEG")
    assert "3 sample(s)" in refusal(compressed(ds, JPEG, [small]))


@pytest.mark.parametrize(
    "keyword",
    [
        "Rows",
        "Columns",
        "BitsAllocated",
        "BitsStored",
        "SamplesPerPixel",
        "PhotometricInterpretation",
        "PixelRepresentation",
    ],
)
def test_a_missing_attribute_is_named_with_its_tag(keyword: str) -> None:
    from pydicom.datadict import tag_for_keyword

    ds = dataset()
    delattr(ds, keyword)
    tag = tag_for_keyword(keyword) or 0
    assert f"{keyword} ({tag >> 16:04X},{tag & 0xFFFF:04X}) is missing" in refusal(ds)


def test_what_may_be_missing() -> None:
    ds = dataset()
    for keyword in (
        "PatientID",
        "PatientName",
        "Manufacturer",
        "NumberOfFrames",
        "HighBit",
        "BurnedInAnnotation",
        "Modality",
    ):
        if keyword in ds:
            delattr(ds, keyword)
    image = read(content(ds))
    assert (image.patient, image.burned_in, image.device) == ("", None, "Simulated B-mode")


def test_deep_and_signed_pictures_without_a_window_are_refused() -> None:
    for bits, signed in ((12, 0), (16, 1), (8, 1)):
        ds = dataset()
        values = files.colours(ds)[..., 0].astype("<u2" if bits > 8 else "u1")
        files.set_pixels(ds, values.tobytes(), bits=bits)
        ds.PixelRepresentation = signed
        assert f"a grey image with {bits} bits" in refusal(ds)
        ds.WindowCenter, ds.WindowWidth = 100, 0
        assert "WindowWidth" in refusal(ds)
    colour = files.with_photometric("RGB")
    colour.PixelRepresentation = 1
    assert "signed" in refusal(colour)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"Modality": "MG"}, "MG (mammography)"),
        ({"Modality": "SIMULATED"}, "missing or unknown"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.2"}, "3D ultrasound volume"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.33"}, "SOP Class"),
        ({"Rows": 0}, "0 rows"),
        ({"Rows": 65535, "Columns": 65535}, "more than any scan"),
        ({"NumberOfFrames": 2_000_000}, "more than any scan"),
        ({"NumberOfFrames": -1}, "-1 frames"),
        ({"PhotometricInterpretation": "CMYK"}, "PhotometricInterpretation"),
        ({"PhotometricInterpretation": "RGB"}, "RGB has 3"),
        ({"BitsAllocated": 1}, "BitsAllocated (0028,0100) is 1"),
        ({"BitsStored": 12}, "BitsStored (0028,0101) 12"),
        ({"HighBit": 4}, "HighBit"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "without a whole palette"),
    ],
)
def test_what_is_no_b_mode_picture(change: dict[str, Any], words: str) -> None:
    ds = dataset()
    for keyword, value in change.items():
        setattr(ds, keyword, value)
    assert words in refusal(ds)


def test_files_that_are_no_dicom(tmp_path: Path) -> None:
    for data in (b"", b"\0" * 200, b"\x89PNG\r\n\x1a\n" + b"\0" * 300, b"\0" * 128 + b"DICM"):
        assert refusal(data)
    missing = tmp_path / "missing.dcm"
    assert "cannot be read" in refusal(missing)
    assert is_dicom(missing)
    assert not is_dicom(tmp_path / "missing.png")
    assert is_dicom(content(dataset()))
    assert not is_dicom(b"\x89PNG")


def test_a_deflated_bomb_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    from sonobreast.data import dicom_header

    ds = files.in_syntax(dataset(n_frames=30), files.NATIVE["deflated"])
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    read(buffer.getvalue())
    monkeypatch.setattr(dicom_header, "MAX_INFLATED", 100_000)
    assert "grows to more than" in refusal(buffer.getvalue())
    assert "truncated" in refusal(buffer.getvalue()[:5000])


def test_palette_in_big_endian_is_refused(tmp_path: Path) -> None:
    path = save(
        files.in_syntax(files.with_photometric("PALETTE COLOR"), files.NATIVE["big endian"]), tmp_path / "a.dcm"
    )
    assert "big endian" in refusal(path)


def test_pixel_data_longer_than_the_header_says_are_sheared_or_of_another_kind() -> None:
    ds = dataset()
    ds.Columns -= 1
    assert "longer than the header says" in refusal(ds)
    clip = dataset(n_frames=5)
    del clip.NumberOfFrames
    assert "for 1 frame(s) of 136 x 144" in refusal(clip)
    deep = dataset()
    deep.PixelData = np.frombuffer(deep.PixelData, np.uint8).astype("<u2").tobytes()
    assert "longer" in refusal(deep)
    padded = dataset()
    padded.PixelData += b"\0" * 4
    assert np.array_equal(picture(content(padded)), phantom().image)


def test_full_colour_that_is_called_subsampled_is_read_as_what_it_is() -> None:
    ds = files.with_photometric("YBR_FULL")
    expected = picture(content(ds))
    ds.PhotometricInterpretation = "YBR_FULL_422"
    assert np.array_equal(picture(content(ds)), expected)
    ds = files.with_photometric("YBR_FULL_422")
    expected = picture(content(ds))
    ds.PlanarConfiguration = 1  # has no meaning there
    assert np.array_equal(picture(content(ds)), expected)


def test_colours_of_another_photometric_interpretation_are_no_tint() -> None:
    grey = files.colours(dataset())
    frame = files.pillow_frame(grey, "JPEG")
    length = int.from_bytes(frame[4:6], "big")
    bare = frame[:2] + frame[4 + length :]  # without JFIF the decoder believes the header
    ds = compressed(files.with_photometric("RGB"), JPEG, [bare], "YBR_FULL")
    assert np.abs(picture(content(ds)).astype(int) - grey[48:, :96]).max() < 40
    ds.PhotometricInterpretation = "RGB"
    assert "black is coloured" in refusal(ds)
    ds.PhotometricInterpretation = "YBR_RCT"
    assert "JPEG 2000 only" in refusal(ds)
    native = files.with_photometric("RGB")
    native.PhotometricInterpretation = "YBR_ICT"
    assert "JPEG 2000 only" in refusal(native)
    whole = files.pillow_frame(grey, "JPEG2000", irreversible=False, mct=1, no_jp2=True)
    wrong = compressed(files.with_photometric("RGB"), J2K_LOSSLESS, [whole], "YBR_FULL")
    assert "black is coloured" in refusal(wrong)


def test_what_would_turn_black_to_white_is_refused() -> None:
    from pydicom.dataset import Dataset

    for photometric, shape in (("MONOCHROME2", "INVERSE"), ("MONOCHROME1", "IDENTITY")):
        ds = files.with_photometric(photometric)
        ds.PresentationLUTShape = shape
        assert f"is {shape}, but the image is {photometric}" in refusal(ds)
    ds = dataset()
    ds.RescaleSlope, ds.RescaleIntercept = -1, 255
    assert "negative RescaleSlope" in refusal(ds)
    ds = dataset()
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType, table.LUTData = [256, 0, 8], "US", bytes(range(255, -1, -1))
    table["LUTData"].VR = "OW"
    ds.ModalityLUTSequence = [table]
    assert "Modality LUT" in refusal(ds)


def test_palettes_that_are_not_whole() -> None:
    ds = files.with_photometric("PALETTE COLOR")
    red = np.frombuffer(ds.RedPaletteColorLookupTableData, "<u2")
    for channel in ("Red", "Green", "Blue"):
        data = np.frombuffer(ds[f"{channel}PaletteColorLookupTableData"].value, "<u2") >> 8
        setattr(ds, f"{channel}PaletteColorLookupTableData", data.astype("<u2").tobytes())
    assert "lower 8 only" in refusal(ds)
    ds = files.with_photometric("PALETTE COLOR")
    del ds.GreenPaletteColorLookupTableData
    assert "without a whole palette" in refusal(ds)
    ds.SegmentedGreenPaletteColorLookupTableData = np.concatenate([[0, 256], red]).astype("<u2").tobytes()
    assert "segmented" in refusal(ds)


def test_bombs_are_stopped_early(monkeypatch: pytest.MonkeyPatch) -> None:
    import struct
    import tracemalloc

    from sonobreast.data import dicom_header

    monkeypatch.setattr(dicom_header, "MAX_READS", 10_000)

    def at_patient(extra: bytes) -> bytes:
        data = content(dataset())
        place = data.index(b"\x10\x00\x10\x00PN")
        return data[:place] + extra + data[place:]

    sequence, item, end = b"\x09\x00\x10\x10SQ\0\0\xff\xff\xff\xff", b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0\0\0\0\0"
    few = sequence + (item + b"\0\0\0\0") * 1_000 + end
    assert np.array_equal(picture(at_patient(few)), phantom().image)
    many = at_patient(sequence + (item + b"\0\0\0\0") * 50_000 + end)
    runs = bytes([129, 0]) * 1_000_000
    rle = compressed(dataset(), RLE, [struct.pack("<16L", 1, 64, *[0] * 14) + runs])
    screens = dataset()
    screens.SequenceOfUltrasoundRegions = list(screens.SequenceOfUltrasoundRegions) * 2000
    for data, words in (
        (many, "more elements"),
        (content(rle), "more bytes in RLE"),
        (content(screens), "more than 64"),
    ):
        tracemalloc.start()
        assert words in refusal(data)
        assert tracemalloc.get_traced_memory()[1] < 12e6
        tracemalloc.stop()


# Identifiers


def test_pseudonyms_are_keyed_and_hide_the_identifier() -> None:
    ds = dataset()
    image = read(content(ds))
    assert image.patient == pseudonym("patient", ds.PatientID, KEY)
    assert image.patient == pseudonym("patient", f" {ds.PatientID.lower()} ", KEY)
    other = read_dicom(content(ds), key=b"another key entirely")
    for kind in ("patient", "study", "series", "image"):
        name = getattr(image, kind)
        assert name.startswith(kind + "-")
        assert name != getattr(other, kind)
        assert not any(s in name for s in SECRETS)
    assert pseudonym("patient", image.patient, KEY) == image.patient
    assert pseudonym("study", "1", KEY)[6:] != pseudonym("series", "1", KEY)[7:]
    assert pseudonym("patient", "Anonymous", KEY) == ""


def test_the_key_is_made_once_for_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SONOBREAST_HOME", str(tmp_path / "home"))
    first = pseudonym_key()
    assert len(first) == 64
    assert pseudonym_key() == first
    made = tmp_path / "home" / "pseudonym.key"
    assert stat.S_IMODE(made.stat().st_mode) == 0o600
    assert os.listdir(made.parent) == ["pseudonym.key"]
    monkeypatch.setenv("SONOBREAST_PSEUDONYM_KEY_FILE", str(tmp_path / "none"))
    with pytest.raises(SonobreastError, match="cannot be read"):
        pseudonym_key()
    (tmp_path / "none").write_text("a key of my own, long enough\n")
    assert pseudonym_key() == b"a key of my own, long enough"
    monkeypatch.setenv("SONOBREAST_PSEUDONYM_KEY", "short")
    with pytest.raises(SonobreastError, match="5 characters"):
        pseudonym_key()


def test_without_pydicom_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['pydicom'] = None\n"
        "from sonobreast.data.dicom import read_dicom\n"
        "from sonobreast.errors import SonobreastError\n"
        "try: read_dicom(b'', key=b'x' * 16)\n"
        "except SonobreastError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "sonobreast[dicom]" in done.stdout


def test_many_threads_leave_logs_and_warnings_as_they_were() -> None:
    from concurrent.futures import ThreadPoolExecutor

    library = logging.getLogger("pydicom")
    before = (library.level, library.propagate, list(warnings.filters))
    data = content(dataset())
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: picture(data), range(40)))
    assert all(np.array_equal(f, found[0]) for f in found)
    assert (library.level, library.propagate, list(warnings.filters)) == before


# Damage


def test_a_decoder_that_dies_takes_nothing_with_it(tmp_path: Path) -> None:
    from sonobreast.data import gdcm_worker

    save(dataset(), tmp_path / "a.dcm")
    files.run(files.tool("dcmcjpeg"), "+e1", tmp_path / "a.dcm", tmp_path / "b.dcm")
    assert np.array_equal(picture(tmp_path / "b.dcm"), phantom().image)
    assert gdcm_worker._worker is not None
    first = gdcm_worker._worker[1]
    os.kill(first.pid, signal.SIGSTOP)  # it hangs
    plain, gdcm_worker._SECONDS = gdcm_worker._SECONDS, 0.2
    try:
        assert "it is damaged" in refusal(tmp_path / "b.dcm")
    finally:
        gdcm_worker._SECONDS = plain
    assert np.array_equal(picture(tmp_path / "b.dcm"), phantom().image)
    assert gdcm_worker._worker[1].pid != first.pid


@pytest.fixture(scope="module")
def seeds() -> list[bytes]:
    """Small files of every storage, to be damaged."""
    from pydicom.pixels.encoders.base import get_encoder
    from pydicom.uid import UID

    made = [files.with_photometric(p) for p in PHOTOMETRICS]
    whole = files.colours(dataset())[..., 0]
    rgb = files.colours(dataset(), coloured=True)
    made.append(compressed(dataset(), JPEG, [files.pillow_frame(whole, "JPEG")]))
    made.append(compressed(files.with_photometric("RGB"), JPEG, [files.pillow_frame(rgb, "JPEG")], "YBR_FULL_422"))
    made.append(compressed(dataset(), J2K_LOSSLESS, [files.pillow_frame(whole, "JPEG2000", no_jp2=True)]))
    made.append(files.in_syntax(dataset(n_frames=3), files.NATIVE["deflated"]))
    made.append(files.in_syntax(dataset(), files.NATIVE["implicit"]))
    for uid in (RLE, JPEG_LS):
        if get_encoder(UID(uid)).is_available:
            ds = dataset(n_frames=2)
            ds.compress(uid, generate_instance_uid=False)
            made.append(ds)
    for ds in made:
        ds.PatientName, ds.PatientID, ds.InstitutionName = "SIMULATED^PATIENT", "P0001", "SIMULATED HOSPITAL"
    return [content(ds) for ds in made] + list(_lossless_jpeg(made[1]))


def _lossless_jpeg(ds: Any) -> list[bytes]:
    import shutil
    import tempfile

    if shutil.which("dcmcjpeg") is None:
        return []
    with tempfile.TemporaryDirectory() as folder:
        save(ds, Path(folder) / "a.dcm")
        files.run("dcmcjpeg", "+e1", Path(folder) / "a.dcm", Path(folder) / "b.dcm")
        return [(Path(folder) / "b.dcm").read_bytes()]


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, moved, doubled or lost; half of the time in the head, where every byte has a meaning."""
    work = bytearray(data)
    if rng.random() < 0.3:  # lengths stay right, so that a decoder gets to see the damage
        for _ in range(rng.randint(1, 12)):
            work[rng.randrange(len(work) // 2, len(work) - 12)] = rng.randrange(256)
        return bytes(work)
    for _ in range(rng.randint(1, 6)):
        end = min(len(work), 2600) if rng.random() < 0.5 else len(work)
        at = rng.randrange(128, max(129, end))
        kind = rng.randrange(6)
        if kind == 0:
            work[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            work[at : at + 2] = rng.choice([b"\0\0", b"\xff\xff", b"\xff\x7f", b"\0\x80"])
        elif kind == 2:
            del work[at : at + rng.randint(1, 40)]
        elif kind == 3:
            work[at:at] = work[at : at + rng.randint(1, 40)]
        elif kind == 4:
            work[at : at + 4] = rng.randbytes(4)
        else:
            work = work[: max(130, at)] if rng.random() < 0.3 else work
    return bytes(work)


def hammer(seeds: list[bytes], n: int, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> int:
    caplog.set_level(logging.DEBUG)
    refused = 0
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for number in range(n):
            rng = random.Random(number)
            data = damaged(rng.choice(seeds), rng)
            try:
                image = read(data, frames="ends")
                assert all(f.dtype == np.uint8 and f.ndim in (2, 3) for f in image.frames)
                text = " ".join(n.text for n in image.notes)
            except SonobreastError as error:
                refused += 1
                text = "".join(traceback.format_exception(error))
            assert not any(s in text for s in SECRETS), (number, text)
    texts = [str(w.message) for w in said] + [caplog.text, *capfd.readouterr()]
    assert not any(s in t for s in SECRETS for t in texts)
    assert not [w for w in said if "pydicom" in w.filename]
    return refused


def test_damaged_files_are_refused_in_a_sentence(
    seeds: list[bytes], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    assert hammer(seeds, 300, caplog, capfd) > 60


@pytest.mark.slow
def test_many_damaged_files(
    seeds: list[bytes], caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    assert hammer(seeds, 5000, caplog, capfd) > 1000
