"""Which part of an ultrasound screen is B-mode, and what it must not be (PS3.3 C.8.5.5, US Region Calibration).

Everything outside the region goes: names and dates that the scanner burned into the screen stand there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sonobreast.data.dicom_header import Header, refuse

Box = tuple[int, int, int, int]
_TISSUE, _COLOUR_FLOW = 1, 2
_TWO_D = 1
_CENTIMETRES = 3
_OTHER_MODES = {2: "M-mode", 3: "spectral Doppler", 4: "a waveform"}
_MODES = {0x02: "M-mode", 0x04: "CW Doppler", 0x08: "PW Doppler", 0x10: "colour Doppler"} | {
    0x20: "colour M-mode",
    0x40: "3D rendering",
    0x100: "power Doppler",
    0x200: "tissue characterisation",
}
_SMALLEST = 32
"""Pixels of a side; less is a scale bar or a damaged number."""
_SATURATED = 48
"""Difference between the strongest and the weakest channel from which a pixel counts as coloured."""
_COLOURED_SHARE = 0.03
"""Share of coloured pixels from which a picture is Doppler or elastography. Coloured marks
and probe signs fill 0.8 % of a picture of BUSI at most (16 of 780 have any)."""
_TINT_SPREAD = 10
"""Grey levels by which the colour of a tint may differ among pixels of the same brightness (JPEG, rounding)."""


@dataclass(frozen=True)
class Region:
    """A part of the screen.

    Attributes
    ----------
    number : int
        From the left among the B-mode regions, from 1.
    box : tuple of 4 int
        Left, top, right, bottom in pixels; right and bottom are not part of it.
    spacing_mm : tuple of 2 float, or None
        Millimetres between rows and between columns; None where the file does not calibrate it.
    leaves_picture : bool
        Whether the file places a part of it outside of the picture: then the picture was resized and the calibration
        was not.
    """

    number: int
    box: Box
    spacing_mm: tuple[float, float] | None = None
    leaves_picture: bool = False

    @property
    def area(self) -> int:
        """Pixels."""
        return (self.box[2] - self.box[0]) * (self.box[3] - self.box[1])


def tissue_regions(header: Header) -> tuple[Region, ...]:
    """The 2D B-mode regions without colour flow, from left to right, top to bottom; empty where the file names none.

    Raises
    ------
    SonobreastError
        If the screen shows M-mode or spectral Doppler, if colour flow lies on every B-mode region, or if there are
        regions but none is B-mode.
    """
    items = header.dataset.get("SequenceOfUltrasoundRegions") or ()
    if not items:
        _check_image_type(header.dataset.get("ImageType"))
        return ()
    formats = [_number(i, "RegionSpatialFormat") for i in items]
    for code, name in _OTHER_MODES.items():
        if code in formats:
            raise refuse(
                f"the screen shows {name} (RegionSpatialFormat (0018,6012) is {code}), not B-mode alone",
                "give the frozen B-mode image of the lesion without Doppler or M-mode",
            )
    flow: list[Box] = []
    tissue: dict[Box, Region] = {}  # by place: some scanners name a region twice, once for each of its uses
    nowhere = 0
    for item, form in zip(items, formats, strict=True):
        box, leaves = _box(item, header)
        kind = _number(item, "RegionDataType")
        if form != _TWO_D:
            continue
        if kind == _COLOUR_FLOW and box is not None:
            flow.append(box)
        elif kind == _TISSUE and box is None:
            nowhere += 1
        elif kind == _TISSUE and box is not None:
            twin = tissue.get(box)
            spacing = _calibration(item)
            if twin is not None:
                spacing = (spacing or twin.spacing_mm) if agree(twin.spacing_mm, spacing) else None
            tissue[box] = Region(0, box, spacing, leaves)
    clear = [t for t in tissue.values() if not any(_overlap(t.box, f) for f in flow)]
    if not clear:
        if flow:
            what = "colour flow lies on the B-mode image (RegionDataType (0018,6014) is 2): colour or power Doppler"
        elif nowhere:
            raise refuse(
                f"the B-mode region lies outside of the picture or is smaller than {_SMALLEST} x {_SMALLEST} pixels "
                "(RegionLocationMinX0 (0018,6018) and the following)",
                "the picture was cut or resized after the scan, or the file is damaged: export the image again",
            )
        else:
            what = f"none of the {len(items)} ultrasound region(s) is 2D tissue (RegionDataType (0018,6014) is 1)"
        raise refuse(what, "give the frozen B-mode image of the lesion without Doppler")
    ordered = sorted(clear, key=lambda r: (r.box[0], r.box[1]))
    return tuple(replace(region, number=number) for number, region in enumerate(ordered, start=1))


def pick(regions: Sequence[Region], which: str | int) -> Region | None:
    """One of the B-mode regions.

    Parameters
    ----------
    regions : sequence of Region, as `tissue_regions` gives them
    which : {"largest"} or int
        The largest one (of equals the left one: a split screen shows the same lesion twice), or the n-th from the
        left, from 1.

    Returns
    -------
    Region or None
        None where the file names no regions.

    Raises
    ------
    SonobreastError
        If there are fewer regions.
    """
    if not regions:
        if which in ("largest", 1):
            return None
        raise refuse(f"there is no B-mode region {which}: the file names no regions", "ask for the largest region")
    if which == "largest":
        return max(regions, key=lambda r: r.area)  # the first of equals
    if not isinstance(which, int) or not 1 <= which <= len(regions):
        raise refuse(f"there is no B-mode region {which}, there are {len(regions)}", "ask for another region")
    return regions[which - 1]


def _number(item: Any, keyword: str) -> int | None:
    value = item.get(keyword)
    return value if isinstance(value, int) else None


def _box(item: Any, header: Header) -> tuple[Box | None, bool]:
    """The region within the picture, and whether the file's leaves it; both corners that the file gives belong to it.

    None where nothing is left. One column or row too many is how some scanners count.
    """
    corners = [_number(item, f"RegionLocation{k}") for k in ("MinX0", "MinY0", "MaxX1", "MaxY1")]
    if any(c is None for c in corners):
        return None, False
    left, top, right, bottom = (c or 0 for c in corners)
    leaves = right > header.columns or bottom > header.rows
    right, bottom = min(header.columns, right + 1), min(header.rows, bottom + 1)
    if right - left < _SMALLEST or bottom - top < _SMALLEST:
        return None, leaves
    return (left, top, right, bottom), leaves


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _calibration(item: Any) -> tuple[float, float] | None:
    if (_number(item, "PhysicalUnitsXDirection"), _number(item, "PhysicalUnitsYDirection")) != (_CENTIMETRES,) * 2:
        return None
    return plausible(*(10.0 * abs(float(item.get(f"PhysicalDelta{d}") or 0.0)) for d in ("Y", "X")))


def plausible(row: float, column: float) -> tuple[float, float] | None:
    """A pixel spacing, or None where no scanner has it: a pixel is between a micrometre and a centimetre."""
    return (row, column) if all(1e-3 < v < 10.0 for v in (row, column)) else None


def agree(one: tuple[float, float] | None, other: tuple[float, float] | None) -> bool:
    """Whether two spacings differ by no more than 2 %; what is not stated contradicts nothing."""
    if one is None or other is None:
        return True
    return all(abs(a - b) <= 0.02 * max(a, b) for a, b in zip(one, other, strict=True))


def _check_image_type(values: Any) -> None:
    """Value 4 of ImageType sums the modes on the screen (PS3.3 C.8.5.6.1.1), where there are no regions to ask."""
    several = [] if values is None or isinstance(values, str) else list(values)
    try:
        modes = int(several[3], 16) if len(several) > 3 else 0
    except ValueError:
        return
    shown = [name for bit, name in _MODES.items() if modes & bit]
    if shown:
        raise refuse(
            f"the screen shows {' and '.join(shown)} (value 4 of ImageType (0008,0008)), not B-mode alone",
            "give the frozen B-mode image of the lesion",
        )


def without_colour(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A B-mode picture as it is, a tinted one as grey; Doppler and elastography are refused.

    A tint (sepia, blue) gives pixels of the same brightness the same colour. Flow and stiffness do not.

    Parameters
    ----------
    picture : ndarray, uint8, (H, W) or (H, W, 3)

    Raises
    ------
    SonobreastError
        If more than 3 % of the pixels are coloured and it is no tint.
    """
    if picture.ndim == 2:
        return picture
    strongest = np.maximum(np.maximum(picture[..., 0], picture[..., 1]), picture[..., 2])
    weakest = np.minimum(np.minimum(picture[..., 0], picture[..., 1]), picture[..., 2])
    share = float(np.mean((strongest - weakest) >= _SATURATED))
    if share < _COLOURED_SHARE:
        return picture
    if _is_tint(picture):
        low, high = np.percentile(picture.reshape(-1, 3)[:: max(1, picture.size // 600_000)], (1, 99), axis=0)
        if np.any((high >= _SATURATED) & (low > high / 2)):
            raise refuse(
                "black is coloured: the colours are not those of the PhotometricInterpretation (0028,0004) that the "
                "file states",
                "the header was changed without the pixels, or the other way round: export the image again",
            )
        return np.asarray((picture @ np.array([0.299, 0.587, 0.114]) + 0.5).astype(np.uint8))
    raise refuse(
        f"{share:.0%} of the pixels are coloured: this is Doppler or elastography, not B-mode",
        "give the frozen B-mode image of the lesion without colour",
    )


def _is_tint(picture: NDArray[np.uint8]) -> bool:
    flat = picture.reshape(-1, 3)[:: max(1, picture.shape[0] * picture.shape[1] // 200_000)].astype(np.int64)
    level = flat.sum(axis=1) // 3
    count = np.maximum(np.bincount(level, minlength=256), 1)
    far = np.zeros(len(flat), bool)
    for a, b in ((0, 1), (2, 1)):
        tone = flat[:, a] - flat[:, b]
        mean = np.bincount(level, tone, minlength=256) / count
        far |= np.abs(tone - mean[level]) > _TINT_SPREAD
    return bool(far.mean() < _COLOURED_SHARE / 2)
