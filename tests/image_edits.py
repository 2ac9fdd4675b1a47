"""Damage to images: hostile values for single fields, and random edits of every depth."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from conftest import PAGE
from image_model import Field, Image, Usage, build, fields, forge, parse, unnamed_bytes

SPAN = 4 << 20


def hostile_numbers(value: int, width: int) -> list[int]:
    """Other values for a field: its borders, its neighbours, signs, and products that wrap."""
    top = (1 << 8 * width) - 1
    near = [
        value - 1,
        value + 1,
        value * 2,
        value // 2,
        value + PAGE,
        value - PAGE,
        value ^ 1 << 31,
    ]
    borders = [0, 1, top, top - 1, top >> 1, (top >> 1) + 1, PAGE, SPAN, 1 << 31, 1 << 40, 1 << 63]
    borders += [top // PAGE, top // PAGE + 1, top - PAGE + 1, (top >> 1) - PAGE + 1]
    return sorted({number for number in near + borders if 0 <= number <= top} - {value})


def number_fields(data: bytes) -> list[tuple[Field, int]]:
    """The fields of the tables, with their values."""
    return [
        (field, int.from_bytes(data[field.offset : field.end], "little"))
        for field in fields(data)
        if field.is_number
    ]


def twins(data: bytes, name: str) -> list[str]:
    """The other places that say the same, which a careful forger changes as well."""
    part, _, field = name.partition(".")
    other = {"extent_count": ["index.extent_count", "trailer.extent_count"]}.get(field, [])
    if part.startswith("extent["):
        other = [f"index{part[6:]}.{field}"]
    names = {known.name for known in fields(data)}
    return [twin for twin in other if twin != name and twin in names]


def edits(seed: int, bases: list[bytes]) -> Iterator[bytes]:
    """For ever: one of the images, changed. Most changes come with checksums that fit."""
    rng = random.Random(seed)
    while True:
        data = rng.choice(bases)
        edit = rng.choices([_bytes, _fields, _frames, _parts, _values], [4, 8, 2, 3, 8])[0]
        yield edit(rng, data)


def _bytes(rng: random.Random, data: bytes) -> bytes:
    """What a disk or a network does: checksums are as they were."""
    edited = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(edited) or 1)
        end = min(len(edited), at + rng.choice([1, 1, 4, 8, 64, PAGE]))
        change = rng.randrange(6)
        if change == 0 and edited:
            edited[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            edited[at:end] = rng.randbytes(end - at)
        elif change == 2:
            edited[at:end] = bytes(end - at)
        elif change == 3:
            del edited[at:end]
        elif change == 4:
            edited[at:at] = rng.choice([b"\0", bytes(PAGE), bytes(edited[at:end])])
        else:
            del edited[at:]
    return bytes(edited)


def _fields(rng: random.Random, data: bytes) -> bytes:
    """What a forger does: a few fields say something else, and the checksums fit."""
    changes: dict[str, int | bytes] = {}
    for field, value in rng.sample(number_fields(data), rng.choice([1, 1, 2, 3])):
        numbers = hostile_numbers(value, field.width)
        new = rng.choice([rng.choice(numbers), value ^ 1 << rng.randrange(8 * field.width)])
        changes[field.name] = new
        if rng.random() < 0.6:
            changes |= dict.fromkeys(twins(data, field.name), new)
    return forge(data, changes)


def _frames(rng: random.Random, data: bytes) -> bytes:
    """Contents and padding that are something else, and the checksums fit."""
    contents = [(f.offset, f.width) for f in fields(data) if not f.is_number]
    padding = unnamed_bytes(data)
    offset, width = rng.choice(contents if contents and rng.random() < 0.7 else padding)
    at = offset + rng.randrange(width)
    return forge(
        data, patches={at: rng.randbytes(min(offset + width - at, rng.choice([1, 2, 16])))}
    )


def _parts(rng: random.Random, data: bytes) -> bytes:
    """Pages at the place of others."""
    first, second = (rng.randrange(len(data) // PAGE) * PAGE for _ in range(2))
    patches = {first: data[second : second + PAGE]}
    if rng.random() < 0.5:
        patches[second] = data[first : first + PAGE]
    if rng.random() < 0.5:
        return forge(data, patches=patches)
    edited = bytearray(data)
    for at, page in patches.items():
        edited[at : at + PAGE] = page
    return bytes(edited)


def _values(rng: random.Random, data: bytes) -> bytes:
    """An image that says something else throughout, sound or not."""
    image = parse(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        rng.choice(_CHANGES)(rng, image)
    return build(image)


def _some_list(rng: random.Random, image: Image) -> list[Any]:
    lists: list[list[Any]] = [image.extents, image.usage, image.hooks]
    return rng.choice(lists)


def _shuffle(rng: random.Random, image: Image) -> None:
    rng.shuffle(_some_list(rng, image))


def _duplicate(rng: random.Random, image: Image) -> None:
    items = _some_list(rng, image)
    if items:
        items.insert(rng.randrange(len(items) + 1), rng.choice(items))


def _remove(rng: random.Random, image: Image) -> None:
    items = _some_list(rng, image)
    if items:
        del items[rng.randrange(len(items))]


def _move_use(rng: random.Random, image: Image) -> None:
    if not image.usage:
        image.usage.append(Usage(0, PAGE))
    at = rng.randrange(len(image.usage))
    use = image.usage[at]
    start = max(0, use.start + rng.choice([0, 0, PAGE, -PAGE, 1, SPAN]))
    end = max(0, use.end + rng.choice([0, PAGE, -PAGE, 1, SPAN, 1 << 40]))
    image.usage[at] = Usage(
        start,
        end,
        references=rng.choice([use.references, 0, 1, 2**32 - 1]),
        memcg_id=rng.choice([use.memcg_id, 0, 2**32 - 1]),
        kind=rng.choice([use.kind, rng.randrange(7)]),
        committed=rng.choice([0, 1, 1, 2]),
        huge=rng.choice([use.huge, use.huge, 0, 1, 2]),
    )


def _change_extent(rng: random.Random, image: Image) -> None:
    if not image.extents:
        return
    extent = rng.choice(image.extents)
    change = rng.randrange(6)
    if change == 0:
        extent.start = max(0, extent.start + rng.choice([PAGE, -PAGE, SPAN, -SPAN, 1]))
    elif change == 1:
        extent.page_count = max(0, extent.page_count + rng.choice([1, -1, 1000, 1024]))
    elif change == 2:
        extent.page_map ^= 1 << rng.randrange(rng.choice([4, 1024]))
    elif change == 3:
        extent.encoding = rng.choice([0, 1, 2])
    elif change == 4:
        extent.stored += rng.choice([b"\0", extent.stored, rng.randbytes(9)])
    else:
        extent.stored = extent.stored[: rng.randrange(len(extent.stored) + 1)]


def _change_text(rng: random.Random, image: Image) -> None:
    text = rng.choice(["", "x", "\0", "a\0b", "\udcff", "\u00e4" * 100, "x" * 255, "x" * 256])
    if rng.random() < 0.3 or not image.hooks:
        image.restore_id = text
    else:
        rng.choice(image.hooks).name = text


def _change_sizes(rng: random.Random, image: Image) -> None:
    sizes = [0, PAGE, SPAN, 1 << 31, 1 << 40, 1 << 46, 1 << 62, (1 << 63) - PAGE, 1 << 63]
    if rng.random() < 0.5:
        image.file_size = rng.choice([*sizes, image.file_size + PAGE, image.file_size + 1])
    else:
        image.zero_pages_skipped = rng.choice([0, 1, 2045, 2046, 2**32, 2**64 - 1])


_CHANGES: list[Callable[[random.Random, Image], None]] = [
    _shuffle,
    _duplicate,
    _remove,
    _move_use,
    _change_extent,
    _change_text,
    _change_sizes,
]
