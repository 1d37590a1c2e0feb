"""The structured report: TID 1500 with one measurement group, its algorithm, and what it must not be used for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sonobreast.serving.dicom_codes import SCHEME, Algorithm, concept, private, series_number

_CLASSES = {"benign": ("30807003", "Benign"), "malignant": ("21594007", "Malignant"), "normal": ("17621005", "Normal")}
_LONGEST_COMMENT = 1024


def report(
    origin: Any,
    derived: Any | None,
    segmentation: Any | None,
    frame: int,
    probabilities: Mapping[str, float],
    length_mm: float | None,
    algorithm: Algorithm,
    comments: Sequence[str],
) -> Any:
    """Write what was computed as a Comprehensive SR, preliminary and not verified.

    Parameters
    ----------
    origin : pydicom Dataset
        The source, as `sonobreast.serving.dicom_source.read_source` gives it.
    derived, segmentation : pydicom Dataset or None
        The image that the segmentation belongs to, where it is not the source; the segmentation.
    frame : int
        Which frame of the source, from 1.
    probabilities : mapping
        Class to probability; the largest one is the finding.
    length_mm : float or None
        Long axis of the lesion.
    algorithm : Algorithm
    comments : sequence of str

    Returns
    -------
    highdicom.sr.ComprehensiveSR
    """
    import highdicom as hd
    from highdicom.coding_schemes import CodingSchemeIdentificationItem

    from sonobreast import __version__

    device = hd.sr.ObserverContext(
        observer_type=concept("121007", "DCM", "Device"),
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=hd.UID(), name="sonobreast", manufacturer_name="sonobreast", model_name=f"sonobreast {__version__}"
        ),
    )
    label = max(probabilities, key=lambda c: probabilities[c])
    common: dict[str, Any] = {
        "tracking_identifier": hd.sr.TrackingIdentifier(
            uid=hd.UID(), identifier="Image 1" if segmentation is None else "Lesion 1"
        ),
        "algorithm_id": hd.sr.AlgorithmIdentification(
            name=algorithm.name,
            version=algorithm.version,
            parameters=[*algorithm.parameters, "research use only"],
        ),
        "finding_sites": [hd.sr.FindingSite(anatomic_location=concept("76752008", "SCT", "Breast"))],
        "measurements": _measurements(probabilities, length_mm),
        "qualitative_evaluations": [
            hd.sr.QualitativeEvaluation(
                name=private("class", "Class by a network, no diagnosis"), value=_class_concept(label)
            )
        ],
    }
    frames = [frame] if "NumberOfFrames" in origin else None
    if segmentation is None:
        group: Any = hd.sr.MeasurementsAndQualitativeEvaluations(
            **common,
            finding_type=private("image", "Whole image"),
            source_images=[
                hd.sr.SourceImageForMeasurementGroup(
                    referenced_sop_class_uid=origin.SOPClassUID,
                    referenced_sop_instance_uid=origin.SOPInstanceUID,
                    referenced_frame_numbers=frames,
                )
            ],
        )
    else:
        image = origin if derived is None else derived
        segment = hd.sr.ReferencedSegmentationFrame(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            frame_number=1,
            segment_number=1,
            source_image=hd.sr.SourceImageForSegmentation(
                referenced_sop_class_uid=image.SOPClassUID, referenced_sop_instance_uid=image.SOPInstanceUID
            ),
        )
        # One or the other (PS3.3 table C.17-3a); highdicom writes both, and dciodvfy calls that an error.
        del segment[0].ReferencedSOPSequence[0].ReferencedFrameNumber
        group = hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            **common,
            finding_type=concept("52988006", "SCT", "Lesion"),
            referenced_segment=segment,
        )
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=device),
        procedure_reported=concept("47079000", "SCT", "Ultrasonography of breast"),
        imaging_measurements=[group],
        title=concept("126000", "DCM", "Imaging Measurement Report"),
    )
    root = content[0]
    said = [
        hd.sr.TextContentItem(
            name=concept("121106", "DCM", "Comment"),
            value=c[:_LONGEST_COMMENT],
            relationship_type=hd.sr.RelationshipTypeValues.CONTAINS,
        )
        for c in comments
    ]
    if frames:
        said.append(_frame_reference(origin, frames))
    root.ContentSequence.extend(said)
    evidence = [d for d in (origin, derived, segmentation) if d is not None]
    return hd.sr.ComprehensiveSR(
        evidence=evidence,
        content=root,
        series_instance_uid=hd.UID(),
        series_number=series_number("report"),
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="sonobreast",
        is_complete=True,
        is_final=False,
        is_verified=False,
        coding_schemes=[
            CodingSchemeIdentificationItem(
                designator=SCHEME, name="sonobreast", responsible_organization="The sonobreast authors"
            )
        ],
        series_description="sonobreast report (research use only)",
    )


def _measurements(probabilities: Mapping[str, float], length_mm: float | None) -> list[Any]:
    import highdicom as hd

    percent = concept("%", "UCUM", "Percent")
    found = []
    if length_mm is not None:
        found.append(
            hd.sr.Measurement(
                name=concept("103339001", "SCT", "Long Axis"),
                value=round(length_mm, 1),
                unit=concept("mm", "UCUM", "millimeter"),
            )
        )
    for label, probability in probabilities.items():
        name = (
            concept("111047", "DCM", "Probability of cancer")
            if label == "malignant"
            else private(f"probability-{label}"[:16], f"Probability of class {label}"[:64])
        )
        found.append(hd.sr.Measurement(name=name, value=round(100.0 * probability, 2), unit=percent))
    return found


def _class_concept(label: str) -> Any:

    if label in _CLASSES:
        return concept(_CLASSES[label][0], "SCT", _CLASSES[label][1])
    return private("".join(c for c in label if c.isalnum())[:16] or "class", label[:64])


def _frame_reference(origin: Any, frames: Sequence[int]) -> Any:
    """The frame of the clip that all of this is about."""
    import highdicom as hd

    return hd.sr.ImageContentItem(
        name=private("frame", "Frame that was judged"),
        referenced_sop_class_uid=origin.SOPClassUID,
        referenced_sop_instance_uid=origin.SOPInstanceUID,
        referenced_frame_numbers=list(frames),
        relationship_type=hd.sr.RelationshipTypeValues.CONTAINS,
    )
