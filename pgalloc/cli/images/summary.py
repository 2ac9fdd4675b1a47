"""What an image amounts to: the sums that ``pgalloc inspect`` and ``verify`` show. Prints nothing.

Bytes *represented* are those of the usage set: what a restore brings back. Bytes *stored* are those
that the image holds for them; pages that are zero cost nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import pgalloc


@dataclass(frozen=True, slots=True)
class KindSummary:
    """The segments of one kind. ``refs_least`` and ``refs_most`` are references on a page."""

    kind: str
    segments: int
    represented_bytes: int
    committed_bytes: int
    refs_least: int
    refs_most: int
    memcg_ids: list[int]


@dataclass(frozen=True, slots=True)
class EncodingSummary:
    """The extents of one encoding; ``page_bytes`` is what their stored pages are in memory."""

    encoding: str
    extents: int
    stored_pages: int
    page_bytes: int
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Totals:
    """The whole image, in bytes."""

    represented_bytes: int
    page_bytes: int
    stored_bytes: int
    zero_bytes_skipped: int


def totals_of(info: pgalloc.ImageInfo) -> Totals:
    """The sums over all segments and extents."""
    return Totals(
        sum(segment.end - segment.start for segment in info.segments),
        info.stored_pages * info.page_size,
        sum(extent.stored_bytes for extent in info.extents),
        info.zero_pages_skipped * info.page_size,
    )


def kinds_of(info: pgalloc.ImageInfo) -> list[KindSummary]:
    """The kinds that occur, in their order."""
    summaries = []
    for kind in pgalloc.MemoryKind:
        segments = [segment for segment in info.segments if segment.kind == kind]
        if segments:
            refs = [segment.refs for segment in segments]
            summaries.append(
                KindSummary(
                    kind.name,
                    len(segments),
                    sum(segment.end - segment.start for segment in segments),
                    sum(segment.known_committed for segment in segments),
                    min(refs),
                    max(refs),
                    sorted({segment.memcg_id for segment in segments} - {0}),
                )
            )
    return summaries


def encodings_of(info: pgalloc.ImageInfo) -> list[EncodingSummary]:
    """The encodings that occur, by name."""
    summaries = []
    for encoding in sorted({extent.encoding for extent in info.extents}):
        extents = [extent for extent in info.extents if extent.encoding == encoding]
        pages = sum(extent.stored_pages for extent in extents)
        stored = sum(extent.stored_bytes for extent in extents)
        summaries.append(
            EncodingSummary(encoding, len(extents), pages, pages * info.page_size, stored)
        )
    return summaries


def largest_extents(info: pgalloc.ImageInfo, count: int) -> list[pgalloc.ImageExtent]:
    """Those that store the most bytes, in file order; of equal ones the first."""
    by_size = sorted(info.extents, key=lambda extent: -extent.stored_bytes)
    return sorted(by_size[:count], key=lambda extent: extent.start)


def as_json(info: pgalloc.ImageInfo) -> dict[str, object]:
    """Everything, as values that JSON knows."""
    return {
        "version": info.version,
        "page_size": info.page_size,
        "image_bytes": info.image_bytes,
        "file_size": info.file_size,
        "restore_id": info.restore_id,
        "stored_pages": info.stored_pages,
        "zero_pages_skipped": info.zero_pages_skipped,
        **asdict(totals_of(info)),
        "hooks": info.hooks,
        "kinds": [asdict(kind) for kind in kinds_of(info)],
        "encodings": [asdict(encoding) for encoding in encodings_of(info)],
        "segments": [
            segment._asdict() | {"kind": pgalloc.MemoryKind(segment.kind).name}
            for segment in info.segments
        ],
        "extents": [asdict(extent) for extent in info.extents],
    }
