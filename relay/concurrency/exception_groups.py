"""What went wrong inside nurseries."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

Error = TypeVar("Error", bound=BaseException)


def leaves(group: BaseExceptionGroup[Error]) -> Iterator[Error]:
    """Yield the errors of a group and of the groups in it, in order."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error
