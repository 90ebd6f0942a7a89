"""An object of JSON that is kept as the text that it came as."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any


class JsonObject(Mapping[str, Any]):
    """A mapping that is parsed when it is first looked into: whoever passes JSON on need not."""

    def __init__(self, text: str) -> None:
        """`text` is the JSON of an object that every encoding can hold."""
        self.text = text

    @cached_property
    def content(self) -> dict[str, Any]:
        """The object, parsed."""
        content: dict[str, Any] = json.loads(self.text)
        return content

    def __getitem__(self, key: str) -> Any:
        return self.content[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.content)

    def __len__(self) -> int:
        return len(self.content)

    def __repr__(self) -> str:
        return f"JsonObject({self.text!r})"
