"""How the audit grows: seconds, memory and recall of copies on simulated sets with planted copies.

    python benchmarks/audit_growth.py            # 1,250 to 10,000 images, about 8 minutes with the writing of the files
    python benchmarks/audit_growth.py --full     # and 20,000

A fifth of the images are copies of others, in equal shares of every kind below. Pictures are written as PNG into a
temporary folder first; what is timed is the whole audit of that folder, decoding and page included. Each size runs in
a process of its own, so that its peak memory is its own. The last line is one JSON line.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageOps
from scipy import fft

Grey = npt.NDArray[np.uint8]

KINDS = ("file", "pixels", "shift", "crop", "rescale", "mirror", "rewindow", "overlay", "jpeg", "several")
SHARE = 0.2
PICTURE = 0.83
"""Share of a scene's sides that a picture shows: what is left lets a picture be shifted by 10 % of its sides."""


def scene(rng: np.random.Generator) -> Grey:
    """A layered speckle texture, larger than a picture so that a shifted window shows real content, uint8."""
    height, width = int(rng.integers(330, 430)), int(rng.integers(360, 520))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    echo = np.full((height, width), rng.uniform(-0.3, 0.3), np.float32)
    for _ in range(int(rng.integers(3, 7))):  # layers with wavy borders: skin, fat, gland, muscle
        wave = sum(rng.uniform(2, 14) * np.sin(x[0] * rng.uniform(0.004, 0.04) + rng.uniform(0, 7)) for _ in range(3))
        echo += rng.uniform(-0.9, 0.9) * (y > rng.uniform(0, height) + wave)
    for _ in range(int(rng.integers(0, 3))):  # lesions, mostly dark
        a, b = rng.uniform(15, 60, 2)
        inside = ((x - rng.uniform(0, width)) / a) ** 2 + ((y - rng.uniform(0, height)) / b) ** 2 < 1
        echo -= rng.uniform(0.3, 2.0) * inside
    size = (fft.next_fast_len(height, real=True), fft.next_fast_len(width, real=True))
    fy, fx = np.meshgrid(np.fft.fftfreq(size[0]), np.fft.fftfreq(size[1]), indexing="ij")
    across, along = rng.uniform(2.2, 3.5), rng.uniform(1.2, 1.8)  # a beam is wider than its pulse is long
    psf = np.exp(-2 * np.pi**2 * ((across * fx) ** 2 + (along * fy) ** 2)).astype(np.float32)
    noise = rng.standard_normal((2, *size), dtype=np.float32)
    field = fft.ifft2(fft.fft2(noise[0] + 1j * noise[1]) * psf)[:height, :width]
    envelope = np.abs(field) / np.abs(field).mean()
    bright = 110 + 45 * (echo + np.log(envelope + 0.05)) - 50 * rng.uniform(0, 1) * y / height
    return np.clip(bright, 0, 255).astype(np.uint8)


def _window(whole: Grey, left: float, top: float, share: float) -> Image.Image:
    height, width = whole.shape
    h, w = round(height * share), round(width * share)
    y, x = round((height - h) * top), round((width - w) * left)
    return Image.fromarray(whole[y : y + h, x : x + w])


