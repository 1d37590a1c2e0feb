"""Pages: one HTML file that opens off-line, from a template of the package and the common style."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from sonobreast import __version__
from sonobreast.records import atomic


def write_page(path: Path, template: str, content: Mapping[str, Any]) -> None:
    """Write a page.

    Parameters
    ----------
    path : Path
    template : str
        Relative to the package, for example ``evaluation/leakage.html.j2``. Text is escaped.
    content : mapping
        A name that the template uses and that is not here is an error.

    Raises
    ------
    SonobreastError
        If the file cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"points": _points, "percent": _percent, "number": _number}
    html = environment.get_template(template).render(version=__version__, **content)
    with atomic(path) as stream:
        stream.write(html)


def _missing(value: float | None) -> bool:
    return value is None or value != value


def _percent(value: float | None, decimals: int = 1) -> str:
    return "–" if value is None or _missing(value) else f"{100 * value:.{decimals}f}"


def _points(value: float | None, decimals: int = 1) -> str:
    return "–" if value is None or _missing(value) else f"{100 * value:+.{decimals}f}".replace("-", "−")


def _number(value: float | None, decimals: int = 3) -> str:
    return "–" if value is None or _missing(value) else f"{value:.{decimals}f}"
