"""The embedded data set: its physics, its anatomy against its own descriptors, and its files."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from dataclasses import replace
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from scipy.spatial import ConvexHull
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sonobreast.data import phantom
from sonobreast.data.contact_sheet import contact_sheet
from sonobreast.data.lesion import (
    ELONGATION,
    LABELS,
    PREVALENCE,
    ROUND_TOLERANCE,
    draw_descriptors,
    draw_outline,
)
from sonobreast.data.phantom import COLUMNS, Phantom, is_complete, simulate, slot, write
from sonobreast.data.speckle import (
    FWHM,
    RAYLEIGH_SNR,
    Grid,
    Scanner,
    attenuation_db,
    beamform,
    compress,
    envelope,
    lateral_sigma_mm,
    scan_convert,
)
from sonobreast.errors import SonobreastError

GRID = Grid(depth_mm=40.0, width_mm=60.0)
QUIET = Scanner(noise_db=-200.0)


@lru_cache(maxsize=1)
def phantoms() -> tuple[Phantom, ...]:
    """The images that several tests look at."""
    return tuple(simulate(index, seed=11, size=64) for index in range(120))


def _homogeneous(scanner: Scanner, seed: int = 0) -> np.ndarray:
    """Envelope of tissue without structure, without attenuation and without noise."""
    rng = np.random.default_rng(seed)
    return envelope(rng, GRID, scanner, echo_db=np.zeros(GRID.shape, np.float32))


def _correlation_sigma(intensity: np.ndarray, step_mm: float, axis: int) -> float:
    """Standard deviation, mm, of the Gaussian that the autocovariance along an axis follows, from lags above 0.3."""
    fluctuation = intensity - intensity.mean()
    moved = np.moveaxis(fluctuation, axis, 0)
    lags = np.arange(0, 12)
    covariance = np.array([np.mean(moved[lag:] * moved[: len(moved) - lag]) for lag in lags])
    covariance /= covariance[0]
    use = (covariance > 0.3) & (lags > 0)
    return float(np.sqrt(np.mean((lags[use] * step_mm) ** 2 / (-2.0 * np.log(covariance[use])))))


# Physics


@pytest.mark.parametrize("scanner", [QUIET, replace(QUIET, frequency_mhz=11.0, bandwidth=0.38, f_number=2.3)])
def test_homogeneous_tissue_has_fully_developed_speckle(scanner: Scanner) -> None:
    """Wagner 1983: a Rayleigh envelope, signal-to-noise ratio 1.91, at every depth; and it keeps its mean power."""
    amplitude = _homogeneous(scanner)
    assert pytest.approx(1.913, abs=1e-3) == RAYLEIGH_SNR
    assert amplitude.mean() / amplitude.std() == pytest.approx(RAYLEIGH_SNR, abs=0.1)
    for band in np.array_split(amplitude, 4):
        assert band.mean() / band.std() == pytest.approx(RAYLEIGH_SNR, abs=0.15)
        assert np.mean(band**2) == pytest.approx(1.0, abs=0.1)
    # Rayleigh, not merely of that ratio: the median is sqrt(ln 4 / 2) of the root mean square.
    assert np.median(amplitude) == pytest.approx(np.sqrt(np.log(2.0)), abs=0.03)


def test_compounding_of_independent_looks_raises_the_ratio_by_the_root_of_their_number() -> None:
    for looks in (2, 3):
        amplitude = _homogeneous(replace(QUIET, looks=looks))
        assert amplitude.mean() / amplitude.std() == pytest.approx(RAYLEIGH_SNR * np.sqrt(looks), rel=0.05)


def test_speckle_size_follows_the_point_spread_function_and_grows_with_depth() -> None:
    """Wagner 1983: the autocovariance of the intensity is the squared one of the PSF, here a Gaussian as wide as it."""
    scanner = replace(QUIET, focus_mm=5.0, depth_of_field_mm=12.0)
    intensity = np.mean([_homogeneous(scanner, seed) ** 2 for seed in (0,)], axis=0)
    widths = []
    for band, depths in zip(np.array_split(intensity, 5), np.array_split(GRID.z_mm[:, 0], 5), strict=True):
        expected = float(lateral_sigma_mm(scanner, depths).mean())
        widths.append(_correlation_sigma(band, GRID.dx_mm, axis=1))
        assert widths[-1] == pytest.approx(expected, rel=0.15)
        assert _correlation_sigma(band, GRID.dz_mm, axis=0) == pytest.approx(scanner.axial_sigma_mm, rel=0.15)
    assert (np.diff(widths[1:]) > 0).all()
    assert widths[-1] > 1.5 * widths[1]


def test_a_point_scatterer_shows_the_point_spread_function() -> None:
    scanner = replace(QUIET, focus_mm=10.0)
    for depth in (10.0, 30.0):
        scatterers = np.zeros(GRID.shape, dtype=np.complex64)
        row, column = round(depth / GRID.dz_mm), GRID.shape[1] // 2
        scatterers[row, column] = 1.0
        image = np.abs(beamform(scatterers, GRID, scanner))
        assert np.unravel_index(image.argmax(), image.shape) == (row, column)
        x = (np.arange(GRID.shape[1]) - column) * GRID.dx_mm
        power = image[row] ** 2  # the square of a Gaussian is narrower by sqrt(2), and free of the transform's rounding
        spread = np.sqrt(2.0 * np.sum(power * x**2) / np.sum(power))
        assert spread == pytest.approx(float(lateral_sigma_mm(scanner, np.float32(depth))), rel=0.05)
    at_focus = lateral_sigma_mm(scanner, np.float32(10.0)) * FWHM
    assert at_focus == pytest.approx(scanner.wavelength_mm * scanner.f_number, rel=1e-5)


def test_compression_maps_the_stated_dynamic_range() -> None:
    for dynamic_range in (45.0, 60.0, 72.0):
        decibel = np.linspace(-dynamic_range - 20.0, 10.0, 500, dtype=np.float32)
        amplitude = np.float32(3.0) * np.float32(10.0) ** (decibel / np.float32(20.0))
        level = compress(amplitude, dynamic_range, full_scale=3.0)
        np.testing.assert_allclose(level, np.clip(1.0 + decibel / dynamic_range, 0.0, 1.0), atol=1e-4)
        ends = compress(np.array([3.0, 3.0 * 10 ** (-dynamic_range / 20.0)], np.float32), dynamic_range, full_scale=3.0)
        flat = [scan_convert(np.full((40, 40), value, np.float32), 32) for value in ends]
        assert [int(np.unique(picture).item()) for picture in flat] == [255, 0]
    grey = compress(np.array([0.1], np.float32), 40.0, gamma=2.0)
    assert grey == pytest.approx(0.25, abs=1e-5)


def test_loss_is_attenuation_times_frequency_times_twice_the_path() -> None:
    loss = attenuation_db(np.full(GRID.shape, 0.7, np.float32), GRID, replace(QUIET, frequency_mhz=10.0))
    np.testing.assert_allclose(loss[:, 50], 2 * 0.7 * 10.0 * (GRID.z_mm[:, 0] + GRID.dz_mm / 2) / 10.0, rtol=1e-3)


# Classes, patients, descriptors


def test_any_three_in_a_row_hold_each_class_and_the_plan_does_not_hang_on_n() -> None:
    slots = [slot(index, seed=5) for index in range(480)]
    assert all({s.label for s in slots[i : i + 3]} == set(LABELS) for i in range(0, 480, 3))
    for label in LABELS:
        assert [s.number for s in slots if s.label == label] == list(range(1, 161))
    assert len({(s.patient, s.slice) for s in slots}) == 480
    images = [[s for s in slots if s.patient == patient] for patient in {s.patient for s in slots}]
    assert len(images) == 300
    assert all(len({s.label for s in group}) == 1 and len(group) <= 3 for group in images)
    assert sum(len(group) > 1 for group in images) == 120


@pytest.mark.parametrize("label", ["benign", "malignant"])
def test_outlines_agree_with_their_descriptors(label: str) -> None:
    for seed in range(250):
        rng = np.random.default_rng(seed)
        d = draw_descriptors(rng, label, depth_mm=38.0)  # type: ignore[arg-type]
        outline = draw_outline(rng, d)
        width, height = outline.extent_mm
        points = outline.points_mm[ConvexHull(outline.points_mm).vertices]
        diameter = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1)).max()
        assert diameter == pytest.approx(d.size_mm, rel=0.03)
        assert (outline.radius_mm > 0).all()
        if d.shape == "round":
            assert d.orientation == "not_parallel"
            assert abs(height / width - 1.0) <= ROUND_TOLERANCE
        elif d.orientation == "parallel":
            assert width >= 0.999 * ELONGATION * height
        else:
            assert height >= 0.999 * ELONGATION * width


def test_margins_differ_as_their_names_say() -> None:
    """Roughness of the boundary, the share of its outline that a smooth one would not have: least if circumscribed."""
    roughness: dict[str, list[float]] = {}
    base = draw_descriptors(np.random.default_rng(0), "benign", depth_mm=38.0)
    for margin in PREVALENCE["benign"]["margin"]:
        for seed in range(40):
            d = replace(base, shape="oval", orientation="parallel", margin=margin)  # type: ignore[arg-type]
            outline = draw_outline(np.random.default_rng(seed), d)
            even = np.interp(np.linspace(-3.1, 3.1, 360), outline.angle, outline.radius_mm)
            bumps = np.log(even) - ndimage.gaussian_filter1d(np.log(even), 10, mode="wrap")
            roughness.setdefault(margin, []).append(float(bumps[40:-40].std()))
    median = {margin: np.median(values) for margin, values in roughness.items()}
    assert median["circumscribed"] < median["indistinct"] < median["microlobulated"] < median["spiculated"]
    assert median["angular"] > 1.5 * median["circumscribed"]


def test_masks_agree_with_descriptors() -> None:
    for p in phantoms():
        assert p.image.dtype == np.uint8
        assert p.image.shape == p.mask.shape == (64, 64)
        if p.label == "normal":
            assert p.descriptors is None
            assert not p.mask.any()
            continue
        assert p.descriptors is not None
        z, x = np.nonzero(p.mask)
        assert ndimage.label(p.mask, structure=np.ones((3, 3)))[1] <= 1 or p.descriptors.margin == "spiculated"
        assert min(z.min(), x.min()) > 0
        assert max(z.max(), x.max()) < 63
        points = np.stack([z, x], axis=1).astype(float)
        diameter = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1)).max() * p.spacing_mm
        # The tip of a spicule or of a sharp corner is narrower than a pixel.
        missing = 0.2 * p.descriptors.size_mm if p.descriptors.margin in ("spiculated", "angular") else 0.0
        assert diameter == pytest.approx(p.descriptors.size_mm, abs=missing + 2.6 * p.spacing_mm)
        height, width = np.ptp(z) + 1, np.ptp(x) + 1
        if p.descriptors.orientation == "parallel":
            assert width >= height - 1
        elif p.descriptors.shape != "round":
            assert height >= width - 1


def _level(p: Phantom, where: np.ndarray) -> float:
    return float(p.image[where].mean()) if where.any() else float("nan")


def test_posterior_features_and_echo_pattern_can_be_seen() -> None:
    """Below the lesion against beside it, at the same depth: darker with shadowing, brighter with enhancement."""
    behind: dict[str, list[float]] = {}
    inside: dict[str, list[float]] = {}
    for p in phantoms():
        if p.descriptors is None:
            continue
        z, x = np.nonzero(p.mask)
        below, near = slice(z.max() + 2, min(z.max() + 14, 64)), slice(int(x.mean()) - 2, int(x.mean()) + 3)
        beside = np.r_[0 : max(x.min() - 4, 0), min(x.max() + 4, 64) : 64]
        behind.setdefault(p.descriptors.posterior, []).append(
            float(p.image[below, near].mean() - p.image[below][:, beside].mean())
        )
        core = ndimage.binary_erosion(p.mask, iterations=1)
        around = ndimage.binary_dilation(p.mask, iterations=6) & ~ndimage.binary_dilation(p.mask, iterations=2)
        inside.setdefault(p.descriptors.echo_pattern, []).append(_level(p, core) - _level(p, around))
    median = {name: np.nanmedian(values) for name, values in behind.items()}
    assert median["shadowing"] < median["none"] - 15
    assert median["enhancement"] > median["none"] + 8
    echo = {name: np.nanmedian(values) for name, values in inside.items()}
    assert echo["anechoic"] < echo["hypoechoic"] < echo["isoechoic"]
    assert echo["hypoechoic"] < -20


def test_fat_is_darker_than_gland_and_the_picture_darkens_with_depth() -> None:
    normal = np.mean([p.image for p in phantoms() if p.label == "normal"], axis=0)
    assert normal[26:32].mean() > normal[50:].mean() + 20
    assert normal[0:2].mean() > normal[3:60].mean() + 30  # the skin's entrance echo


def test_two_slices_of_a_patient_are_alike_and_not_the_same() -> None:
    by_patient: dict[str, list[Phantom]] = {}
    for p in phantoms():
        by_patient.setdefault(p.patient, []).append(p)
    pairs = [group[:2] for group in by_patient.values() if len(group) > 1]
    assert len(pairs) > 15
    gap = np.array([abs(a.image.mean() - b.image.mean()) for a, b in pairs])
    strangers = np.array([abs(a[0].image.mean() - b[1].image.mean()) for a, b in pairwise(pairs)])
    assert np.median(gap) < 0.5 * np.median(strangers)
    for a, b in pairs:
        assert (a.image != b.image).mean() > 0.5
        assert a.label == b.label
        if a.descriptors is not None and b.descriptors is not None:
            assert replace(a.descriptors, size_mm=0.0) == replace(b.descriptors, size_mm=0.0)


def test_mean_spread_and_size_do_not_give_the_class_away() -> None:
    """Cross-validated by patient, balanced classes; size in pixels is constant, so the size of the file is taken."""
    features = [[p.image.mean(), p.image.std(), len(phantom.encode_png(p.image))] for p in phantoms()]
    labels = [p.label for p in phantoms()]
    folds = StratifiedGroupKFold(4, shuffle=True, random_state=0)
    for model in (
        make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)),
        RandomForestClassifier(200, min_samples_leaf=3, random_state=0),
    ):
        guess = cross_val_predict(model, features, labels, cv=folds, groups=[p.patient for p in phantoms()])
        assert np.mean(guess == np.array(labels)) <= 0.60


def test_classes_overlap_in_every_descriptor() -> None:
    """No term decides alone: each that is common in one class occurs in the other."""
    for name, terms in PREVALENCE["benign"].items():
        for term, share in terms.items():
            other = PREVALENCE["malignant"][name].get(term, 0.0)
            assert min(share, other) > 0 or max(share, other) < 0.05
        assert sum(terms.values()) == pytest.approx(1.0)
        assert sum(PREVALENCE["malignant"][name].values()) == pytest.approx(1.0)


# Determinism and sizes


def test_same_seed_same_bytes_in_any_order() -> None:
    forward = [simulate(index, seed=2, size=48) for index in range(6)]
    backward = [simulate(index, seed=2, size=48) for index in reversed(range(6))][::-1]
    for a, b in zip(forward, backward, strict=True):
        assert a.image.tobytes() == b.image.tobytes()
        assert a.mask.tobytes() == b.mask.tobytes()
        assert (a.label, a.descriptors, a.patient, a.spacing_mm) == (b.label, b.descriptors, b.patient, b.spacing_mm)
    assert simulate(0, seed=3, size=48).image.tobytes() != forward[0].image.tobytes()
    assert len({p.image.tobytes() for p in forward}) == 6


@pytest.mark.parametrize("size", [32, 75, 512, 1024])
def test_every_size_shows_the_same_scene(size: int) -> None:
    index = next(i for i in range(3) if slot(i, seed=4).label == "malignant")
    small, other = simulate(index, seed=4, size=64), simulate(index, seed=4, size=size)
    assert other.image.shape == other.mask.shape == (size, size)
    assert other.spacing_mm * size == pytest.approx(small.spacing_mm * 64)
    assert other.descriptors == small.descriptors
    assert other.mask.mean() == pytest.approx(small.mask.mean(), rel=0.15)
    coarse = [
        np.asarray(Image.fromarray(p.image).resize((32, 32), Image.Resampling.BOX)).ravel() for p in (small, other)
    ]
    assert np.corrcoef(coarse)[0, 1] > 0.97


# Files


def _bytes(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


class Killed(BaseException):
    """What stops a run half-way."""


def _stop_after(images: int):  # type: ignore[no-untyped-def]
    def progress(done: int, of: int) -> None:
        if done == images:
            raise Killed

    return progress


def test_the_folder_is_busis_and_the_manifest_describes_it(tmp_path: Path) -> None:
    out, seen = tmp_path / "set", []
    manifest = write(out, n=9, seed=1, size=40, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(k, 9) for k in range(1, 10)]
    with manifest.open(newline="") as lines:
        reader = csv.DictReader(lines)
        assert tuple(reader.fieldnames or ()) == COLUMNS
        rows = list(reader)
    assert len(rows) == 9
    expected = {"manifest.csv", "phantom.json"}
    for index, row in enumerate(rows):
        p = simulate(index, seed=1, size=40)
        expected |= {row["image"], row["mask"]}
        assert row["image"].startswith(f"{p.label}/{p.label} (")
        assert row["mask"] == row["image"].replace(".png", "_mask.png")
        assert row["sha256"] == hashlib.sha256((out / row["image"]).read_bytes()).hexdigest()
        np.testing.assert_array_equal(np.asarray(Image.open(out / row["image"])), p.image)
        np.testing.assert_array_equal(np.asarray(Image.open(out / row["mask"])), p.mask * np.uint8(255))
        assert (row["label"], row["group"], row["patient"]) == (p.label, p.patient, p.patient)
        assert (row["width"], row["height"], row["source"], row["schema_version"]) == ("40", "40", "phantom", "1")
        assert float(row["spacing_mm"]) == pytest.approx(p.spacing_mm, abs=1e-6)
        if p.descriptors is None:
            assert row["shape"] == row["halo"] == row["size_mm"] == ""
        else:
            d = p.descriptors
            assert (row["shape"], row["margin"], row["posterior"]) == (d.shape, d.margin, d.posterior)
            assert (row["halo"] == "present") == d.halo
            assert float(row["size_mm"]) == d.size_mm
    assert set(_bytes(out)) == expected
    assert is_complete(out, n=9, seed=1, size=40)
    assert not is_complete(out, n=12, seed=2, size=40)


@pytest.mark.parametrize("images", [1, 5])
def test_an_interrupted_run_goes_on_and_ends_with_the_same_bytes(
    images: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    write(whole, n=9, seed=1, size=40)
    with pytest.raises(Killed):
        write(broken, n=9, seed=1, size=40, progress=_stop_after(images))
    assert not (broken / "manifest.csv").exists()
    assert not is_complete(broken, n=9, seed=1, size=40)
    for path in broken.rglob("*.png"):
        Image.open(path).verify()
    # What a killed process leaves: an unfinished temporary file, and after a power failure an empty image.
    (broken / "benign" / ".benign (3).png.part").write_bytes(b"half")
    first = sorted(broken.rglob("*.png"))[0]
    first.write_bytes(b"")
    made: list[int] = []
    monkeypatch.setattr(phantom, "simulate", lambda i, **kw: (made.append(i), simulate(i, **kw))[1])
    write(broken, n=9, seed=1, size=40)
    assert _bytes(broken) == _bytes(whole)
    assert 0 < len(made) < 9 or images == 1


def test_a_run_killed_before_its_first_file_goes_on(tmp_path: Path) -> None:
    (tmp_path / ".phantom.json.part").write_text("{")
    write(tmp_path, n=1, seed=0, size=32)
    assert is_complete(tmp_path, n=1, seed=0, size=32)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("wrong", [{"n": 0}, {"n": -3}, {"size": 31}, {"size": 0}, {"size": 5000}, {"seed": -1}])
def test_bad_values_are_refused_before_anything_is_written(wrong: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(SonobreastError) as caught:
        write(tmp_path / "set", **({"n": 3, "seed": 0, "size": 32} | wrong))
    assert caught.value.remedy
    assert not (tmp_path / "set").exists()
    with pytest.raises(SonobreastError):
        simulate(-1, seed=0, size=32)


def test_folders_that_are_not_empty_need_force_and_foreign_files_outlive_it(tmp_path: Path) -> None:
    out = tmp_path / "set"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(SonobreastError, match="not empty"):
        write(out, n=2, seed=0, size=32)
    assert list(_bytes(out)) == ["notes.txt"]
    write(out, n=6, seed=0, size=32, force=True)
    with pytest.raises(SonobreastError, match="finished data set"):
        write(out, n=6, seed=0, size=32)
    (out / "benign" / "mine.png").write_bytes(b"mine")
    # A smaller set over a larger one: what the larger one left is gone, what is not the generator's stays.
    write(out, n=3, seed=9, size=32, force=True)
    write(tmp_path / "fresh", n=3, seed=9, size=32)
    kept = _bytes(out)
    assert kept.pop("notes.txt")
    assert kept.pop("benign/mine.png")
    assert kept == _bytes(tmp_path / "fresh")


def test_an_unfinished_run_of_other_parameters_needs_force(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        write(tmp_path, n=6, seed=0, size=32, progress=_stop_after(2))
    with pytest.raises(SonobreastError, match="other parameters"):
        write(tmp_path, n=6, seed=1, size=32)
    write(tmp_path, n=6, seed=1, size=32, force=True)
    assert is_complete(tmp_path, n=6, seed=1, size=32)


def test_force_does_not_replace_images_of_a_real_data_set(tmp_path: Path) -> None:
    """BUSI's own names are those of the phantoms."""
    (tmp_path / "benign").mkdir()
    (tmp_path / "benign" / "benign (1).png").write_bytes(b"a real image")
    for record in (None, "{}", "[", json.dumps({"generator": "sonobreast phantom"})):
        if record is not None:
            (tmp_path / "phantom.json").write_text(record)
        before = _bytes(tmp_path)
        with pytest.raises(SonobreastError, match="not written by the generator"):
            write(tmp_path, n=3, seed=0, size=32, force=True)
        assert _bytes(tmp_path) == before


