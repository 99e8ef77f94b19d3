"""What is reached of a device's peaks, and the time that neither FLOPs nor bytes explain."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

# Not just above 0: products of such numbers vanish, and times are quotients.
Reached = Annotated[float, Field(ge=1e-6, le=1)]
Microseconds = Annotated[float, Field(ge=0, lt=1e9)]
EngineName = Literal["hf", "vllm", "ideal"]


class Constants(BaseModel):
    """Of an engine (`planner.cost.engine`), or as measured on one device.

    Attributes:
        matmul: share of the FLOP peak that projections and feed-forward reach on many rows (one large matrix product
            reaches 75 to 85 %).
        attention: share of the FLOP peak that attention kernels reach.
        memory: share of the bandwidth, by reading weights and cache.
        elementwise: share of the bandwidth that norms, rotary embedding, activations and residuals reach.
        overlap: share of the shorter of computing and reading that hides behind the longer. At 1 a layer takes the
            longer of the two, the classic roofline. At 0 they follow one another, so that a layer of few rows, which
            reads as many weights as one of many, reaches less of the FLOP peak.
        layer_us, tower_layer_us: overhead of a layer of the decoder and of the vision tower (launches, Python).
        step_us: overhead of a forward pass.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    matmul: Reached = 0.75
    attention: Reached = 0.5
    memory: Reached = 0.8
    elementwise: Reached = 0.8
    overlap: Annotated[float, Field(ge=0, le=1)] = 1.0
    layer_us: Microseconds = 0.0
    tower_layer_us: Microseconds = 0.0
    step_us: Microseconds = 0.0
