"""From bytes to checked values, or to a ValueError that names what is wrong with them."""

from __future__ import annotations

from dataclasses import asdict

from image_crc import crc32c
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
    decoded,
    need,
)
from image_tables import (
    ENTRY,
    ENTRY_BYTES,
    EXTENT,
    EXTENT_SPAN,
    HEADER,
    HOOK,
    HOOK_BYTES,
    HOOK_NAME_MOST,
    HOOKS_MOST,
    INDEX,
    INDEX_BYTES,
    KINDS,
    MAGICS,
    METADATA_MOST,
    PAGE_LEAST,
    RESTORE_ID_MOST,
    TRAILER,
    USAGE,
    USAGE_BYTES,
    VERSIONS,
    Table,
    read,
    round_up,
    unnamed,
)


def parse(data: bytes, page_size: int | None = None) -> Image:
    """Everything an image says. Raises ValueError, which names the first thing that is wrong.

    With ``page_size``, that of the machine, an image of another one is refused.
    """
    header = _parse_header(data, page_size)
    page = header.page_size
    image = Image(page, header.file_size, header=header)
    first_extent = _parse_metadata(data, image, header)
    trailer = _parse_trailer(data, header)
    need(trailer.index_offset >= first_extent, "trailer: index offset inside the metadata")
    index_size = round_up(INDEX_BYTES + trailer.extent_count * ENTRY_BYTES, page)
    need(
        trailer.index_offset + index_size + page == len(data),
        "trailer: index offset and extent count do not fill the image",
    )
    index = data[trailer.index_offset : trailer.index_offset + index_size]
    image.index = _parse_index(index, trailer)
    offset, floor = first_extent, 0
    for number, entry in enumerate(image.index):
        need(offset < trailer.index_offset, f"extent {number}: begins where the index does")
        extent, size = _parse_extent(data[offset : trailer.index_offset], entry, offset, image)
        need(extent.start >= floor, f"extent {number}: overlaps or not ascending")
        floor = extent.start + extent.page_count * page
        image.extents.append(extent)
        offset += size
    need(offset == trailer.index_offset, "index: does not begin where the extents end")
    stored_pages = sum(extent.stored_pages for extent in image.extents)
    need(trailer.stored_pages == stored_pages, "trailer: stored pages are not the sum")
    most_skipped = header.file_size // page - stored_pages
    need(trailer.zero_pages_skipped <= most_skipped, "trailer: zero pages skipped")
    image.zero_pages_skipped = trailer.zero_pages_skipped
    image.trailer = trailer
    return image


def _parse_header(data: bytes, page_size: int | None) -> Header:
    need(len(data) >= 8, "header: missing")
    need(data[:8] == MAGICS["header"].to_bytes(8, "little"), "header: magic")
    need(len(data) >= 16, "header: missing")
    version, page = (read(HEADER, data)[name] for name in ("version", "page_size"))
    if version not in VERSIONS:
        raise VersionError(f"header: version {version}")
    need(page.bit_count() == 1 and page >= PAGE_LEAST, "header: page size")
    if page_size not in (None, page):
        raise VersionError(f"header: page size {page}")
    need(len(data) >= page, "header: missing")
    values = _checked_page("header", HEADER, data[:page])
    header = Header(**values)
    need(header.restore_id_length <= RESTORE_ID_MOST, "header: restore_id length")
    need(header.hook_count <= HOOKS_MOST, "header: hook count")
    need(header.file_size % page == 0 and header.file_size < 1 << 63, "header: file size")
    need(header.metadata_length <= METADATA_MOST, "header: metadata length")
    return header


def _parse_metadata(data: bytes, image: Image, header: Header) -> int:
    """Fills ``image``; returns where the extents begin."""
    page, length = header.page_size, header.metadata_length
    end = page + round_up(length, page)
    need(end <= len(data), "metadata: missing")
    padded = data[page:end]
    need(crc32c(padded) == header.metadata_checksum, "metadata: checksum")
    need(not any(padded[length:]), "metadata: padding")
    position = header.usage_count * USAGE_BYTES
    need(position <= length, "metadata: usage count")
    floor = 0
    for at in range(0, position, USAGE_BYTES):
        entry = padded[at : at + USAGE_BYTES]
        _need_zeros("usage", USAGE, entry)
        usage = Usage(**read(USAGE, entry))
        need(not (usage.start | usage.end) % page, "usage: not whole pages")
        need(floor <= usage.start < usage.end <= header.file_size, "usage: range")
        need(usage.references >= 1, "usage: references")
        need(usage.kind < KINDS, "usage: kind")
        need(usage.committed <= 1, "usage: committed")
        need(usage.huge <= 1, "usage: huge")
        floor = usage.end
        image.usage.append(usage)
    need((header.version == 2) == any(u.huge for u in image.usage), "version: huge pages")
    image.restore_id, position = _text(padded, position, header.restore_id_length, length)
    for _ in range(header.hook_count):
        need(position + HOOK_BYTES <= length, "hook: missing")
        values = read(HOOK, padded, position)
        need(1 <= values["name_length"] <= HOOK_NAME_MOST, "hook: name length")
        name, position = _text(padded, position + HOOK_BYTES, values["name_length"], length)
        need(name not in {hook.name for hook in image.hooks}, "hook: name appears twice")
        payload_end = position + values["payload_length"]
        need(payload_end <= length, "hook: payload length")
        image.hooks.append(Hook(name, padded[position:payload_end]))
        position = payload_end
    need(position == length, "metadata: surplus bytes")
    return end