def test_places_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SonobreastError, match="a file"):
        write(tmp_path / "file", n=1, seed=0, size=32)
    with pytest.raises(SonobreastError, match="cannot write") as caught:
        write(tmp_path / "file" / "set", n=1, seed=0, size=32)
    assert caught.value.remedy
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    if not os.access(closed, os.W_OK):  # root may write everywhere
        with pytest.raises(SonobreastError, match="cannot write"):
            write(closed / "set", n=1, seed=0, size=32)


def test_a_full_disk_is_an_error_for_a_person_and_leaves_no_half_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = iter(range(100))
    real = phantom.write_whole

    def full(path: Path, content: bytes) -> None:
        if next(written) >= 6:
            raise OSError(28, "No space left on device", str(path))
        real(path, content)

    monkeypatch.setattr(phantom, "write_whole", full)
    with pytest.raises(SonobreastError, match="No space left"):
        write(tmp_path / "set", n=9, seed=1, size=32)
    for path in (tmp_path / "set").rglob("*.png"):
        Image.open(path).verify()
    monkeypatch.setattr(phantom, "write_whole", real)
    write(tmp_path / "set", n=9, seed=1, size=32)
    write(tmp_path / "fresh", n=9, seed=1, size=32)
    assert _bytes(tmp_path / "set") == _bytes(tmp_path / "fresh")


def test_the_contact_sheet_shows_each_class_with_and_without_outline(tmp_path: Path) -> None:
    sheet = contact_sheet(tmp_path / "sheet.png", n=2, seed=3, size=64)
    picture = np.asarray(Image.open(sheet))
    # Yellow outlines in the rows of the lesions, none in the row of the normal images.
    yellow = (picture == (255, 196, 0)).all(axis=2)
    thirds = [int(part.sum()) for part in islice(np.array_split(yellow, 3), 3)]
    assert min(thirds[:2]) > 20
    assert thirds[2] == 0
    with pytest.raises(SonobreastError):
        contact_sheet(tmp_path / "sheet.png", n=0)
    with pytest.raises(SonobreastError, match="cannot write"):
        contact_sheet(tmp_path / "none" / "sheet.png", n=1, size=32)
