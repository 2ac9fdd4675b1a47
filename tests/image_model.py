"""A model of the image format in plain Python, written from docs/image-format.md alone.

``parse`` checks all that the document says; ``build`` writes any Image, sound or not, with
checksums that are right; ``fields`` lists every field of an image and ``forge`` changes some of
them and computes the checksums anew. Tests import this file only.
"""

from __future__ import annotations

from image_build import build
from image_crc import crc32c
from image_forge import Field, fields, forge, unnamed_bytes
from image_parse import parse
from image_parts import (
    RAW,
    ZSTD,
    Extent,
    Header,
    Hook,
    Image,
    IndexEntry,
    Trailer,
    Usage,
    VersionError,
    extents_of,
)

__all__ = [
    "RAW",
    "ZSTD",
    "Extent",
    "Field",
    "Header",
    "Hook",
    "Image",
    "IndexEntry",
    "Trailer",
    "Usage",
    "VersionError",
    "build",
    "crc32c",
    "extents_of",
    "fields",
    "forge",
    "parse",
    "unnamed_bytes",
]
