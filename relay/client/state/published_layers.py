"""The layers of a published stream: which of them the relay asks for."""

from __future__ import annotations

from collections.abc import Sequence

from attrs import define, field

from relay.protocol.messages import Layer


@define(eq=False)
class PublishedLayers:
    """The sizes in which each picture can be sent. Without any, a stream has a single layer, whose
    id is None."""

    layers: Sequence[Layer]
    """The smallest first."""
    known: bool = field(default=False, init=False)
    """Whether the relay knows of layers: it repeats them in its answer to `register`."""
    needed: Sequence[str] | None = field(default=None, init=False)
    """The ids that the relay asks for; None while it names none."""

    @property
    def wanted(self) -> tuple[str, ...]:
        """The ids of those to send while somebody is watching, the smallest first."""
        # A relay that names none gets the largest. The only layer never stops for the list.
        if self.needed is None or len(self.layers) == 1:
            return tuple(each.id for each in self.layers[-1:])
        return tuple(each.id for each in self.layers if each.id in self.needed)

    def id_of(self, layer: str | None) -> str | None:
        """The layer of a frame, which is the largest where it names none; `ValueError` for an
        unknown one."""
        if layer is None:
            return self.layers[-1].id if self.layers else None
        if all(layer != each.id for each in self.layers):
            raise ValueError(f"there is no layer {layer}")
        return layer

    def takes(self, layer_id: str | None) -> bool:
        """Whether the relay takes frames of a layer: of the largest always."""
        return self.known or layer_id == self.id_of(None)

    def widths(self, most: int | None) -> dict[str | None, int]:
        """The pixels of the layers to send, by id and none of them wider than `most`; `ValueError`
        where neither says a width."""
        own: dict[str | None, int | None] = {
            each.id: each.width for each in self.layers if each.id in self.wanted
        }
        widths: dict[str | None, int] = {}
        for layer_id, width in (own if self.layers else {None: None}).items():
            known = [each for each in (width, most) if each is not None]
            if not known:
                raise ValueError("a width is needed where a layer has none")
            widths[layer_id] = min(known)
        return widths
