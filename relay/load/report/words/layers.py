"""Which layers viewers were shown, in words. No I/O."""

from __future__ import annotations

from collections.abc import Mapping

from relay.load.measures.stats import layer_counts

WITHOUT_LAYER = "original"
"""What the pictures without a layer are called, where the relay also made smaller ones."""


def layer_shares(counts: Mapping[str, int]) -> dict[str, float]:
    """The share of each layer in the pictures shown, the largest share first; empty where no
    picture had a layer."""
    layers, pictures = layer_counts(counts), counts.get("pictures", 0)
    if not layers or not pictures:
        return {}
    rest = pictures - sum(layers.values())
    if rest > 0:
        layers[WITHOUT_LAYER] = rest
    shown = sorted(layers.items(), key=lambda each: -each[1])
    return {name: number / pictures for name, number in shown}


def layers_in_words(counts: Mapping[str, int]) -> str:
    """`m 80%, l 20%`; empty where no picture had a layer."""
    return ", ".join(f"{name} {share:.0%}" for name, share in layer_shares(counts).items())
