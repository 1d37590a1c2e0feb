"""From bytes to a prediction: probabilities, sets, decisions and sizes as the bundle says; hostile files by header."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sonobreast.data.preprocess import decode
from sonobreast.errors import SonobreastError
from sonobreast.serving.bundle import SELF_TEST_IMAGE, Bundle
from sonobreast.serving.overlay import coloured, edge, overlay
from sonobreast.serving.predictor import Predictor, cam_of, load_predictor, softmax
from sonobreast.serving.readers import Limits, read


@pytest.fixture(scope="module")
def predictor(ensemble: Bundle) -> Predictor:
    """Without rule and domain; `test_frozen` has those."""
    return replace(changed(load_predictor(ensemble), decision_rule=None), domains=())


def changed(predictor: Predictor, **about: object) -> Predictor:
    bundle = replace(predictor.bundle, about=predictor.bundle.about.model_copy(update=about))
    return replace(predictor, bundle=bundle)


def scan(predictor: Predictor) -> bytes:
    return (predictor.bundle.folder / SELF_TEST_IMAGE).read_bytes()


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def test_bytes_and_path_say_the_same(predictor: Predictor) -> None:
    one = predictor.predict(scan(predictor))
    other = predictor.predict(predictor.bundle.folder / SELF_TEST_IMAGE)
    np.testing.assert_array_equal(one.probability, other.probability)
    np.testing.assert_allclose(one.probability, predictor.probability(scan(predictor)), atol=1e-12)
    assert one.probability.sum() == pytest.approx(1.0)
    assert one.predicted == one.classes[int(one.probability.argmax())]
    assert (one.conformal, one.domain_score, one.in_domain) == (None, None, None)


@pytest.mark.parametrize(("kind", "options"), [("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"})])
def test_lossless_formats_say_the_same(predictor: Predictor, kind: str, options: dict[str, object]) -> None:
    image = Image.open(io.BytesIO(scan(predictor)))
    found = predictor.predict(encoded(image, kind, **options))
    np.testing.assert_array_equal(found.probability, predictor.predict(scan(predictor)).probability)
    lossy = predictor.predict(encoded(image, "JPEG", quality=98))
    np.testing.assert_allclose(lossy.probability, found.probability, atol=0.05)


def rule(**changes: object) -> dict[str, object]:
    classes = ["benign", "malignant", "normal"]
    plain = {"classes": classes, "temperature": 1.0, "thresholds": {}, "alpha": 0.1}
    return {**plain, "quantiles": dict.fromkeys(classes), **changes}


def test_a_temperature_flattens(predictor: Predictor) -> None:
    raw = np.log(predictor.predict(scan(predictor)).probability)
    hot = changed(predictor, decision_rule=rule(temperature=3.0)).predict(scan(predictor)).probability
    np.testing.assert_allclose(hot, softmax(raw / 3.0), rtol=1e-5)


@pytest.mark.parametrize("temperature", [None, 2.0])
def test_the_decision_is_made_at_the_first_threshold(predictor: Predictor, temperature: float | None) -> None:
    def with_points(one: float, other: float) -> Predictor:
        if temperature is not None:
            points = {"sensitivity 0.95": one, "sensitivity 0.9": other}
            return changed(predictor, decision_rule=rule(temperature=temperature, thresholds=points))
        [point] = predictor.bundle.about.thresholds
        return changed(predictor, thresholds=[point.model_copy(update={"value": v}) for v in (one, other)])

    p = with_points(0.5, 0.5).predict(scan(predictor))
    malignant = float(p.probability[p.classes.index("malignant")])
    for value, says in ((malignant, True), (np.nextafter(malignant, 1.0), False)):
        found = with_points(float(value), 1.0 - says).predict(scan(predictor))
        assert (found.malignant, found.threshold) == (says, value)
    assert changed(predictor, thresholds=[]).predict(scan(predictor)).malignant is None


def test_conformal_sets_hold_what_is_not_ruled_out(predictor: Predictor) -> None:
    p = predictor.predict(scan(predictor))
    scores = {c: float(1.0 - v) for c, v in zip(p.classes, p.probability, strict=True)}

    def found(quantiles: dict[str, float | None]) -> tuple[str, ...] | None:
        # The temperature must not change the sets: their quantiles are of probabilities before it
        content = rule(quantiles=quantiles, temperature=5.0)
        return changed(predictor, decision_rule=content).predict(scan(predictor)).conformal

    assert p.conformal is None
    assert found({**scores, "normal": scores["normal"] - 1e-9}) == ("benign", "malignant")
    assert found(dict.fromkeys(p.classes)) == p.classes
    assert found(dict.fromkeys(p.classes, 0.0)) == ()


def test_sizes_are_in_millimetres_only_where_spacing_is_known(predictor: Predictor) -> None:
    everywhere = changed(predictor, mask_threshold=0.0)
    without = everywhere.predict(scan(predictor)).lesion
    known = everywhere.predict(scan(predictor), spacing_mm=0.2).lesion
    assert without is not None
    assert known is not None
    assert without.diameter_mm is None
    assert without.diameter_px == pytest.approx(np.hypot(256, 256))
    assert known.diameter_mm == pytest.approx(0.2 * np.hypot(256, 256))


@pytest.mark.parametrize("aspect", ["stretch", "pad"])
def test_maps_have_the_size_of_the_image(predictor: Predictor, aspect: str) -> None:
    wide = Image.open(io.BytesIO(scan(predictor))).resize((200, 90))
    settings = predictor.bundle.about.preprocess.model_copy(update={"aspect": aspect})
    found = changed(predictor, preprocess=settings).predict(encoded(wide, "PNG"))
    assert found.mask is not None
    assert found.mask.shape == (90, 200)
    for name in found.classes:
        cam = cam_of(found, name, aspect)
        assert cam is not None
        assert cam.shape == (90, 200)
        assert cam.min() >= 0.0
    drawn = overlay(decode(encoded(wide, "PNG")), found, aspect)
    assert drawn.width >= 400
    np.testing.assert_array_equal(np.asarray(drawn)[:90, :200], np.asarray(wide.convert("RGB")))


def test_colours_grow_lighter_and_edges_lie_inside() -> None:
    light = coloured(np.linspace(0.0, 1.0, 50)) @ np.array([0.2126, 0.7152, 0.0722])
    assert (np.diff(light) > 0).all()
    mask = np.zeros((9, 9), bool)
    mask[2:7, 2:7] = True
    assert edge(mask).sum() == 16
    assert edge(np.ones((4, 5), bool)).sum() == 14


def png(width: int, height: int) -> bytes:
    """A PNG whose header states a size, with hardly any data."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_bombs_are_refused_by_their_header(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("sonobreast.serving.readers.decode", never)
    for size in ((100_000, 100_000), (10_000, 6_000)):
        with pytest.raises(SonobreastError) as caught:
            predictor.predict(png(*size))
        assert "too many pixels" in caught.value.what or "exceeds limit" in caught.value.what
    with pytest.raises(SonobreastError, match="too many bytes"):
        predictor.predict(scan(predictor), limits=Limits(bytes=100))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "empty"),
        (b"hello", "known format"),
        (b"GIF89a" + b"\0" * 30, "known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "known format"),
        (b"\x89PNG\r\n\x1a\n", "not a readable image"),
        (png(40, 40), "not a readable image"),
        (b"BM" + b"\xff" * 60, "not a readable image"),
        (b"\xff\xd8\xff" + b"\0" * 30, "not a readable image"),
        (b"II*\0" + b"\xff" * 30, "not a readable image"),
    ],
)
def test_what_is_no_image_is_refused_in_words(predictor: Predictor, content: bytes, why: str) -> None:
    with pytest.raises(SonobreastError, match=why):
        predictor.predict(content)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about what was damaged
