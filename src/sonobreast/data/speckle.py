"""Image formation of B-mode ultrasound: from tissue maps to the grey levels on the screen.

The model is the linear, shift-variant convolution model of pulse-echo imaging. Tissue is a field of sub-resolution
scatterers; the scanner sees it through a point-spread function, detects the envelope and compresses its logarithm.

- Many scatterers in a resolution cell give a circular complex Gaussian echo, a Rayleigh envelope and a point
  signal-to-noise ratio of sqrt(pi / (4 - pi)) = 1.91: Burckhardt, IEEE Trans. Sonics Ultrason. 25:1-6, 1978; Wagner,
  Smith, Sandrik and Lopez, IEEE Trans. Sonics Ultrason. 30:156-163, 1983. The latter also gives the speckle size:
  the autocovariance of the intensity is that of the point-spread function, squared.
- Convolution of a scatterer map with a separable pulse: Bamber and Dickinson, Phys. Med. Biol. 25:463-479, 1980;
  Meunier and Bertrand, IEEE Trans. Biomed. Eng. 42:1198-1210, 1995.
- Pulse length, beam width, F-number, attenuation and time-gain compensation (TGC): Szabo, Diagnostic Ultrasound
  Imaging: Inside Out, 2nd ed., Academic Press 2014, chapters 4, 6, 10, 12. Attenuation is in dB/cm/MHz, linear in
  frequency.
- Compounding averages the envelopes of looks with independent speckle: Trahey, Smith and von Ramm, IEEE Trans.
  Ultrason. Ferroelectr. Freq. Control 33:257-264, 1986.

The echoes are kept in complex baseband: for a circular Gaussian scatterer field, the carrier's phase changes no
statistic of the envelope, so it is left out and the axial grid need not resolve the wavelength. What this leaves out:
refraction, multiple scattering, side lobes, aberration, and the fall of the centre frequency with depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import fft, ndimage

F32 = npt.NDArray[np.float32]
C64 = npt.NDArray[np.complex64]
U8 = npt.NDArray[np.uint8]

SPEED_OF_SOUND_MM_US = 1.54
"""Speed of sound that scanners assume, mm per microsecond (Szabo, appendix B)."""
FWHM = 2.0 * float(np.sqrt(2.0 * np.log(2.0)))
"""Full width at half maximum of a Gaussian, in standard deviations."""
RAYLEIGH_SNR = float(np.sqrt(np.pi / (4.0 - np.pi)))
"""Mean over standard deviation of a Rayleigh envelope, 1.913 (Burckhardt 1978)."""


@dataclass(frozen=True)
class Grid:
    """The region under a linear probe, sampled in depth (rows) and along the probe (columns).

    Attributes
    ----------
    depth_mm, width_mm : float
        Extent of the region.
    dz_mm, dx_mm : float
        Steps; the defaults put 1.8 samples or more into the full width at half maximum of the narrowest pulse and beam
        that the phantoms draw.
    """

    depth_mm: float
    width_mm: float
    dz_mm: float = 0.09
    dx_mm: float = 0.13

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, (Z, X)."""
        return round(self.depth_mm / self.dz_mm), round(self.width_mm / self.dx_mm)

    @property
    def z_mm(self) -> F32:
        """Depths of the rows, (Z, 1), mm."""
        return ((np.arange(self.shape[0], dtype=np.float32) + 0.5) * np.float32(self.dz_mm))[:, None]

    @property
    def x_mm(self) -> F32:
        """Positions of the columns, (1, X), mm from the left end of the probe."""
        return ((np.arange(self.shape[1], dtype=np.float32) + 0.5) * np.float32(self.dx_mm))[None, :]


