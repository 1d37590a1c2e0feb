"""One picture of many phantoms: by class, each without and with the outline of its mask, for a person to look at."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from sonobreast.data.atomic import cannot_write
from sonobreast.data.lesion import LABELS, Descriptors, Label
from sonobreast.data.phantom import Phantom, simulate, slot
from sonobreast.errors import SonobreastError

_GAP = 6
_CAPTION = 44
_BACKGROUND, _INK, _OUTLINE = (24, 24, 28), (235, 235, 235), (255, 196, 0)


def _indices(label: Label, seed: int) -> Iterator[int]:
    """Images of a class, one a patient."""
    seen: set[int] = set()
    for index in count():
        where = slot(index, seed=seed)
        if where.label == label and where.patient not in seen:
            seen.add(where.patient)
            yield index


def outlined(phantom: Phantom) -> Image.Image:
    """The image in colour with the border of its mask drawn just outside the lesion."""
    picture = np.repeat(phantom.image[..., None], 3, axis=2)  # (H, W, 3)
    picture[ndimage.binary_dilation(phantom.mask) & ~phantom.mask] = _OUTLINE
    return Image.fromarray(picture)


def _caption(descriptors: Descriptors | None) -> str:
    """BI-RADS terms in three lines."""
    if descriptors is None:
        return "no lesion"
    d = descriptors
    first = f"{d.shape}, {d.margin}, {d.orientation.replace('_', ' ')}"
    echo = "complex cystic and solid" if d.echo_pattern == "complex_cystic_solid" else d.echo_pattern
    return f"{first}\n{echo}{', halo' if d.halo else ''}, {d.size_mm:.0f} mm\nposterior: {d.posterior}"


def contact_sheet(out: Path, *, n: int = 4, seed: int = 0, size: int = 256) -> Path:
    """Draw ``n`` phantoms of each class, one a patient, into one PNG.

    Parameters
    ----------
    out : Path
        The picture to write, ``.png``.
    n : int
        Phantoms of each class, 1 or more.
    seed, size : int
        As in ``phantom.simulate``; captions want 200 pixels or more.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    SonobreastError
        n < 1, a seed or size out of range, or a picture that cannot be written.
    """
    if n < 1:
        raise SonobreastError(f"{n} images a class were asked for", remedy="ask for 1 or more")
    font = ImageFont.load_default(size=11)
    tall = 2 * size + _CAPTION + 3 * _GAP
    sheet = Image.new("RGB", (n * (size + _GAP) + _GAP, len(LABELS) * (tall + 18)), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for row, label in enumerate(LABELS):
        top = row * (tall + 18)
        draw.text((_GAP, top + 3), f"{label} (simulated)", fill=_INK, font=ImageFont.load_default(size=13))
        for column, index in enumerate(islice(_indices(label, seed), n)):
            phantom = simulate(index, seed=seed, size=size)
            left = _GAP + column * (size + _GAP)
            sheet.paste(Image.fromarray(phantom.image), (left, top + 20))
            sheet.paste(outlined(phantom), (left, top + 20 + size + _GAP))
            draw.text(
                (left, top + 22 + 2 * size + _GAP), _caption(phantom.descriptors), fill=_INK, font=font, spacing=2
            )
    try:
        sheet.save(out, format="PNG")
    except OSError as problem:
        raise cannot_write(problem, out) from problem
    return out