def test_any_damage_gives_a_sentence_or_an_image(predictor: Predictor) -> None:
    image = Image.open(io.BytesIO(scan(predictor))).resize((48, 40))
    rng = np.random.default_rng(1)
    seen = 0
    for kind in ("PNG", "JPEG", "BMP", "TIFF"):
        content = encoded(image, kind)
        for _ in range(150):
            bad = bytearray(content[: int(rng.integers(8, len(content) + 1))])
            for at in rng.integers(0, len(bad), 4):
                bad[at] = rng.integers(0, 256)
            try:
                assert all(f.image.dtype == np.uint8 for f in read(bytes(bad)))
            except SonobreastError:
                seen += 1
    assert seen > 100


def test_each_picture_of_a_tiff_is_read_and_there_are_not_too_many(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((8, 9 + k), 40 * k + 5, np.uint8)) for k in range(5)]
    file = tmp_path / "film.tif"
    frames[0].save(file, save_all=True, append_images=frames[1:])
    found = list(read(file))
    assert [(f.index, f.count, f.image.shape, int(f.image[0, 0, 0])) for f in found] == [
        (k, 5, (8, 9 + k, 3), 40 * k + 5) for k in range(5)
    ]
    assert [f.index for f in read(file, first=3)] == [3, 4]
    with pytest.raises(SonobreastError, match="too many pictures"):
        list(read(file, Limits(frames=4)))
    with pytest.raises(SonobreastError, match="too many pixels"):
        list(read(file, Limits(pixels=80)))
