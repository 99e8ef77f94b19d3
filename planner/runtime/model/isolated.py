"""Visual rows run through a decoder layer outside the main stream.

A visual query that sees only itself has its own value vector as attention output: a softmax over one key is 1. So the
rows need no mask, no cache and no neighbours, and their layer is a function of each row alone. Two forms compute it:

* **fast**: queries (and keys, unless text reads them) are not computed. Their projections give zeros of a single head
  instead, and the kernel is the identity on the values.
* **generic**: the layer as it is, on ``[B * rows, 1, d]``.

Fast is used where it was found equal to generic, layer by layer, when the plan was attached: gates computed beside
the query, norms across heads or fused projections make it differ or fail, and then generic is used.

Rows that see the text before them as well run through the layer as it is, with an attention of their own.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from planner.runtime.model.attention import Call, Handler
from planner.runtime.model.exchange import wrapped
from planner.runtime.model.hidden import HiddenForm
from planner.runtime.tensors.rows import Rows, gather

#: Arguments of a decoder layer with something for every row, beside rotary tables.
_PER_ROW = ("position_ids", "per_layer_input")
#: Of an attention module: queries, keys, values.
_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class _Enough(Exception):
    """The projections have been seen; the rest of the layer is not needed."""


def rotary_part(x: Tensor, index: Tensor) -> Tensor:
    """Rows of a cosine or sine table, ``[B or 1, n, dh]``, or ``[3, B or 1, n, dh]`` for multi-axis embeddings."""
    if x.ndim == 4:
        return torch.stack([gather(axis, index) for axis in x])
    return gather(x, index)


def part_of_kwargs(kwargs: dict[str, Any], rows: Rows, mask: Tensor | None, known: dict[Any, Any]) -> dict[str, Any]:
    """A decoder layer's keyword arguments for some rows of the prompt.

    Args:
        kwargs: what the text tower passes for the whole prompt.
        rows: the rows that will run.
        mask: their mask.
        known: parts already made; the tower passes the same tables to every layer.
    """
    changed = {**kwargs, "attention_mask": mask}
    if rows.whole:
        return changed
    for name, table in kwargs.items():
        if table is None or not (name.startswith("position_embeddings") or name in _PER_ROW):
            continue
        if torch.compiler.is_compiling():  # which would make a graph for every id; equal parts are found anyway
            changed[name] = _part(table, rows.index)
            continue
        key = (id(table), id(rows))
        if key not in known:
            # The originals are kept beside their part, so that no id is used twice.
            known[key] = (table, rows, _part(table, rows.index))
        changed[name] = known[key][2]
    return changed


def _part(table: Any, index: Tensor) -> Any:
    if isinstance(table, tuple):
        return tuple(rotary_part(x, index) for x in table)
    if table.ndim == 3 and not (table.is_floating_point() or table.is_complex()):
        return torch.stack([gather(axis, index) for axis in table])
    return gather(table, index)


class Diversion(threading.local):
    """How the calling thread runs a layer outside the main stream; other threads run the same layer as ever.

    Attributes:
        handler: gets the layer's attention calls; None: the main stream's handler does.
        skipped: projections that give zeros, by module identity, and the width of these.
    """

    def __init__(self) -> None:
        self.handler: Handler | None = None
        self.skipped: dict[int, int] = {}

    @contextmanager
    def to(self, handler: Handler, skipped: dict[int, int] | None = None) -> Iterator[None]:
        """Divert while the block runs."""
        before = self.handler, self.skipped
        self.handler, self.skipped = handler, skipped or {}
        try:
            yield
        finally:
            self.handler, self.skipped = before


class IsolatedLayer:
    """Runs one layer on rows outside the main stream.

    Args:
        layer, attention: the decoder layer and its attention module.
        heads: query heads of the attention.
        diversion: of attention calls and projections, shared by all layers of a model.
        form: of the layer's hidden states; here they are rows.

    Attributes:
        fast: which form to use.
    """

    recurrent = False

    def __init__(self, layer: Any, attention: Any, heads: int, diversion: Diversion, form: HiddenForm) -> None:
        self.layer, self.attention, self.heads, self.diversion, self.form = layer, attention, heads, diversion, form
        self.fast = False
        #: The layer's own forward, whatever will be put around it.
        self.forward: Callable[..., Any] = layer.forward
        self._names = tuple(inspect.signature(type(layer).forward).parameters)[1:]

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Rows and keyword arguments of a call of the layer."""
        given = dict(zip(self._names, args, strict=False)) | kwargs
        return self.form.rows(given.pop("hidden_states")), given

    def output(self, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """Rows after the layer's own forward."""
        return self.form.rows(first(self.forward(self.form.given(hidden), **kwargs)))

    @contextmanager
    def skippable(self) -> Iterator[None]:
        """Let threads skip the layer's projections while the block runs."""
        with ExitStack() as stack:
            for name in _PROJECTIONS:
                projection = getattr(self.attention, name, None)
                if projection is not None:
                    stack.enter_context(wrapped(projection, "forward", partial(self._skippable, id(projection))))
            yield

    def _skippable(self, projection: int, original: Callable[..., Any]) -> Callable[..., Any]:
        diversion = self.diversion

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            # Compiled code never skips, and cannot look at what belongs to a thread.
            if torch.compiler.is_compiling() or projection not in diversion.skipped:
                return original(x, *args, **kwargs)
            return x.new_zeros(*x.shape[:-1], diversion.skipped[projection])

        return forward

    def _without(self, *names: str) -> dict[int, int]:
        return {id(getattr(self.attention, name)): self.head_size for name in names}

    def run(self, hidden: Tensor, kwargs: dict[str, Any], keys: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Of rows that see only themselves, the layer's output, and the rotated keys (where asked) and values it had,
        ``[B, Hkv, a, dh]``.

        Args:
            hidden: ``[B, a, ...]``.
            kwargs: the layer's keyword arguments for these rows.
            keys: whether text will read the keys.
        """
        kwargs = _without_cache(kwargs)
        return self._fast(hidden, kwargs, keys) if self.fast else self._generic(hidden, kwargs)

    def run_with(self, attend: Handler, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """The layer's output with another attention, which gets queries, keys and values of all rows."""
        with self.diversion.to(attend):
            return self.output(hidden, _without_cache(kwargs))

    def _fast(self, hidden: Tensor, kwargs: dict[str, Any], keys: bool) -> tuple[Tensor, Tensor | None, Tensor]:
        seen: list[Call] = []

        def give_values(call: Call) -> tuple[Tensor, Tensor | None]:
            seen.append(call)
            values = call.value.repeat_interleave(self.heads // call.value.shape[1], dim=1)
            return values.transpose(1, 2).contiguous(), None

        skipped = self._without("q_proj") if keys else self._without("q_proj", "k_proj")
        with self.diversion.to(give_values, skipped):
            output = self.output(hidden, kwargs)
        return output, seen[0].key if keys else None, seen[0].value

    def _generic(self, hidden: Tensor, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor | None, Tensor]:
        seen: list[Call] = []

        def watch(call: Call) -> tuple[Tensor, Tensor | None]:
            seen.append(call)
            return call.run()

        batch, count = hidden.shape[:2]
        single = {name: _each_alone(value, batch, count) for name, value in kwargs.items()}
        with self.diversion.to(watch):
            output = self.output(hidden.flatten(0, 1)[:, None], single)
        key, value = (
            x.reshape(batch, count, x.shape[1], x.shape[-1]).transpose(1, 2) for x in (seen[0].key, seen[0].value)
        )
        return output.reshape(hidden.shape), key, value

    @property
    def head_size(self) -> int:
        """Size of one query or key head."""
        return int(self.attention.head_dim)

    def project(
        self, hidden: Tensor, kwargs: dict[str, Any], query: bool = False, keys: bool = False, values: bool = False
    ) -> Call:
        """Queries, keys and values of some rows, rotated, without the rest of the layer.

        What is not asked for is zeros, and not computed where the projections can be told apart.
        """
        seen: list[Call] = []

        # A trace cannot leave a layer half way. It removes by itself what nothing depends on.
        tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]

        def stop(call: Call) -> tuple[Tensor, Tensor | None]:
            seen.append(call)
            if tracing:
                return call.run()
            raise _Enough

        kwargs = _without_cache(kwargs)
        wanted = zip(_PROJECTIONS, (query, keys, values), strict=True)
        skipped = self._without(*(name for name, needed in wanted if not needed)) if self.fast and not tracing else {}
        with self.diversion.to(stop, skipped), suppress(_Enough):
            self.output(hidden, kwargs)
        return seen[0]

    def check(self, hidden: Tensor, kwargs: dict[str, Any]) -> bool:
        """True when the fast form gives what the generic form gives, on these rows."""
        tolerance = {torch.float64: 1e-10, torch.float32: 1e-4}.get(hidden.dtype, 3e-2)
        try:
            expected = self._generic(hidden, _without_cache(kwargs))
            self.fast = True
            with_keys, without = self.run(hidden, kwargs, keys=True), self.run(hidden, kwargs, keys=False)
        except (AttributeError, RuntimeError, TypeError, ValueError, IndexError):
            return False
        finally:
            self.fast = False
        pairs = [*zip(with_keys, expected, strict=True), (without[0], expected[0]), (without[2], expected[2])]
        return all(
            got is not None
            and want is not None
            and got.shape == want.shape
            and bool((got - want).abs().max() <= tolerance * want.abs().max().clamp(min=1e-30))
            for got, want in pairs
        )


def first(output: Any) -> Tensor:
    """The hidden states of a decoder layer's output, which some releases wrap in a tuple."""
    return output[0] if isinstance(output, tuple) else output  # type: ignore[no-any-return]


def with_first(output: Any, hidden: Tensor) -> Any:
    """A decoder layer's output with other hidden states."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def _without_cache(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**kwargs, "attention_mask": None, "past_key_values": None, "use_cache": False}


def _each_alone(value: Any, batch: int, count: int) -> Any:
    """Position tables ``[B or 1, a, ...]`` as ``[B * a, 1, ...]``, axes of multi-axis embeddings kept in front."""
    if isinstance(value, tuple):
        return tuple(_each_alone(x, batch, count) for x in value)
    if not isinstance(value, Tensor):
        return value
    if value.ndim == 4:  # [axes, B, a, dh]
        return value.expand(-1, batch, -1, -1).reshape(value.shape[0], batch * count, 1, -1)
    if value.ndim == 3 and value.shape[-2] == count and (value.is_floating_point() or value.is_complex()):
        return value.expand(batch, -1, -1).reshape(batch * count, 1, -1)
    if value.ndim == 3:  # position ids [axes, B, a]
        return value.expand(-1, batch, -1).reshape(value.shape[0], batch * count, 1)
    if value.ndim == 2:
        return value.expand(batch, -1).reshape(batch * count, 1)
    return value


def find_fast_form(tower: Any, isolated_layers: tuple[IsolatedLayer, ...], layers: set[int]) -> None:
    """Use the fast form in those of some layers where it is exact on three random rows through the tower."""
    if not layers:
        return

    thread = threading.get_ident()

    def check(layer: IsolatedLayer) -> Callable[..., None]:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if threading.get_ident() != thread:  # somebody else's forward, of the model without a plan
                return
            layer.fast = layer.check(*layer.named(args, kwargs))

        return hook

    embedding = tower.get_input_embeddings()
    # Weights that accelerate has put away are on no device; its hook says where they will run.
    offloaded = getattr(getattr(embedding, "_hf_hook", None), "execution_device", None)
    device = embedding.weight.device if offloaded is None else offloaded
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 3, embedding.weight.shape[1], generator=generator).to(device, embedding.weight.dtype)
    with ExitStack() as hooks, torch.no_grad():
        for index in sorted(layers):
            hook = isolated_layers[index].layer.register_forward_pre_hook(
                torch.compiler.disable(check(isolated_layers[index])), with_kwargs=True
            )
            hooks.callback(hook.remove)
        # The mask says that nothing is padding: without one, GLM-4V of 4.57 looks for packed sequences and fails.
        mask = rows.new_ones(1, 3, dtype=torch.long)
        tower(inputs_embeds=rows, attention_mask=mask, use_cache=False, **_beside_embeddings(tower, rows))


def _beside_embeddings(tower: Any, rows: Tensor) -> dict[str, Tensor]:
    """What a tower wants beside embeddings of no token: inputs per layer, which it would look up by their tokens."""
    size = getattr(tower.config, "hidden_size_per_layer_input", 0)
    if not size:
        return {}
    return {"per_layer_inputs": rows.new_zeros(*rows.shape[:2], tower.config.num_hidden_layers, size)}
