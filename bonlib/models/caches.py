"""What `transformers` keeps of tokens that were read, for rows that share a beginning, leave, or go on in copies."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor


def share_cache(cache: Any, rows: Tensor, *, room: int) -> None:
    """Give each row of a batch the cache of its prompt, with room for more tokens where the layer's kind allows it."""
    from transformers.cache_utils import DynamicLayer

    for place, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[place] = _roomy_layer()(layer, rows, room)
        else:
            layer.reorder_cache(rows)


def plain_layers(cache: Any) -> bool:
    """Return whether a cache is the usual one: all keys and values of each layer."""
    from transformers.cache_utils import DynamicLayer

    return all(type(layer) is DynamicLayer for layer in cache.layers)


def select_rows(cache: Any, rows: Tensor) -> None:
    """Keep some rows of a cache, in a new order if need be."""
    for layer in cache.layers:
        layer.reorder_cache(rows)


@functools.cache  # the base class comes with a heavy import, so this one is made when it is first needed
def _roomy_layer() -> Any:
    from transformers.cache_utils import DynamicLayer

    class RoomyLayer(DynamicLayer):  # type: ignore[misc]
        """Keys and values of one layer with room for the tokens to come; the usual cache copies all of it each time."""

        def __init__(self, layer: DynamicLayer, rows: Tensor, room: int) -> None:
            super().__init__()
            self.lazy_initialization(layer.keys, layer.values)
            self._length = layer.keys.shape[2]
            kept = (kept[rows] for kept in (layer.keys, layer.values))
            self._kept = [torch.cat([k, k.new_empty(*k.shape[:2], room, k.shape[3])], dim=2) for k in kept]
            self._show()

        def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            begin, self._length = self._length, self._length + key_states.shape[2]
            for kept, new in zip(self._kept, (key_states, value_states), strict=True):
                kept[:, :, begin : self._length] = new
            self._show()
            return self.keys, self.values

        def reorder_cache(self, beam_idx: Tensor) -> None:
            self._kept = [kept[beam_idx] for kept in self._kept]
            self._show()

        def _show(self) -> None:
            self.keys, self.values = (kept[:, :, : self._length] for kept in self._kept)

    return RoomyLayer
