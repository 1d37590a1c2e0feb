"""What an audit can find: stable codes, how grave each is, and what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from sonobreast.records import Row

Severity = Literal["error", "warning", "note"]
Status = Literal["found", "passed", "not applicable"]


class Kind(NamedTuple):
    """One thing that is looked for."""

    title: str
    severity: Severity
    meaning: str
    remedy: str


KINDS: dict[str, Kind] = {
    "unreadable-image": Kind(
        "Files that cannot be read",
        "error",
        "The file is damaged or no image.",
        "replace it with an undamaged copy, or remove it",
    ),
    "mask-as-image": Kind(
        "Masks among the images",
        "error",
        "A black-and-white picture lies where scans are expected; as a scan it would teach the network nonsense.",
        "name masks NAME_mask.png after their image, or remove them",
    ),
    "label-conflict": Kind(
        "One picture, two labels",
        "error",
        "Copies of one picture carry different labels: at least one is wrong.",
        "ask who made the data; until then leave all of them out (they are in exclusions.csv)",
    ),
    "identical-file": Kind(
        "The same file twice",
        "warning",
        "Files with the same bytes. Divided image by image, one may be in training and the other in test.",
        "split by group (the default), or leave all but one out",
    ),
    "identical-pixels": Kind(
        "The same pixels twice",
        "warning",
        "Different files that show exactly the same picture.",
        "split by group (the default), or leave all but one out",
    ),
    "near-duplicate": Kind(
        "Near-duplicates",
        "warning",
        "The same frame, shifted, cropped, re-scaled, mirrored, re-windowed or with other overlays.",
        "split by group (the default), or leave all but one out",
    ),
    "same-view": Kind(
        "Other frames of one view",
        "warning",
        "Very probably the same patient, a moment apart: not a copy, but not independent either.",
        "split by group (the default)",
    ),
    "copy-across-patients": Kind(
        "One picture, two patients",
        "error",
        "Copies of one picture are given to different patients.",
        "correct the patient; until then splits treat them as one",
    ),
    "large-group": Kind(
        "Groups of more than 10 images",
        "warning",
        "So many pictures of one patient weigh heavily in the subset they fall into; or a false link joined strangers.",
        "look at the group on this page; correct it in groups.csv and give that with --groups",
    ),
    "patients-unknown": Kind(
        "No patient identifiers",
        "warning",
        "Different pictures of one patient cannot be kept together where nobody says whose they are; only copies can.",
        "add a column patient, if the source has one",
    ),
    "mask-unreadable": Kind("Masks that cannot be read", "error", "The mask is damaged.", "replace the mask"),
    "mask-size": Kind(
        "Masks of another size than their image",
        "error",
        "The outline would lie in the wrong place; the image is used without it.",
        "export the mask at the image's size",
    ),
    "mask-missing": Kind(
        "Images without a mask",
        "warning",
        "They serve for classification, not for segmentation.",
        "add NAME_mask.png beside the image",
    ),
    "mask-empty": Kind(
        "Empty masks of images with a lesion",
        "error",
        "The label says lesion, the mask shows none.",
        "draw the lesion, or correct the label",
    ),
    "mask-not-empty-normal": Kind(
        "Masks of normal images that are not empty",
        "error",
        "The label says no lesion, the mask shows one.",
        "empty the mask, or correct the label",
    ),
    "mask-shared": Kind(
        "One mask for two images",
        "warning",
        "Two images have exactly the same outline. For copies of one picture that is right; for others it is not.",
        "where the images are no copies, draw the right mask",
    ),
    "burned-in-text": Kind(
        "Burned-in words",
        "note",
        "Words in the picture can give away the class or the place, and can name a patient.",
        "check that no name is among them; see the short-cut checks below",
    ),
    "burned-in-marks": Kind(
        "Calipers and arrows",
        "note",
        "Marks are set where somebody saw a lesion: a network can learn the mark instead of the lesion.",
        "see the short-cut checks below",
    ),
    "blanked-area": Kind(
        "Blanked areas",
        "note",
        "Rectangles of one grey value where something was painted over.",
        "see the short-cut checks below",
    ),
    "colour-overlay": Kind(
        "Coloured overlays",
        "warning",
        "Doppler or elastography: not B-mode.",
        "leave them out, unless such pictures are what the model is for",
    ),
    "axilla": Kind(
        "Perhaps the axilla",
        "note",
        "The burned-in words point to the axilla: lymph nodes, not the breast. A hint: on BUSI all 29 pictures it "
        "named carry the word, and none of 139 others that were looked at; unlabelled pictures are not recognised.",
        "look at them; leave them out, if the study is on the breast (change no to yes in exclusions.csv)",
    ),
    "shortcut-size": Kind(
        "The class shows in the picture's size",
        "warning",
        "A classifier that knows width and height alone tells the classes apart better than chance.",
        "never give a network these data without resizing; compare with figures on another hospital's images",
    ),
    "shortcut-border": Kind(
        "The class shows in the border",
        "warning",
        "A classifier that knows the margins alone tells the classes apart better than chance.",
        "crop the margins; compare with figures on another hospital's images",
    ),
    "shortcut-device": Kind(
        "The class shows in the device",
        "warning",
        "A classifier that knows the scanner alone tells the classes apart better than chance.",
        "report figures for each device; balance the devices over the classes",
    ),
    "shortcut-overlay": Kind(
        "The class shows in the overlays",
        "warning",
        "A classifier that knows words, calipers and colours alone tells the classes apart better than chance.",
        "compare with figures on images without overlays, and on another hospital's images",
    ),
}


class Finding(Row):
    """One check of an audit and what it gave.

    Attributes
    ----------
    code : str
        Stable; a key of `KINDS`.
    status : {"found", "passed", "not applicable"}
    severity : {"error", "warning", "note"}
    title, meaning, remedy : str
    what : str
        In one sentence, with the figures.
    files : tuple of tuple of str
        The files concerned; those that belong together (a group, an image and its mask) in one tuple.
    figures : dict of float
        What was measured.
    """

    code: str
    status: Status
    severity: Severity
    title: str
    meaning: str
    remedy: str
    what: str
    files: tuple[tuple[str, ...], ...] = ()
    figures: Mapping[str, float] = {}


def by_gravity(findings: Sequence[Finding]) -> list[Finding]:
    """Errors, warnings, notes, then what passed and what did not apply; within each in the order of the checks."""
    order = ("error", "warning", "note", "passed", "not applicable")
    return sorted(findings, key=lambda f: order.index(f.severity if f.status == "found" else f.status))


def finding(
    code: str,
    what: str,
    *,
    files: tuple[tuple[str, ...], ...] = (),
    figures: Mapping[str, float] | None = None,
    status: Status | None = None,
) -> Finding:
    """A finding of a known kind; without ``status`` it is found where it names files, else passed."""
    kind = KINDS[code]
    return Finding(
        code=code,
        status=status or ("found" if files else "passed"),
        severity=kind.severity,
        title=kind.title,
        meaning=kind.meaning,
        remedy=kind.remedy,
        what=what,
        files=files,
        figures=figures or {},
    )
