"""A model on several devices: what each holds and computes, and what they tell each other.

Tensor parallelism cuts every matrix and the heads, expert parallelism the routed experts, pipeline parallelism the
layers. One request's layers follow one another however they are placed, so that a pipeline saves memory and not time.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1, le=1024)]
#: Milliseconds until a transfer between two devices starts: aiconfigurator's figure for point-to-point latency, 10 us.
START_MS = 0.01


class Parallel(BaseModel):
    """How many devices share a model.

    Attributes:
        tp: cut every matrix.
        pp: hold the layers in turns.
        ep: share the routed experts, of the `tp` devices or beside them; 1: experts are cut like all matrices.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tp: Count = 1
    pp: Count = 1
    ep: Count = 1

    @property
    def devices(self) -> int:
        """All of them."""
        return max(self.tp, self.ep) * self.pp

    @property
    def expert_shares(self) -> int:
        """Devices of a pipeline stage that the routed experts are spread over."""
        return max(self.tp, self.ep)

    def all_reduce_ms(self, sent_bytes: float, link_bytes_per_ms: float) -> float:
        """A sum over the `tp` devices that all of them get, by a ring: each sends 2 (tp - 1) / tp of the bytes."""
        if self.tp == 1:
            return 0.0
        return 2 * (self.tp - 1) / self.tp * sent_bytes / link_bytes_per_ms + 2 * (self.tp - 1) * START_MS

    def all_to_all_ms(self, sent_bytes: float, link_bytes_per_ms: float) -> float:
        """Rows to their experts: all but those that stay."""
        if self.ep == 1:
            return 0.0
        return (self.ep - 1) / self.ep * sent_bytes / link_bytes_per_ms + START_MS

    def hand_over_ms(self, sent_bytes: float, link_bytes_per_ms: float) -> float:
        """From one stage of the pipeline to the next, all of them."""
        if self.pp == 1:
            return 0.0
        return (self.pp - 1) * (sent_bytes / link_bytes_per_ms + START_MS)
