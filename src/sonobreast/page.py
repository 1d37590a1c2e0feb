"""Pages: one HTML file that opens off-line, from a template of the package and the common style."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from sonobreast import __version__
from sonobreast.records import atomic

_HEADING = re.compile(r"<h2>(.*?)</h2>", re.DOTALL)
_CONTENTS = '<nav class="contents"></nav>'


def write_page(path: Path, template: str, content: Mapping[str, Any]) -> None:
    """Write a page.

    Parameters
    ----------
    path : Path
    template : str
        Relative to the package, for example ``evaluation/leakage.html.j2``. Text is escaped. Where it has an empty
        ``<nav class="contents"></nav>``, that becomes the table of contents (`with_contents`).
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
    environment.filters |= {
        "percent": _percent,
        "points": _points,
        "number": _number,
        "ratio": _ratio,
        "signed": _signed,
        "interval": _interval,
    }
    html = environment.get_template(template).render(version=__version__, **content)
    with atomic(path) as stream:
        stream.write(with_contents(html))


def with_contents(html: str) -> str:
    """Fill ``<nav class="contents"></nav>`` with links to all ``<h2>``, and put an anchor before each of these.

    An anchor is named by `anchor_of` its heading; a page without such a ``<nav>`` stays as it is.
    """
    if _CONTENTS not in html:
        return html
    titles = [re.sub(r"<.*?>", "", t) for t in _HEADING.findall(html)]
    links = " ".join(f'<a href="#{anchor_of(t)}">{_before(t)}</a>' for t in titles)
    html = _HEADING.sub(lambda m: f'<a class="anchor" id="{anchor_of(m[1])}"></a>{m[0]}', html)
    return html.replace(_CONTENTS, f'<nav class="contents"><strong>Contents</strong> {links}</nav>')


def anchor_of(title: str) -> str:
    """``What an alarm is worth: predictive values`` -> ``what-an-alarm-is-worth``."""
    return "-".join(re.findall(r"[a-z0-9]+", _before(re.sub(r"<.*?>", "", title)).casefold()))


def _before(title: str) -> str:
    """A title without what it says in brackets or after a colon."""
    return re.split(r" \(|:", title)[0].strip()


def _percent(value: float | None, decimals: int = 1) -> str:
    return "–" if value is None or value != value else f"{100 * value:.{decimals}f}"


def _points(value: float | None, decimals: int = 1) -> str:
    return "–" if value is None or value != value else _signed(100 * value, decimals)


def _signed(value: float | None, decimals: int = 3) -> str:
    if value is None or value != value:
        return "–"
    return f"{round(value, decimals) + 0.0:+.{decimals}f}".replace("-", "−")  # + 0.0: no "−0.000"


def _number(value: float | None, decimals: int = 3) -> str:
    return "–" if value is None or value != value else f"{value:.{decimals}f}"


def _ratio(value: float | None) -> str:
    return _number(value, 2)


def _interval(figure: Mapping[str, Any], percent: bool = False) -> str:
    low, high = figure["low"], figure["high"]
    if low is None or high is None:
        return "no interval"
    return f"{100 * low:.1f}–{100 * high:.1f}" if percent else f"{low:.2f}–{high:.2f}"
