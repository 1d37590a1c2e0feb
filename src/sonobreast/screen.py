"""What a person sees on the terminal: a progress line, tables, sentences."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sonobreast.data.audit import Audit
    from sonobreast.data.manifest import Manifest
    from sonobreast.evaluation.comparison import Family
    from sonobreast.models.listing import Listed
    from sonobreast.serving.about import Variant
    from sonobreast.serving.bundle import Bundle
    from sonobreast.serving.export import Exported
    from sonobreast.serving.inference import Outcome
    from sonobreast.serving.self_test import Checked
    from sonobreast.training.reporter import Reporter


def console() -> Any:
    from rich.console import Console

    return Console()


class Progress:
    """A progress line with the time left on a terminal; silence where the output goes to a file or a pipe."""

    def __enter__(self) -> tuple[Callable[[str, int], None], Callable[..., None], Callable[[str], None]]:
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.bar.start()
        self.task: Any = None

        def stage(title: str, total: int) -> None:
            if self.task is not None:
                self.bar.update(self.task, visible=False)
            self.task = self.bar.add_task(escape(title), total=total or None)

        def advance(steps: int = 1) -> None:
            if self.task is not None:
                self.bar.advance(self.task, steps)

        def say(text: str) -> None:
            if console.is_terminal or not text.startswith("starting"):
                self.bar.console.print(escape(text), highlight=False, soft_wrap=True)

        return stage, advance, say

    def __exit__(self, *_: object) -> None:
        self.bar.stop()


def staged(stage: Callable[[str, int], None], advance: Callable[..., None]) -> Callable[[str, int, int], None]:
    """A progress function for work that names its stages: (stage, done, of how many)."""
    current, seen = "", 0

    def progress(name: str, done: int, total: int) -> None:
        nonlocal current, seen
        if name != current:
            stage(name, total)
            current, seen = name, 0
        advance(done - seen)
        seen = done

    return progress


def reporter(stage: Callable[[str, int], None], advance: Callable[..., None], say: Callable[[str], None]) -> Reporter:
    from sonobreast.training.reporter import Reporter

    class Screen(Reporter):
        """Shows a study on the terminal."""

        done = 0
        total = 0

        def stage(self, title: str, total: int) -> None:
            runs = f"  [{self.done}/{self.total} runs]" if self.total else ""
            stage(title + runs, total)

        def advance(self, steps: int = 1) -> None:
            advance(steps)

        def runs(self, done: int, total: int) -> None:
            self.done, self.total = done, total

        def say(self, text: str) -> None:
            say(text)

    return Screen()


def print_manifest(manifest: Manifest, file: Path) -> None:
    from rich.table import Table

    screen = console()
    from sonobreast.data.catalogue import DATA_SETS
    from sonobreast.data.labels import advice, unknown_labels
    from sonobreast.evaluation.published import class_counts

    public = DATA_SETS.get(manifest.layout)
    layouts = {"busi": "BUSI layout", "folders": "a folder for each class", "csv": "CSV"}
    title = layouts.get(manifest.layout) or (re.split(r",| \(", public.title)[0] if public else manifest.layout)
    table = Table(title=f"{title}: {len(manifest.cases)} images", title_justify="left")
    table.add_column("class")
    for name in ("images", "masks", "Aulia 2026, Table 1"):
        table.add_column(name, justify="right")
    complete = public is not None and manifest.counts == public.classes
    busi = complete and manifest.layout == "busi"
    printed = (class_counts("aulia2026") or {}) if busi else {}
    for label, n in manifest.counts.items():
        masks = sum(len(c.masks) for c in manifest.cases if c.label == label)
        table.add_row(label, str(n), str(masks), str(printed.get(label, "")))
    total = sum(len(c.masks) for c in manifest.cases)
    table.add_row("total", str(len(manifest.cases)), str(total), str(printed.get("total", "")), style="bold")
    if not busi:
        table.columns.pop()
    screen.print(table)
    if busi and printed.get("benign") == 487:
        screen.print("The paper prints 487 benign images; its own total of 780 needs 437 (487 is a misprint).")
    if public is not None and not complete:
        whole = ", ".join(f"{n} {c}" for c, n in public.classes.items())
        name = "BUSI" if manifest.layout == "busi" else "data set"
        screen.print(f"The complete {name} has {whole}: this is a part of it, or other data in its layout.")
    print_known(manifest)
    patients = {c.patient for c in manifest.cases if c.patient}
    groups = len({c.group for c in manifest.cases})
    if patients:
        screen.print(f"{len(patients)} patients; splits keep each patient's images together.")
    elif groups < len(manifest.cases):
        screen.print(f"{groups} groups; splits keep each group's images together.")
    else:
        screen.print(
            "No patients or groups are known: each image counts as independent, copies of one picture included.",
            style="yellow",
        )
    unknown = unknown_labels(manifest.cases)
    if unknown:
        screen.print(advice(unknown), style="yellow", highlight=False, markup=False, soft_wrap=True)
    print_problems(manifest)
    screen.print(f"wrote {file}", highlight=False, soft_wrap=True)


def print_known(manifest: Manifest) -> None:
    """What else is known of the images, where it tells sites apart: a line each."""
    from collections import Counter

    for name, key in (("BI-RADS", "birads"), ("device", "device"), ("verification", "verification")):
        values = Counter(c.extra.get(key, "") for c in manifest.cases)
        unknown = values.pop("", 0)
        if values and len(values) <= 12:
            words = [f"{v} ({n})" for v, n in sorted(values.items())] + [f"not given ({unknown})"] * bool(unknown)
            console().print(f"{name}: {', '.join(words)}", highlight=False, markup=False, soft_wrap=True)
    spacing = sorted(c.spacing_mm for c in manifest.cases if c.spacing_mm is not None)
    if spacing:
        console().print(
            f"pixel spacing: known for {len(spacing)} of {len(manifest.cases)} images, {spacing[0]:.3f} to "
            f"{spacing[-1]:.3f} mm",
            highlight=False,
        )


def print_problems(manifest: Manifest) -> None:
    from rich.markup import escape

    screen = console()
    kinds: dict[tuple[str, str], list[Any]] = {}
    for p in manifest.problems:
        kinds.setdefault((p.severity, p.code), []).append(p)
    for (severity, _), problems in kinds.items():
        style = "red" if severity == "error" else "yellow"
        screen.print(f"{len(problems)} file(s): {escape(problems[0].what)}", style=style, highlight=False)
        for p in problems[:5]:
            screen.print(f"  {escape(p.file)}", highlight=False, soft_wrap=True)
        if len(problems) > 5:
            screen.print(f"  ... {len(problems) - 5} more in problems.csv")
        screen.print(f"  what to do: {escape(problems[0].remedy)}", highlight=False)


def print_audit(result: Audit, out: Path) -> None:
    from rich.markup import escape
    from rich.table import Table

    from sonobreast.data.findings import by_gravity

    screen = console()
    table = Table(title=f"{len(result.manifest.cases)} images, {result.seconds:.0f} s", title_justify="left")
    for name in ("result", "check", "what was found"):
        table.add_column(name)
    styles = {"error": "bold red", "warning": "yellow", "note": "cyan"}
    for f in by_gravity(result.findings):
        shown = f.severity if f.status == "found" else f.status
        style = styles[f.severity] if f.status == "found" else "dim"
        table.add_row(shown, f.code, escape(f.what), style=style)
    screen.print(table)
    n = sum(r.exclude == "yes" for r in result.exclusions)
    images = sum(len(g) for g in result.grouped.values())
    screen.print(
        f"{len(result.grouped)} groups of two or more hold {images} images; {n} images suggested for exclusion."
    )
    screen.print(f"wrote {out / 'audit.html'}", highlight=False, soft_wrap=True)


def print_results(out: Path) -> None:
    from rich.table import Table

    from sonobreast.records import read_json

    metrics = read_json(out / "metrics.json")
    table = Table(title="test accuracy, %", title_justify="left")
    for name, justify in (
        ("network", "left"),
        ("optimizer", "left"),
        ("accuracy", "right"),
        ("95 % interval", "right"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("images", justify="right")
    for c in metrics["configurations"]:
        a = c["accuracy"]
        interval = "none" if a["low"] is None else f"{100 * a['low']:.1f}-{100 * a['high']:.1f}"
        table.add_row(c["architecture"], c["optimizer"], f"{100 * a['estimate']:.2f}", interval, str(c["n"]))
    console().print(table)


def print_comparison(family: Family) -> None:
    from rich.markup import escape
    from rich.table import Table

    from sonobreast.evaluation import comparison_text

    screen = console()
    for title, header, rows, notes in comparison_text.texts(family):
        table = Table(title=escape(title), title_justify="left")
        for i, name in enumerate(header):
            table.add_column(name, justify="right" if i else "left", no_wrap=i > 0)
        for row in rows:
            table.add_row(*map(escape, row))
        screen.print(table)
        for note in notes:
            screen.print(note, highlight=False, markup=False, soft_wrap=True)
    for sentence in comparison_text.sentences(family):
        screen.print(sentence, highlight=False, markup=False, soft_wrap=True)


def print_models(listed: Sequence[Listed]) -> None:
    from rich.markup import escape
    from rich.table import Table

    screen = console()
    if not screen.is_terminal:
        screen.width = 160
    table = Table(title="networks by name; any other name of timm can be given, too", title_justify="left")
    for name in ("name", "network in timm", "parameters", "MACs", "weights", "their licence", "segments", "paper"):
        table.add_column(name, justify="right" if name in ("parameters", "MACs") else "left", no_wrap=name == "name")
    for m in listed:
        table.add_row(
            escape(m.name),
            m.timm_name or "–",
            "–" if m.parameters is None else f"{m.parameters / 1e6:.2f} M",
            "–" if m.macs is None else f"{m.macs / 1e9:.2f} G" + ("" if m.size_px == 224 else f" ({m.size_px} px)"),
            m.weights,
            escape(m.licence) + (", not for commercial use" if m.non_commercial else ""),
            "always" if m.kind == "joint" else "joint:" if m.segment.possible else "no",
            escape(m.paper),
            style="yellow" if m.non_commercial else None,
        )
    screen.print(table)
    notes = [
        "Parameters and MACs (multiplications with addition, one image of 224 px) are those of the backbone, without "
        "classifier and decoder. joint: before a name gives a network that classifies and segments.",
        *_together("cannot segment: ", ((m.name, m.segment.why_not) for m in listed)),
        *_together("cannot classify: ", ((m.name, m.classify.why_not) for m in listed)),
        *_together("cannot be exported: ", ((m.name, m.export.why_not) for m in listed)),
        *_together("", ((m.name, f"images of {m.size_px} px only" if m.only_size else "") for m in listed)),
        *(f"{m.name}: {m.remark}." for m in listed if m.remark),
    ]
    for note in notes:
        screen.print(note, highlight=False, markup=False, soft_wrap=True)


def _together(what: str, reasons: Iterable[tuple[str, str]]) -> list[str]:
    """One sentence a reason, with all names that it holds for."""
    names: dict[str, list[str]] = {}
    for name, why in reasons:
        if why:
            names.setdefault(why, []).append(name)
    return [f"{', '.join(found)}: {what}{why}." for why, found in names.items()]


def say_report(report: Path) -> None:
    console().print(f"report: {report}", highlight=False, soft_wrap=True)


def print_exported(done: Exported) -> None:
    bundle, screen = done.bundle, console()
    about = bundle.about
    parity = about.parity
    images = f"{parity.images} {'simulated ' if parity.simulated else ''}images"
    size = sum(f.bytes for f in about.files.values()) / 1e6
    lines = [
        f"{about.title}: {len(about.members)} network(s), {size:.1f} MB",
        f"largest difference from PyTorch: {parity.largest_difference:.1e} in probability, on {images}",
        f"training domain: {about.domain_in_words}",
        *(f"{run}: no Grad-CAM; {why}" for run, why in done.no_map.items()),
        *(f"{run}: no statistics of its training images; {why}" for run, why in done.no_domain.items()),
        *(f"needs {name} where it is used, to fill burned-in marks" for name in about.requirements),
        *map(_variant_sentence, about.variants),
        *(f"variant {name}: not written; {why}" for name, why in done.refused.items()),
        f"fingerprint: {bundle.fingerprint}",
        f"wrote {bundle.folder}",
        f"{about.intended_use[0].upper()}{about.intended_use[1:]}.",
    ]
    for line in lines:
        screen.print(line, highlight=False, markup=False, soft_wrap=True)


def _variant_sentence(one: Variant) -> str:
    seen = f" ({one.seen_in_training} of them seen in training by a member)" if one.seen_in_training else ""
    slower = " (no faster, only smaller)" if one.milliseconds >= one.milliseconds_float32 else ""
    return (
        f"variant {one.name}: {one.milliseconds:.1f} ms an image here, the network itself "
        f"{one.milliseconds_float32:.1f} ms{slower}; accuracy {100 * one.accuracy_difference:+.1f} points "
        f"({100 * one.low:+.1f} to {100 * one.high:+.1f}), {100 * one.agreement:.1f} % of decisions alike, on "
        f"{one.images} test images{seen}"
    )


def print_checked(found: Checked) -> None:
    screen = console()
    screen.print(
        f"the bundle is as it was written, and its self-test differs by {found.difference:.1e} in probability",
        highlight=False,
        soft_wrap=True,
    )
    domain = found.bundle.about.domain_in_words
    screen.print(f"training domain: {domain}", highlight=False, markup=False, soft_wrap=True)
    screen.print(f"fingerprint: {found.bundle.fingerprint}", highlight=False, soft_wrap=True)
    screen.print("Compare it with the one that the maker of the bundle states.", highlight=False)


def print_inference(outcome: Outcome, out: Path, *, quiet: bool = False) -> None:
    from rich.console import Console

    from sonobreast.serving.inference import problems_file

    screen = Console(stderr=quiet)
    kept = f", {outcome.kept} kept from before" if outcome.kept else ""
    screen.print(f"{outcome.predicted} images predicted{kept}", highlight=False)
    if outcome.masks:
        screen.print(f"{outcome.masks} files are masks by name and were not read", highlight=False)
    if outcome.problems:
        screen.print(
            f"{outcome.problems} files were left out: see {problems_file(out)}", style="yellow", soft_wrap=True
        )
    screen.print(f"wrote {out}", highlight=False, markup=False, soft_wrap=True)
    screen.print("Research use only, not a medical device.", style="yellow")


def say_serving(bundle: Bundle, address: str, locked: bool, plain: bool) -> None:
    screen = console()
    lines = [
        f"{bundle.about.title}, fingerprint {bundle.fingerprint}",
        f"serving on {address}" + ("; a key is needed" if locked else ", for this machine only"),
        *(
            ["Images and keys travel unencrypted: put a TLS proxy before it, or give --tls-certificate."]
            if plain
            else []
        ),
        f"{bundle.about.intended_use[0].upper()}{bundle.about.intended_use[1:]}. Stop with Ctrl-C.",
    ]
    for line in lines:
        screen.print(line, highlight=False, markup=False, soft_wrap=True)
