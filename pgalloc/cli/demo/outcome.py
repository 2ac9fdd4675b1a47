"""What a new process that restored the demo's image says about it, as a line of JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field


@dataclass(slots=True)
class Outcome:
    """``problems`` says in words what went wrong; empty means success.

    Attributes:
        files: how many were found again, with the digest that was saved.
        first_file_s: seconds from the call of restore() until every page of the first file that
            has contents had been read; None if there is no such file.
        returned_s: seconds until restore() returned.
    """

    problems: list[str] = field(default_factory=list)
    files: int = 0
    first_file_s: float | None = None
    returned_s: float = 0.0

    def to_json(self) -> str:
        """One line, for standard output."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Outcome:
        """Raises ValueError or TypeError for what ``to_json`` did not write."""
        return cls(**json.loads(text))
