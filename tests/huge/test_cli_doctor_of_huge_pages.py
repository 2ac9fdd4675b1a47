"""``pgalloc doctor`` where there are huge pages."""

from __future__ import annotations

from pgalloc.cli.doctor.huge_pages import try_huge_page


def test_the_doctor_finds_them() -> None:
    assert try_huge_page() == "advise"
