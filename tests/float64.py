"""Keep transformers' modelling code in float64.

Norms, softmax and rotary embeddings cast to float32 whatever the model's dtype, which leaves a noise floor near 1e-6,
too high to tell two implementations apart. Inside `float64_throughout()` every request for float32 gives float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class float64_throughout(TorchFunctionMode):
    """Read every float32 in a torch call as float64."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        widened = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        named = {key: torch.float64 if value is torch.float32 else value for key, value in (kwargs or {}).items()}
        return func(*widened, **named)
