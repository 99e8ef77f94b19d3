"""The interface of probes, and their registry.

A probe looks at batches of samples and keeps one small row per sample in a `SampleTable`; `merge` unites the rows of
two probes, `result` summarises them. There are two kinds:

* a `OnePassProbe` reads the decoder layers of an ordinary forward pass as they run: `update(capture)` once per layer.
  All of them share one pass.
* an `ExecutedProbe` runs the model itself: `run(batch)` once per batch, on the first `samples` samples only.

To add one: write a file with a subclass, and name it in `BUILT_IN`, or in another package's entry points.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from calibrate.inputs.batches import Batch, segments
from calibrate.probes.stats import Array, SampleTable
from planner import extensions
from planner.errors import InputError, UnsupportedModelError, nearest
from planner.profile import ProbeResult, PromptShape
from planner.spec import ModelSpec

if TYPE_CHECKING:
    from planner.runtime import Influence, LayerView

#: Name to class; modules are imported when asked for. Other packages add theirs (`planner.extensions`).
BUILT_IN: dict[str, str] = {
    "prompt": "calibrate.probes.prompt_shape:PromptLengthsProbe",
    "influence": "calibrate.probes.influence:InfluenceProbe",
    "sinks": "calibrate.probes.sinks:SinksProbe",
    "sparsity": "calibrate.probes.sparsity:SparsityProbe",
    "value_norms": "calibrate.probes.value_norms:ValueNormsProbe",
    "masking": "calibrate.probes.masking.probe:MaskingProbe",
    "token_masking": "calibrate.probes.token_masking:TokenMaskingProbe",
    "lens": "calibrate.probes.lens:LensProbe",
    "instructions": "calibrate.probes.instructions:InstructionsProbe",
    "flip": "calibrate.probes.flip:FlipProbe",
    "sink_masking": "calibrate.probes.sink_masking:SinkMaskingProbe",
    "encoder_sinks": "calibrate.probes.encoder_sinks:EncoderSinksProbe",
    "attribution": "calibrate.probes.attribution.probe:AttributionProbe",
    "context": "calibrate.probes.context.probe:ContextProbe",
}
#: Part of every run: costs are computed for the lengths it finds.
ALWAYS = "prompt"
DEFAULT = ("influence", "sinks", "sparsity", "value_norms", "masking")


class Capture:
    """One decoder layer of one batch; what several probes need is computed once.

    B samples, n positions, H query heads. See `planner.runtime.LayerView` for the layer's tensors themselves (`view`).
    """

    def __init__(self, view: LayerView, layers: int, ids: Sequence[int], observed: Sequence[int] | None = None) -> None:
        self.view, self.layers, self.ids = view, layers, tuple(ids)
        #: The layers that a pass shows: all, or those that attend.
        self.observed = tuple(range(layers) if observed is None else observed)
        self.layer: int = view.layer
        self.visual: torch.Tensor = view.visual  # [B, n], False on padding
        self.valid: torch.Tensor = view.valid  # [B, n]

    @property
    def begins(self) -> bool:
        """True at the first layer."""
        return self.layer == self.observed[0]

    @property
    def finished(self) -> bool:
        """True at the last layer."""
        return self.layer == self.observed[-1]

    @cached_property
    def weights(self) -> torch.Tensor:
        """Attention of the last valid row, ``[B, H, n]`` float32."""
        return self.view.weights().squeeze(2)

    @cached_property
    def influence(self) -> Influence:
        """What zeroing each token's weight does to the last row's attention output (VisiPruner eq. 6-8)."""
        return self.view.influence()

    @cached_property
    def segments(self) -> torch.Tensor:
        """``[B, 3, n]``, see `segments`."""
        return segments(self.visual, self.valid)


class Probe(ABC):
    """Rows per sample, merged by union, summarised once."""

    name: ClassVar[str]
    #: It looks at the attention of every layer, and recurrent layers have none.
    attends: ClassVar[bool] = True

    def __init__(self) -> None:
        self.table = SampleTable()

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Parameters that decide what is measured; parts with different ones are not merged."""

    @abstractmethod
    def summary(self) -> dict[str, Any]:
        """Findings as JSON types, from the rows sorted by sample; called only when there are rows."""

    def check(self, spec: ModelSpec, samples: int, positions: int | None) -> None:  # noqa: B027 (most probes have nothing to refuse)
        """Refuse settings that a model's configuration and the number of samples make impossible; called before weights
        are loaded.

        Args:
            positions: tokens that the text decoder has positions for; None if it states no limit.

        Raises:
            InputError: they are.
        """

    def wants(self, sample: int) -> bool:
        """Whether this probe measures a sample."""
        return True

    def merge(self, other: Probe) -> None:
        """Unite the rows: associative, commutative, idempotent.

        Raises:
            CalibrationError: a sample was measured twice with different results.
        """
        self.table.merge(other.table)

    def result(self) -> ProbeResult:
        """Settings, number of samples and findings."""
        values = self.summary() if len(self.table) else {}
        return ProbeResult(n=len(self.table), settings=self.settings, values=values)


