"""What long work tells whoever waits for it; what becomes of it is the listener's affair."""

from __future__ import annotations

from collections.abc import Callable


class Reporter:
    """What a study tells while it runs; the base class keeps silent."""

    def stage(self, title: str, total: int) -> None:
        """A stage of ``total`` steps begins."""

    def advance(self, steps: int = 1) -> None:
        """Steps of this stage are done."""

    def runs(self, done: int, total: int) -> None:
        """So many runs of the study are finished."""

    def say(self, text: str) -> None:
        """A sentence for the person who waits."""


def stages(reporter: Reporter) -> Callable[[str, int, int], None]:
    """A progress function for work that names its stages: (stage, done, of how many)."""
    current, seen = "", 0

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal current, seen
        if stage != current:
            reporter.stage(stage, total)
            current, seen = stage, 0
        reporter.advance(done - seen)
        seen = done

    return progress