@dataclass(frozen=True)
class Scanner:
    """Probe and settings of one examination.

    Attributes
    ----------
    frequency_mhz : float
        Centre frequency.
    bandwidth : float
        Two-way -6 dB bandwidth over the centre frequency, 0-1.
    f_number : float
        Focal depth over aperture.
    focus_mm, depth_of_field_mm : float
        Depth of the narrowest beam, and the distance from it at which the beam is sqrt(2) times as wide.
    dynamic_range_db : float
        Range of echo levels that the grey levels 0-255 show.
    gain_db : float
        Level of glandular tissue below white is ``-gain_db``; negative.
    tgc_slope : float
        Gain along the depth over the one that would undo the background's attenuation; 1 is a level picture.
    noise_db : float
        Electronic noise before TGC, relative to glandular tissue at the surface.
    looks : int
        Compounded looks; 1 leaves fully developed speckle.
    gamma : float
        Exponent of the grey map; 1 is linear in decibels.
    """

    frequency_mhz: float = 9.0
    bandwidth: float = 0.45
    f_number: float = 1.8
    focus_mm: float = 12.0
    depth_of_field_mm: float = 14.0
    dynamic_range_db: float = 60.0
    gain_db: float = -18.0
    tgc_slope: float = 1.0
    noise_db: float = -72.0
    looks: int = 1
    gamma: float = 1.0

    @property
    def wavelength_mm(self) -> float:
        """Wavelength at the centre frequency, mm."""
        return SPEED_OF_SOUND_MM_US / self.frequency_mhz

    @property
    def axial_sigma_mm(self) -> float:
        """Standard deviation of the pulse's envelope along the depth, mm.

        A Gaussian spectrum of full width ``bandwidth * frequency`` has sigma_f = B f / 2.355; its envelope in time has
        sigma_t = 1 / (2 pi sigma_f), and depth is c t / 2 (Szabo, chapter 10).
        """
        return SPEED_OF_SOUND_MM_US * FWHM / (4.0 * np.pi * self.bandwidth * self.frequency_mhz)


def lateral_sigma_mm(scanner: Scanner, z_mm: F32) -> F32:
    """Standard deviation of the beam along the probe, mm, at depths ``z_mm`` (any shape, mm).

    At the focus the full width at half maximum is wavelength x F-number; away from it the beam widens like a Gaussian
    one, sqrt(1 + ((z - focus) / depth of field)^2) (Szabo, chapter 6).
    """
    waist = scanner.wavelength_mm * scanner.f_number / FWHM
    widening = np.sqrt(1.0 + ((z_mm - scanner.focus_mm) / scanner.depth_of_field_mm) ** 2)
    return np.asarray(waist * widening, dtype=np.float32)


@lru_cache(maxsize=8)
def _beam_spectrum(grid: Grid, scanner: Scanner) -> F32:
    """Transfer function of the beam at each depth, (Z, K), scaled so that white noise keeps its power."""
    columns = _padded(grid)
    k = (2.0 * np.pi * fft.fftfreq(columns, d=grid.dx_mm)).astype(np.float32)[None, :]
    sigma = lateral_sigma_mm(scanner, grid.z_mm)
    spectrum = np.exp(-0.5 * (sigma * k) ** 2)
    return np.asarray(spectrum / np.sqrt(np.mean(spectrum**2, axis=1, keepdims=True)), dtype=np.float32)


def _padded(grid: Grid) -> int:
    """Columns of the transform: 5 mm of margin keep the ends of the probe from leaking into each other."""
    return int(fft.next_fast_len(grid.shape[1] + round(5.0 / grid.dx_mm)))


def beamform(scatterers: C64, grid: Grid, scanner: Scanner) -> C64:
    """Convolve scatterers with the depth-dependent point-spread function.

    Parameters
    ----------
    scatterers : complex64 (Z, X)
        Reflectivity in baseband. Unit-variance white noise gives an echo of unit mean power at every depth.
    grid, scanner : Grid, Scanner

    Returns
    -------
    complex64 (Z, X)
        The echo before detection.
    """
    columns = grid.shape[1]
    sigma = scanner.axial_sigma_mm / grid.dz_mm
    taps = np.arange(-int(4.0 * sigma + 1.0), int(4.0 * sigma + 1.0) + 1)
    pulse = np.exp(-0.5 * (taps / sigma) ** 2)
    pulse = (pulse / np.sqrt(np.sum(pulse**2))).astype(np.float32)
    spectrum = fft.fft(scatterers, n=_padded(grid), axis=1)
    spectrum *= _beam_spectrum(grid, scanner)
    lateral = fft.ifft(spectrum, axis=1, overwrite_x=True)[:, :columns]
    # A real kernel on both parts: cheaper than a second transform for so short a pulse.
    echo = np.empty(grid.shape, dtype=np.complex64)
    echo.real = ndimage.correlate1d(lateral.real, pulse, axis=0, mode="reflect")
    echo.imag = ndimage.correlate1d(lateral.imag, pulse, axis=0, mode="reflect")
    return echo


def _complex_noise(rng: np.random.Generator, shape: tuple[int, int]) -> C64:
    """Circular complex Gaussian noise of unit variance: the sum over many scatterers of random phase."""
    parts = rng.standard_normal((*shape, 2), dtype=np.float32) * np.float32(np.sqrt(0.5))
    return np.asarray(parts.view(np.complex64)[..., 0])


