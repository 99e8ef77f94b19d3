"""How a model is loaded, told once: read from the command line, passed on as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from planner.errors import InputError

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LoadOptions:
    """Everything `calibrate.inputs.load.load` can be told besides the model's name.

    Attributes:
        device: ``auto`` is the first accelerator, else the CPU; not together with `device_map`.
        dtype: ``auto`` is the checkpoint's own, except that half precision becomes float32 on a CPU.
        revision: branch, tag or commit on the hub.
        trust_remote_code: run model code from the hub.
        attn_implementation: ``sdpa`` or ``eager``; None is transformers' default.
        device_map: ``auto`` to spread a model larger than one GPU.
        processor: settings of the image processor that replace the checkpoint's own, such as ``max_pixels``.

    Raises:
        InputError: an unknown dtype, or two places.
    """

    device: str = "auto"
    dtype: str = "auto"
    revision: str | None = None
    trust_remote_code: bool = False
    attn_implementation: str | None = None
    device_map: str | None = None
    processor: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"dtype {self.dtype!r} is unknown", f"Choose one of {', '.join(DTYPES)}")
        if self.device_map is not None and self.device != "auto":
            raise InputError(
                f"--device {self.device} and --device-map {self.device_map} both say where the model goes", "Give one"
            )

    @property
    def hub(self) -> dict[str, str | bool | None]:
        """What every download from the hub is told."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}