class OnePassProbe(Probe):
    """Reads the layers of a shared forward pass."""

    #: In half precision the first sample of each batch also runs by itself, just before; `by_itself` sees its layers.
    compares: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self._pending: list[dict[str, torch.Tensor]] = []

    @abstractmethod
    def measure(self, capture: Capture) -> dict[str, torch.Tensor]:
        """One layer's values, each ``[B, ...]``, left on the device."""

    def rows(self, layers: dict[str, Array], capture: Capture) -> list[dict[str, Array]]:
        """One row per sample from the values of all layers, ``[L, B, ...]``; as they are unless overridden."""
        return [{name: values[:, b] for name, values in layers.items()} for b in range(len(capture.ids))]

    def by_itself(self, capture: Capture) -> None:
        """Take in one layer of a batch's first sample by itself."""

    def update(self, capture: Capture) -> None:
        """Take in one layer; at the last layer the batch's rows are complete.

        Raises:
            CalibrationError: a sample was measured before with a different result.
        """
        if capture.begins:
            self._pending = []  # what an interrupted pass has left
        self._pending.append(self.measure(capture))
        if capture.finished:
            names = self._pending[0]
            layers = {
                name: torch.stack([one[name].cpu() for one in self._pending if name in one]).numpy() for name in names
            }
            self._pending = []
            for sample, row in zip(capture.ids, self.rows(layers, capture), strict=True):
                self.table.add(sample, **row)


class ExecutedProbe(Probe):
    """Runs the model under conditions of its own, on few samples.

    Args:
        samples: how many of the first samples; None for `default_samples`.

    Raises:
        InputError: fewer than one.
    """

    #: How many samples are measured by default.
    default_samples: ClassVar[int]
    #: Samples are measured one by one, so that a killed run has lost none that was finished.
    alone: ClassVar[bool] = False

    def __init__(self, samples: int | None = None) -> None:
        super().__init__()
        #: Whether somebody asked for that many; the default takes what is there.
        self.chosen = samples is not None
        self.samples = self.default_samples if samples is None else samples
        if self.samples < 1:
            raise InputError(f"probe '{self.name}' cannot measure {self.samples} samples", "Give 1 or more")

    def check(self, spec: ModelSpec, samples: int, positions: int | None) -> None:
        if self.chosen and self.samples > samples:
            raise InputError(
                f"probe '{self.name}' is to measure {self.samples} samples, and there are {samples}",
                f"Give {self.name}.samples={samples} or less, or more samples",
            )

    def wants(self, sample: int) -> bool:
        return sample < self.samples

    @abstractmethod
    def forwards(self, layers: int) -> int:
        """Forward passes per sample, for the cost that is shown beforehand."""

    def work(self, layers: int, prompt: PromptShape) -> float:
        """Work per sample in ordinary forward passes over its prompt, where passes are longer or shorter than that."""
        return float(self.forwards(layers))

    @abstractmethod
    def run(self, batch: Batch) -> None:
        """Measure a batch and add its rows."""


def probe_names() -> tuple[str, ...]:
    """Names of all probes, those of other packages last; nothing is imported for it."""
    return tuple(dict.fromkeys((*BUILT_IN, *extensions.added(extensions.PROBES))))


def probe_class(name: str) -> type[Probe]:
    """The class of a probe.

    Raises:
        InputError: there is none of this name.
        ExtensionError: the package that adds it is broken.
    """
    found: type[Probe]
    if name in BUILT_IN:
        module, attribute = BUILT_IN[name].split(":")
        found = getattr(importlib.import_module(module), attribute)
        return found
    if name in extensions.added(extensions.PROBES):
        found = extensions.load_class(extensions.PROBES, name, Probe)
        return found
    raise InputError(f"there is no probe '{name}'", f"{nearest(name, probe_names())}Probes: {', '.join(probe_names())}")


def build_probes(
    names: Sequence[str] = DEFAULT, settings: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Probe]:
    """Probes by name, `ALWAYS` first, then in the given order; `settings` holds constructor arguments by probe name.

    Raises:
        InputError: an unknown name, or an argument that a probe does not have.
    """
    chosen = settings or {}
    try:
        return {name: probe_class(name)(**chosen.get(name, {})) for name in dict.fromkeys((ALWAYS, *names))}
    except TypeError as error:
        raise InputError(f"a probe has no such setting: {error}", "See `plan ls probes`") from error


def check_probes(probes: Mapping[str, Probe], config: Any, spec: ModelSpec, samples: int) -> None:
    """Refuse impossible settings of any of them.

    Args:
        config: the model's transformers configuration; spec: its facts.

    Raises:
        InputError: as `Probe.check`.
        UnsupportedModelError: one looks at the attention of every layer, and some have none.
    """
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    for name, probe in probes.items():
        if probe.attends and spec.decoder.recurrent:
            raise UnsupportedModelError(
                f"probe '{name}' {unattended(spec)}",
                f"Take --probes {','.join(other for other in DEFAULT if not probe_class(other).attends)}",
            )
        probe.check(spec, samples, positions)


def unattended(spec: ModelSpec) -> str:
    """Why a probe cannot look at a model with recurrent layers."""
    layers = ", ".join(map(str, spec.decoder.recurrent))
    return f"needs attention in every layer, and layers {layers} of {spec.family} are recurrent"


def leave_out(probes: dict[str, Probe], spec: ModelSpec) -> tuple[str, ...]:
    """Take the probes away that recurrent layers have nothing for; gives their names."""
    gone = tuple(name for name, probe in probes.items() if probe.attends) if spec.decoder.recurrent else ()
    for name in gone:
        del probes[name]
    return gone


def quantiles(values: Array, levels: Sequence[float]) -> dict[str, Any]:
    """Quantiles over samples as a JSON entry, keyed by level; empty without values."""
    present = np.asarray(values, np.float64)
    present = present[~np.isnan(present)]
    return {f"{level:g}": float(np.quantile(present, level)) for level in levels} if len(present) else {}