def _parse_trailer(data: bytes, header: Header) -> Trailer:
    page = header.page_size
    need(len(data) % page == 0, "trailer: the image is not whole pages")
    need(len(data) >= 2 * page, "trailer: missing")
    trailer = Trailer(**_checked_page("trailer", TRAILER, data[-page:]))
    need(trailer.image_size == len(data), "trailer: image size")
    need(trailer.header_checksum == header.checksum, "trailer: header checksum")
    need(trailer.index_offset % page == 0, "trailer: index offset")
    return trailer


def _parse_index(index: bytes, trailer: Trailer) -> list[IndexEntry]:
    need(crc32c(index) == trailer.index_checksum, "index: checksum")
    values = read(INDEX, index)
    need(values["magic"] == MAGICS["index"], "index: magic")
    _need_zeros("index", INDEX, index[:INDEX_BYTES])
    need(values["extent_count"] == trailer.extent_count, "index: extent count")
    end = INDEX_BYTES + trailer.extent_count * ENTRY_BYTES
    need(not any(index[end:]), "index: padding")
    return [IndexEntry(**read(ENTRY, index, at)) for at in range(INDEX_BYTES, end, ENTRY_BYTES)]


def _parse_extent(data: bytes, entry: IndexEntry, offset: int, image: Image) -> tuple[Extent, int]:
    """The extent at the beginning of ``data``, and its size in the image."""
    page = image.page_size
    values = _checked_page("extent", EXTENT, data[:page])
    head = {name: values[name] for name in ENTRY if name in values}
    extent = Extent(
        head["start"], head["page_count"], values["page_map"], b"", encoding=head["encoding"]
    )
    end = extent.start + extent.page_count * page
    need(extent.start % page == 0, "extent: start")
    need(extent.page_count >= 1 and end <= image.file_size, "extent: page count")
    need(
        extent.start // EXTENT_SPAN == (end - 1) // EXTENT_SPAN,
        "extent: crosses a multiple of 4 MiB",
    )
    need(extent.page_map >> extent.page_count == 0, "extent: page map has pages behind its end")
    need(extent.stored_pages == head["stored_pages"], "extent: stored pages")
    need(extent.stored_pages >= 1, "extent: no stored pages")
    need(extent.encoding in (RAW, ZSTD), "extent: encoding")
    length, whole = head["stored_length"], extent.stored_pages * page
    sound = length == whole if extent.encoding == RAW else 1 <= length < whole
    need(sound, "extent: stored length")
    need(head["offset"] == offset, "extent: offset")
    need(head | {"head_checksum": values["checksum"]} == asdict(entry), "index: differs from head")
    size = page + round_up(length, page)
    need(size <= len(data), "extent: pages missing")
    need(crc32c(data[page:size]) == values["data_checksum"], "extent: data checksum")
    need(not any(data[page + length : size]), "extent: padding")
    extent.stored = data[page : page + length]
    for stored in decoded(extent, page)[0]:
        used = any(usage.start <= stored < usage.end for usage in image.usage)
        need(used, "extent: a stored page is not in the usage set")
    return extent, size


def _checked_page(part: str, table: Table, page: bytes) -> dict[str, int]:
    """The fields of a page that holds its own checksum, without the magic."""
    values = read(table, page)
    need(values.pop("magic") == MAGICS[part], f"{part}: magic")
    offset, width = table["checksum"]
    blank = page[:offset] + bytes(width) + page[offset + width :]
    need(crc32c(blank) == values["checksum"], f"{part}: checksum")
    _need_zeros(part, table, page)
    return values


def _need_zeros(part: str, table: Table, data: bytes) -> None:
    for offset, width in unnamed(table.values(), len(data)):
        need(not any(data[offset : offset + width]), f"{part}: a byte that must be zero is not")


def _text(data: bytes, at: int, length: int, limit: int) -> tuple[str, int]:
    need(at + length <= limit, "metadata: text reaches behind its end")
    try:
        return data[at : at + length].decode(), at + length
    except UnicodeDecodeError as error:
        raise ValueError("metadata: text is not UTF-8") from error
