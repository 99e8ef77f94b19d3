"""Visual rows run alone through a recurrent layer: each a sequence of one row, from a fresh state.

One step over a state of zeros is such a sequence, without the chunk that layers pad a prompt to. Text does not read
rows that run alone here (a schedule that says so is refused), so that they leave no keys and values behind.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from planner.runtime.model.cache import Attachment, PrunedState
from planner.runtime.model.hidden import HiddenForm
from planner.runtime.model.isolated import Diversion, IsolatedLayer

#: Elements of state held at once: rows go through in parts.
_MOST_STATE = 1 << 26


class RecurrentLayer(IsolatedLayer):
    """Runs one recurrent layer on rows outside the main stream.

    Args:
        layer: the decoder layer.
        index: its place among the layers.
        diversion: as for `IsolatedLayer`.
    """

    recurrent = True

    def __init__(self, layer: Any, index: int, diversion: Diversion) -> None:
        super().__init__(layer, None, 0, diversion, HiddenForm())
        self.index = index
        #: Of one row: its convolution and its recurrent state, None where there is none.
        self._fresh: tuple[Tensor | None, Tensor | None] = (None, None)

    def check(self, hidden: Tensor, kwargs: dict[str, Any]) -> bool:
        """Learn what the layer's states are. There is no other form to compare."""
        states = PrunedState(Attachment())
        self._step(hidden[:1, :1], kwargs, states)
        found = states.conv_states[0], states.recurrent_states[0]
        self._fresh = tuple(None if state is None else torch.zeros_like(state) for state in found)  # type: ignore[assignment]
        return False

    def run(self, hidden: Tensor, kwargs: dict[str, Any], keys: bool) -> tuple[Tensor, None, None]:
        """The layer's output ``[B, a, d]`` of rows that are alone."""
        rows = hidden.flatten(0, 1)[:, None]
        size = sum(state.numel() for state in self._fresh if state is not None)
        parts = rows.split(max(1, _MOST_STATE // size))
        found = [self._step(part, kwargs, self._states(len(part))) for part in parts]
        return torch.cat(found).reshape(hidden.shape), None, None

    def _step(self, rows: Tensor, kwargs: dict[str, Any], states: PrunedState) -> Tensor:
        """Rows ``[r, 1, d]`` after the layer. Positions stay those of other rows: a recurrent layer reads none."""
        cache = DynamicCache()
        cache.layers = [states] * (self.index + 1)
        return self.output(rows, {**kwargs, "attention_mask": None, "past_key_values": cache})

    def _states(self, rows: int) -> PrunedState:
        """Fresh states of some rows."""
        states = PrunedState(Attachment())
        convolution, recurrent = self._fresh
        for name, state in (("conv_states", convolution), ("recurrent_states", recurrent)):
            if state is not None:
                getattr(states, name)[0] = state.new_zeros(rows, *state.shape[1:])
                getattr(states, f"is_{name}_initialized")[0] = True
        states.conv_kernel_size[0] = None if convolution is None else convolution.shape[-1]
        states.has_previous_state[0] = True
        return states