def written_on(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Calipers, a dotted line, words and an arrow, as scanners burn them in."""
    image = image.copy()
    pen = ImageDraw.Draw(image)
    width, height = image.size
    for _ in range(int(rng.integers(2, 5))):
        x, y = rng.uniform(0.1, 0.9, 2) * image.size
        pen.line((x - 6, y, x + 6, y), fill=255, width=2)
        pen.line((x, y - 6, x, y + 6), fill=255, width=2)
    x, y = rng.uniform(0.1, 0.5, 2) * image.size
    for step in range(0, int(width * 0.4), 6):
        pen.point((x + step, y + step // 3), fill=230)
    words = ("LT BREAST 3 OCL", "RT AXILLA", "D1 12.4 mm", "LOGIQ E9", "RT UOQ")
    pen.text(
        (rng.uniform(0, 0.5) * width, rng.uniform(0, 0.9) * height), str(rng.choice(words)), fill=255, font_size=20
    )
    x, y = rng.uniform(0.2, 0.8, 2) * image.size
    pen.polygon([(x, y), (x + 14, y + 5), (x + 5, y + 14)], fill=255)
    return image


def copy_of(whole: Grey, kind: str, rng: np.random.Generator) -> Image.Image:
    """The picture of a scene, changed as `kind` says; `original` is the picture itself."""
    left, top, share = 0.5, 0.5, PICTURE
    if kind == "shift":
        left, top = rng.uniform(0, 1, 2)
    if kind in ("crop", "several"):
        share = PICTURE * rng.uniform(0.8, 0.95)
        room = (PICTURE - share) / (1 - share) / 2  # the crop stays inside the picture
        left, top = 0.5 + rng.uniform(-room, room, 2)
    image = _window(whole, left, top, share)
    if kind in ("rescale", "several"):
        factor = rng.choice([rng.uniform(0.6, 0.9), rng.uniform(1.1, 1.6)])
        how = Image.Resampling(int(rng.choice([Image.Resampling.BILINEAR, Image.Resampling.LANCZOS])))
        image = image.resize((round(image.width * factor), round(image.height * factor)), how)
    if kind == "mirror" or (kind == "several" and rng.random() < 0.3):
        image = ImageOps.mirror(image)
    if kind in ("rewindow", "several"):
        gain, gamma, offset = rng.uniform(0.75, 1.3), rng.uniform(0.6, 1.6), rng.uniform(-20, 20)
        image = image.point([int(np.clip(255 * (v / 255) ** gamma * gain + offset, 0, 255)) for v in range(256)])
    if kind in ("overlay", "several"):
        image = written_on(image, rng)
    return image


def _write(job: tuple[Path, int, int, str]) -> None:
    """One original or copy. Everything follows from the numbers, so that processes can share the work."""
    path, number, of, kind = job
    picture = copy_of(scene(np.random.default_rng([7, of])), kind, np.random.default_rng([8, number]))
    if kind == "jpeg":
        picture.save(path.with_suffix(".jpg"), quality=60)
    elif kind == "pixels":
        picture.save(path, compress_level=4)
    else:
        picture.save(path, compress_level=1)


def plant(folder: Path, n: int) -> list[tuple[int, int, str]]:
    """Write `n` pictures, a fifth of them copies, in shuffled order; return (copy, original, kind)."""
    originals = n - int(n * SHARE)
    rng = np.random.default_rng(n)
    place = rng.permutation(n)
    of = rng.choice(originals, n - originals, replace=False)
    kinds = [KINDS[i % len(KINDS)] for i in range(n - originals)]
    jobs = [(folder / f"{place[i]:06d}.png", i, i, "original") for i in range(originals)]
    jobs += [(folder / f"{place[originals + i]:06d}.png", originals + i, int(of[i]), k) for i, k in enumerate(kinds)]
    with Pool(2) as pool:
        for _ in pool.imap_unordered(_write, jobs, chunksize=64):
            pass
    return [(int(place[originals + i]), int(place[of[i]]), k) for i, k in enumerate(kinds)]


def measure(n: int) -> dict[str, object]:
    """Plant, search, count."""
    from sonobreast.data import audit as audits
    from sonobreast.data.audit_page import write_page

    folder = Path(tempfile.mkdtemp(prefix="audit_growth_"))
    try:
        started = time.perf_counter()
        planted = plant(folder, n)
        writing = time.perf_counter() - started
        files = sorted(folder.iterdir(), key=lambda f: f.stem)
        table = folder / "cases.csv"
        labels = ("benign", "malignant", "normal")
        table.write_text("image,label\n" + "".join(f"{f.name},{labels[i % 3]}\n" for i, f in enumerate(files)))
        stage: dict[str, float] = {}
        started, cpu = time.perf_counter(), time.process_time()
        result = audits.audit(
            table, progress=lambda name, done, total: stage.update({name: round(time.perf_counter() - started, 1)})
        )
        audits.write(folder / "out", result)
        write_page(folder / "out" / "audit.html", result)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        # By name: an image that the manifest leaves out would shift all others.
        place = {f.name: i for i, f in enumerate(files)}
        found = {place[m.image]: m.group for m in result.members}
        group = [found.get(i, f"left out {i}") for i in range(n)]
        names = [place[c.image] for c in result.manifest.cases]
        pairs = [(names[p.a], names[p.b]) for p in result.pairs]
        true = {frozenset(p[:2]) for p in planted}
        recall = {k: float(np.mean([group[c] == group[o] for c, o, kind in planted if kind == k])) for k in KINDS}
        return {
            "n": n,
            "seconds": round(seconds, 1),
            "cpu_seconds": round(cpu, 1),
            "stages_end": stage,
            "writing_seconds": round(writing, 1),
            "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
            "recall": round(float(np.mean([group[c] == group[o] for c, o, _ in planted])), 4),
            "recall_by_kind": {k: round(v, 4) for k, v in recall.items()},
            "left_out": n - len(result.manifest.cases),
            "pairs": len(pairs),
            "false_pairs": sum(frozenset(p) not in true for p in pairs),
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--full", action="store_true", help="20,000 images too")
    parser.add_argument("--sizes", type=int, nargs="*", help="other sizes")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one)))
        return
    sizes = given.sizes or [1250, 2500, 5000, 10000] + ([20000] if given.full else [])
    rows = []
    for n in sizes:
        done = subprocess.run(
            [sys.executable, __file__, "--one", str(n)], check=True, stdout=subprocess.PIPE, text=True
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        r = rows[-1]
        print(
            f"{n:6d} images: {r['seconds']:7.1f} s ({r['cpu_seconds']:.0f} s of processor), {r['peak_gb']:.2f} GB, "
            f"recall {r['recall']:.2%}, false pairs {r['false_pairs']}",
            flush=True,
        )
        print("        " + ", ".join(f"{k} {v:.1%}" for k, v in r["recall_by_kind"].items()), flush=True)
    slope = None
    if len(rows) > 1:
        slope = round(float(np.polyfit(np.log(sizes), np.log([r["seconds"] for r in rows]), 1)[0]), 3)
        print(f"slope of log seconds over log images: {slope}")
    print(json.dumps({"benchmark": "audit_growth", "slope": slope, "rows": rows}))


if __name__ == "__main__":
    main()