def attenuation_db(attenuation: F32, grid: Grid, scanner: Scanner) -> F32:
    """Round-trip loss to each depth, dB, (Z, X), of an attenuation map in dB/cm/MHz, (Z, X).

    loss = 2 f integral of alpha dz (Szabo, chapter 4). It is averaged over the beam's aperture, 0.7 mm along the probe,
    so that a shadow has no edge sharper than a beam.
    """
    loss = np.cumsum(attenuation, axis=0, dtype=np.float32)
    loss *= np.float32(2.0 * scanner.frequency_mhz * grid.dz_mm / 10.0)
    return np.asarray(
        ndimage.gaussian_filter1d(loss, 0.7 / grid.dx_mm, axis=1, mode="nearest", truncate=3.0), dtype=np.float32
    )


def envelope(
    rng: np.random.Generator,
    grid: Grid,
    scanner: Scanner,
    *,
    echo_db: F32,
    specular: F32 | None = None,
    loss_db: F32 | None = None,
    tgc_db: F32 | None = None,
) -> F32:
    """Detected and compounded envelope.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the scatterers and of the electronic noise.
    grid, scanner : Grid, Scanner
    echo_db : float32 (Z, X)
        Diffuse echogenicity relative to glandular tissue, dB.
    specular : float32 (Z, X), optional
        Amplitude of coherent reflectors (fascia, ligaments), 1 = as strong as glandular speckle; they carry one phase,
        so that they show as lines rather than as speckle.
    loss_db : float32 (Z, X), optional
        Round-trip attenuation, dB.
    tgc_db : float32 (Z, 1), optional
        Time-gain compensation, dB; it lifts echo and electronic noise alike.

    Returns
    -------
    float32 (Z, X)
        Amplitude, > 0; 1 is the root-mean-square amplitude of glandular tissue.
    """
    decibel = np.float32(np.log(10.0) / 20.0)
    gain_db = np.zeros((grid.shape[0], 1), np.float32) if tgc_db is None else tgc_db
    transmitted_db = gain_db if loss_db is None else gain_db - loss_db
    amplitude = np.exp(decibel * (echo_db + transmitted_db))
    coherent = None if specular is None else specular * np.exp(decibel * transmitted_db)
    noise = np.exp(decibel * (np.float32(scanner.noise_db) + gain_db))
    # The receiver's own noise has no beam: it is new from one scan line to the next (two columns) at every depth, and
    # as long as the receiver's filter (two rows). One field serves all looks, moved far enough to be as good as new.
    rows, columns = grid.shape
    receiver = _complex_noise(rng, ((rows + 1) // 2, (columns + 1) // 2))
    receiver = receiver.repeat(2, axis=0)[:rows].repeat(2, axis=1)[:, :columns] * noise
    total = np.zeros(grid.shape, dtype=np.float32)
    for look in range(scanner.looks):
        scatterers = _complex_noise(rng, grid.shape)
        scatterers *= amplitude
        if coherent is not None:
            scatterers += coherent
        echo = beamform(scatterers, grid, scanner)
        echo += np.roll(receiver, 97 * look, axis=1)
        total += np.abs(echo)
    total /= np.float32(scanner.looks)
    return np.maximum(total, np.float32(1e-9))


def compress(amplitude: F32, dynamic_range_db: float, *, full_scale: float = 1.0, gamma: float = 1.0) -> F32:
    """Log compression: ``full_scale`` becomes 1, ``full_scale - dynamic_range_db`` and all below it 0.

    Parameters
    ----------
    amplitude : float32, any shape
        Envelope, > 0.
    dynamic_range_db : float
        Displayed range, dB, > 0.
    full_scale : float
        Amplitude shown white.
    gamma : float
        Exponent of the grey map; with 1 the levels are linear in decibels.

    Returns
    -------
    float32, same shape, 0-1
    """
    level = 1.0 + np.log10(amplitude / np.float32(full_scale)) * np.float32(20.0 / dynamic_range_db)
    level = np.clip(level, 0.0, 1.0)
    return np.asarray(level if gamma == 1.0 else level**gamma, dtype=np.float32)


def scan_convert(level: F32, size: int) -> U8:
    """Resample grey levels (Z, X), 0-1, to a square uint8 picture (size, size), averaging where it is made smaller."""
    picture = Image.fromarray(level).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(np.clip(np.asarray(picture) * 255.0 + 0.5, 0.0, 255.0), dtype=np.uint8)
