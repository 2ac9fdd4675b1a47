"""Offers that are made while something is pickled: if that fails, it sends nothing, and they end.

Thread safety: any thread. A signal handler that pickles something in the middle has a list of its
own, and so has an object that is pickled by pickling another: what is whole may be on its way.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from pgalloc import _core

# One offer: (the link to the owner, None for this process; its nonce). Empty until it is made.
Made = list[tuple[_core.OwnerLink | None, bytes]]


class _Current(threading.local):
    """What is pickled by a thread just now: the offers it has made. None outside of that."""

    offers: list[Made] | None = None


_current = _Current()


def place() -> Made:
    """Where to put an offer, in the very call that makes it: it is withdrawn from there.

    Outside of what :func:`withdrawing` wraps it is left to its receiver.
    """
    made: Made = []
    if _current.offers is not None:
        _current.offers.append(made)
    return made


def withdrawing(dump: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which pickles something; if it raises, what it has offered is withdrawn."""

    @functools.wraps(dump)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        outer = _current.offers
        offers: list[Made] = []
        try:
            _current.offers = offers
            return dump(*arguments, **options)
        except BaseException:
            # One call, which is begun before a signal handler can come in between.
            _core.withdraw_offers(offers)
            raise
        finally:
            _current.offers = outer

    return wrapped
