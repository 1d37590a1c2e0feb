"""How the service is set up: addresses, keys, and what it refuses."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path

from sonobreast.serving.keys import Key
from sonobreast.serving.readers import Limits

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
WILDCARDS = frozenset({"0.0.0.0", "::", ""})


@dataclass(frozen=True)
class Settings:
    """Of one service.

    Attributes
    ----------
    host : str
        Address that is listened on.
    port : int
        0: any that is free.
    names : tuple of str
        Names by which clients may call the service (header ``Host``) beside its address and, on a loopback address,
        ``localhost``. Where the address is a wildcard and no names are given, any name is taken: a key is needed there
        anyway.
    keys : tuple of Key
        One of them opens ``/v1/predict``, ``/v1/model`` and ``/metrics``; none: everybody may.
    workers : int
        Images that are predicted at the same time.
    body, file : int
        Largest upload and largest file in it, in bytes.
    files : int
        In one upload.
    limits : Limits
        Of a file, by its header.
    images : int
        Files that wait or are being predicted; more are answered 429.
    memory : int
        Bytes of all uploads that are held at the same time; more are answered 429.
    seconds : float
        For a whole request, its upload included.
    header_seconds : float
        For the head of a request to arrive.
    tls : tuple of (Path, Path) or None
        Certificate and key.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    names: tuple[str, ...] = ()
    keys: tuple[Key, ...] = ()
    workers: int = field(default_factory=lambda: max(1, min(8, os.cpu_count() or 1)))
    body: int = 48 << 20
    file: int = 16 << 20
    files: int = 32
    limits: Limits = field(default_factory=lambda: Limits(bytes=16 << 20, pixels=16_000_000, frames=8))
    images: int = 64
    memory: int = 256 << 20
    seconds: float = 30.0
    header_seconds: float = 10.0
    tls: tuple[Path, Path] | None = None

    @property
    def hosts(self) -> frozenset[str] | None:
        """Values of the header ``Host`` that are answered, lower case, without port; None: any."""
        own = frozenset(n.lower() for n in self.names)
        if is_loopback(self.host):
            return own | LOOPBACK
        if self.host in WILDCARDS:
            return own | LOOPBACK if own else None
        return own | {f"[{self.host.lower()}]" if ":" in self.host else self.host.lower()}


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
