"""One dense forward pass of a batch, kept, and the passes that begin where it, or another pass, has got to.

A condition of a masking curve changes what some layers see, and nothing before them. What came before is not computed
again: a pass starts at any layer from hidden states that were kept. Where no visual row changes (rows before the
question see nothing of it), only the rows after the image run, over the dense pass's keys and values. Who sees whom is
closed by masks here; a plan leaves out what is closed, and gives the same answers.

    with Replay(model, inputs) as replay:
        replay.dense                                # log-probabilities of the first answer token
        blind, states = replay.rule([Sight(text="none")] * layers)
        replay.go_on(states, 8)                     # blind in [0, 8), dense from there
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from calibrate.probes.masking.sight import Scope, Sight, Sights, closed_by, merged_values
from planner.errors import RuntimeStateError
from planner.runtime.attach import attached_towers
from planner.runtime.model.adapters import check_attending, check_one_state, find_parts
from planner.runtime.model.attention import Call, attention_hook
from planner.runtime.model.exchange import Function, wrapped
from planner.runtime.tensors.layout import read_layout

#: Methods by which families get the features of images and videos, which stay the same.
_FEATURES = ("get_image_features", "get_video_features")


@dataclass(frozen=True)
class States:
    """Hidden states that enter each layer, ``[B, n - start, d]``: the rows from column `start` on."""

    hidden: list[Tensor]
    start: int


@dataclass
class _Pass:
    """One pass through the layers from `first` on, by the rows of a scope."""

    sights: Sights
    scope: Scope = field(default_factory=Scope)
    first: int = 0
    given: Tensor | None = None
    keeps: bool = False
    kept: list[Tensor] = field(default_factory=list)
    closed: tuple[Sight, Tensor] | None = None


class Replay:
    """A dense pass, kept, while the ``with`` block lasts; the model is as it was afterwards.

    Args:
        model: a transformers vision-language model in evaluation mode, without a plan attached.
        inputs: a batch padded on the left.
        start: the first column whose row may change while visual rows stay dense; None: the first text after an image.
        last: how many of the last rows' log-probabilities are given.

    Attributes:
        dense: log-probabilities ``[B, V]`` (``[B, last, V]`` for more than one row) of the dense pass.
        layout: parts of the prompts.
        states: of the dense pass.
        shared: the rows before `start` do not depend on those from there on, so that the latter can run alone.

    Raises:
        UnsupportedModelError: the model lacks a part that is needed.
        RuntimeStateError: another attention kernel than sdpa or eager, or a plan is attached.
    """

    def __init__(self, model: Any, inputs: Mapping[str, Tensor], start: int | None = None, last: int = 1) -> None:
        self.parts, self.inputs, self.last = find_parts(model), dict(inputs), last
        for check in (check_attending, check_one_state):
            check(self.parts, "hiding the image from the text, layer by layer,")
        self.layout = read_layout(inputs["input_ids"], self.parts.visual_ids, inputs.get("attention_mask"))
        self.layers = len(self.parts.layers)
        self.text = self.layout.valid & ~self.layout.visual
        after = self.layout.after.any(0)
        self._start = start if start is not None else int(after.int().argmax()) if bool(after.any()) else 0
        self.shared = self._start > 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._features: dict[tuple[int, str], Any] = {}
        self._tuples = False
        self._dense_pass, self._whole = True, False
        self._stack = ExitStack()

    def __enter__(self) -> Replay:
        model = self.parts.model
        if self.parts.tower in attached_towers:
            raise RuntimeStateError("a plan is attached to this model", "Detach it before measuring")
        with ExitStack() as stack:
            stack.enter_context(attention_hook(self.parts.attentions, self._attend))
            for index, layer in enumerate(self.parts.layers):
                stack.enter_context(wrapped(layer, "forward", partial(self._around_layer, index)))
            for owner in {id(owner): owner for owner in (model, getattr(model, "model", model))}.values():
                for name in _FEATURES:
                    if hasattr(owner, name):
                        stack.enter_context(wrapped(owner, name, partial(self._remembered, (id(owner), name))))
            stack.callback(self.parts.tower.register_forward_pre_hook(self._look, with_kwargs=True).remove)
            self._pass = _Pass([None] * self.layers, keeps=True)
            self.dense = self._forward(self._pass)
            self._stack = stack.pop_all()
        self._dense_pass = False
        self._entry = self._pass.kept[0]
        if not self.shared:
            self._keys, self._values, self._start = [], [], 0
        # Copies: views would keep the rows before them alive.
        self.states = States([hidden[:, self._start :].clone() for hidden in self._pass.kept], self._start)
        self._pass.kept.clear()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    # -- passes ------------------------------------------------------------------------------------------------------

    def rule(self, sights: Sights) -> tuple[Tensor, States]:
        """All layers under their sights: log-probabilities as `dense`, and the states that enter each layer."""
        alone = self.shared and all(sight is None or sight.visual == "full" for sight in sights)
        start = self._start if alone else 0
        run = _Pass(sights, Scope(start), given=self._entry[:, start:], keeps=True)
        found = self._forward(run)
        return found, States(run.kept, start)

    def go_on(
        self, states: States, layer: int, sights: Sights | None = None, samples: Sequence[int] | None = None
    ) -> Tensor:
        """From the states that enter a layer to the end.

        Args:
            states: of this replay.
            sights: of every layer; None: dense. Where `states` lack visual rows, these stay dense.
            samples: which of the batch; None: all.

        Returns:
            Log-probabilities as `dense`, of these samples.
        """
        if self._whole and samples is not None:
            return self.go_on(states, layer, sights)[list(samples)]
        chosen = None if samples is None else torch.as_tensor(samples)
        given = states.hidden[layer] if chosen is None else states.hidden[layer][chosen]
        return self._forward(_Pass(sights or [None] * self.layers, Scope(states.start, chosen), layer, given))

    def _forward(self, run: _Pass) -> Tensor:
        self._pass = run
        with torch.inference_mode():
            logits: Tensor = self.parts.model(**self.inputs, use_cache=False, logits_to_keep=self.last).logits
        found = logits[:, -self.last :].float().log_softmax(dim=-1).cpu()
        return found[:, 0] if self.last == 1 else found

    # -- the model's layers ------------------------------------------------------------------------------------------

    def _remembered(self, key: tuple[int, str], original: Function) -> Function:
        def features(*args: Any, **kwargs: Any) -> Any:
            if key not in self._features:
                self._features[key] = original(*args, **kwargs)
            return self._features[key]

        return features

    def _around_layer(self, index: int, original: Function) -> Function:
        def forward(*args: Any, **kwargs: Any) -> Any:
            run = self._pass
            hidden, rest = (args[0], args[1:]) if args else (kwargs.pop("hidden_states"), ())
            if index < run.first:
                return (hidden,) if self._tuples else hidden
            if index == run.first and run.given is not None:
                hidden = run.given.to(hidden.device)
            if run.keeps:
                run.kept.append(hidden.cpu())  # an accelerator's memory is dearer than the way back
            output = original(hidden, *rest, **self._part(run, kwargs))
            self._tuples = isinstance(output, tuple)
            return output

        return forward

    def _look(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Features that the tower itself adds between layers are of all rows and samples.
        if kwargs.get("deepstack_visual_embeds") is not None:
            self._whole, self.shared = True, False

    def _part(self, run: _Pass, kwargs: dict[str, Any]) -> dict[str, Any]:
        """A layer's keyword arguments for the pass's rows and samples."""
        if run.scope.whole:
            return kwargs
        return {
            name: run.scope.cut(name, value)
            if name == "attention_mask" or name == "position_ids" or name.startswith("position_embeddings")
            else value
            for name, value in kwargs.items()
        }

    def _attend(self, call: Call) -> tuple[Tensor, Tensor | None]:
        run = self._pass
        if self._dense_pass:
            self._keep(call)
        sight, start = run.sights[call.layer], run.scope.start
        if start:
            keys, values = (run.scope.of(kept[call.layer]) for kept in (self._keys, self._values))
            call.key, call.value = torch.cat([keys, call.key], dim=2), torch.cat([values, call.value], dim=2)
        if sight is None and not start:
            return call.run()
        call.mask = self._mask(call, run, sight)
        output, weights = call.run()
        if sight is not None and sight.text == "merge":
            merged, _ = replace(call, value=merged_values(call.value, sight, self.layout.visual, run.scope)).run()
            rows = run.scope.of(self.text)[:, start:].to(output.device)
            output = torch.where(rows[:, :, None, None], merged, output)
        return output, weights

    def _keep(self, call: Call) -> None:
        """The dense pass's keys and values before `start`, and whether they stand by themselves."""
        if call.mask is not None and self.shared:
            ahead = call.mask[:, :, : self._start, self._start :]
            seen = ahead if ahead.dtype == torch.bool else ahead > torch.finfo(ahead.dtype).min / 2
            # Padding may see anything: nobody sees it.
            asks = self.layout.valid[:, None, : self._start, None].to(seen.device)
            self.shared &= not bool((seen & asks).any())
        self._keys.append(call.key[:, :, : self._start])
        self._values.append(call.value[:, :, : self._start])

    def _mask(self, call: Call, run: _Pass, sight: Sight | None) -> Tensor:
        mask, device = call.mask, call.key.device
        if mask is None:  # the kernel would have been causal
            length = self.layout.length
            mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()[None, None, run.scope.start :]
        if sight is None:
            return mask
        if run.closed is None or run.closed[0] is not sight:
            # The next layer's is most often the same.
            run.closed = (sight, closed_by(sight, self.layout.visual, self.text, run.scope)[:, None])
        closed = run.closed[1].to(device)
        return mask & ~closed if mask.dtype == torch.bool else mask.masked_fill(closed, torch.finfo(mask.dtype).min)
