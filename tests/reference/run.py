"""A schedule over a prompt and its given continuation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from planner.schedule import Schedule, Stage
from tests.float64 import float64_throughout
from tests.reference.attention import LayerRule, Record, forward
from tests.reference.merging import joins
from tests.reference.pictures import grids
from tests.reference.scores import Prompt, survivors


@dataclass
class Outcome:
    """What must come out.

    Attributes:
        logits: ``[B, P + steps, V]`` over the whole sequence; rows of dropped tokens mean nothing.
        prompt: ``P``.
        alive: per layer ``[B, P]``, tokens that the layer computes; one entry more for after the last layer.
        cached: per layer ``[B, P]``, prompt tokens whose keys and values decoding may read.
    """

    logits: Tensor
    prompt: int
    alive: list[Tensor]
    cached: list[Tensor]

    @property
    def prefill(self) -> Tensor:
        """``[B, V]`` logits of the last prompt row."""
        return self.logits[:, self.prompt - 1]

    @property
    def steps(self) -> list[Tensor]:
        """``[B, V]`` logits after each generated token."""
        return [self.logits[:, row] for row in range(self.prompt, self.logits.shape[1])]


def run(model: Any, inputs: dict[str, Tensor], schedule: Schedule, generated: Tensor) -> Outcome:
    """Execute a schedule.

    Args:
        inputs: the prompt's keyword arguments, padded on the left.
        generated: ``[B, steps]`` token ids that decoding is made to follow.
    """
    with float64_throughout():
        return _Run(model, inputs, schedule).outcome(generated)


class _Run:
    def __init__(self, model: Any, inputs: dict[str, Tensor], schedule: Schedule) -> None:
        self.model, self.inputs, self.schedule = model, inputs, schedule
        config, ids = model.config, inputs["input_ids"]
        valid = inputs["attention_mask"].bool()
        visual = torch.zeros_like(valid)
        for kind in ("image", "video"):
            token = getattr(config, f"{kind}_token_id", getattr(config, f"{kind}_token_index", None))
            if token is not None:
                visual |= (ids == token) & valid
        after = valid & ~visual & (visual.cumsum(-1) > 0)
        self.prompt = Prompt(ids, valid, visual, after, grids(config.model_type, inputs, visual))
        self.joins: list[dict[int, list[int]]] = []
        self.gone: Tensor | None = None
        #: Who is alive on entering each layer, as far as decided.
        self.alive = [valid]

    def outcome(self, generated: Tensor) -> Outcome:
        if self.schedule.entry is not None:
            # Nothing has been computed yet: all that is known of the image is what enters the first layer.
            record = self._prompt_pass()[0]
            record.present, record.inputs = self.alive[0], record.embeddings
            self.joins = joins(self.schedule.entry, self.prompt, self.alive[0], record)
            self.alive[0] = survivors(self.schedule.entry, -1, self.prompt, self.alive[0], record)
            if self.schedule.positions == "packed":
                self.gone = self.prompt.visual & ~self.alive[0]
        for stage in self.schedule.stages:
            last = int(stage.last)
            self.alive += [self.alive[-1]] * (last - int(stage.first))
            for select in stage.selects:
                scoring = last if select.probe else last - 1
                record = self._prompt_pass()[scoring]
                record.present = self.alive[scoring]
                self.alive[last] = survivors(select, last - 1, self.prompt, self.alive[last], record)
        steps = generated.shape[1]
        visual = _widened(self.prompt.visual, steps, False)
        logits, _ = forward(
            self.model, self._extended(generated), lambda n: self._rule(n, steps), visual, self.joins, self._gone(steps)
        )
        cached = [(self.alive[n] & ~self.prompt.visual) | self._cached_visual(n) for n in range(self.schedule.layers)]
        return Outcome(logits, self.prompt.valid.shape[1], self.alive, cached)

    def _prompt_pass(self) -> list[Record]:
        visual, joins = self.prompt.visual, self.joins
        return forward(self.model, self.inputs, lambda n: self._rule(n, 0), visual, joins, self._gone(0))[1]

    def _gone(self, steps: int) -> Tensor | None:
        return None if self.gone is None else _widened(self.gone, steps, False)

    def _extended(self, generated: Tensor) -> dict[str, Tensor]:
        """The prompt's arguments with the generated tokens in place, as if they had been there from the start."""
        extended = dict(self.inputs)
        extended["input_ids"] = torch.cat([self.inputs["input_ids"], generated], dim=1)
        extended["attention_mask"] = torch.cat([self.inputs["attention_mask"], torch.ones_like(generated)], dim=1)
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in extended:
                # Text, and for PaliGemma (whose prompt is type 0 and sees both ways) an ordinary suffix.
                kind = int(self.model.config.model_type == "paligemma")
                extended[name] = torch.cat(
                    [extended[name], torch.full_like(generated, kind).to(extended[name].dtype)], 1
                )
        if self.model.config.model_type == "paligemma":
            # Up to 4.57 the prompt would also see its continuation, unless there is something to learn.
            extended["labels"] = extended["input_ids"]
        return extended

    def _stage(self, layer: int) -> Stage:
        return next(stage for stage in self.schedule.stages if stage.first <= layer < stage.last)

    def _alive(self, layer: int) -> Tensor:
        """Layers not yet decided run with what the last decided one has."""
        return self.alive[min(layer, len(self.alive) - 1)]

    def _merge_token(self, layer: int, sample: int) -> int | None:
        present = (self._alive(layer) & self.prompt.visual)[sample].nonzero()[:, 0]
        return int(present[0]) if len(present) else None

    def _cached_visual(self, layer: int) -> Tensor:
        """``[B, P]`` visual tokens that generated rows may see."""
        stage = self._stage(layer)
        if stage.cache_visual == "none":
            return torch.zeros_like(self.prompt.visual)
        if stage.text_to_visual == "merge":
            only = torch.zeros_like(self.prompt.visual)
            for sample in range(only.shape[0]):
                token = self._merge_token(layer, sample)
                if token is not None:
                    only[sample, token] = True
            return only
        alive = self._alive(layer) if stage.cache_visual == "all" else self._alive(int(stage.last))
        return alive & self.prompt.visual

    def _rule(self, layer: int, steps: int) -> LayerRule:
        stage, prompt = self._stage(layer), self.prompt.valid.shape[1]
        alive, visual = _widened(self._alive(layer), steps, True), _widened(self.prompt.visual, steps, False)
        cached_visual = _widened(self._cached_visual(layer), steps, False)
        text = ~visual
        text[:, prompt:] = False
        edges = []
        for sample in range(len(alive)):
            # Rows ask, columns are asked. What is dropped is seen by nobody.
            sees = alive[sample].repeat(prompt + steps, 1)
            sees[prompt:] &= ~visual[sample] | cached_visual[sample]
            if stage.visual_attention == "self":
                sees[visual[sample]] = False
            if stage.visual_attention == "prefix":
                for row in visual[sample].nonzero()[:, 0].tolist():
                    sees[row, row:] = False
                    sees[row] &= ~visual[sample]
            if stage.text_to_visual == "none":
                sees[text[sample]] &= ~visual[sample]
            edges.append(sees | torch.eye(prompt + steps, dtype=torch.bool))
        rule = LayerRule(torch.stack(edges), sequences=self._sequences(layer, steps))
        if stage.visual_attention == "skip":
            rule.skipped = visual
        if stage.text_to_visual == "merge":
            rule.merge_token, rule.merge_rows = [self._merge_token(layer, b) for b in range(len(alive))], text
        if stage.redistribute is not None:
            rule.redistribute, rule.redistribute_rows = stage.redistribute, _widened(self.prompt.after, steps, True)
        return rule

    def _sequences(self, layer: int, steps: int) -> list[list[list[int]]]:
        """What a recurrent layer runs over: all that is left, in order, and what is generated. Where visual tokens are
        alone, each is a sequence of its own, and the text's goes on without them. What the layer's cache may hold of an
        image is nothing to it: its state is that of the rows that ran."""
        stage, alive, visual = self._stage(layer), self._alive(layer), self.prompt.visual
        generated = list(range(alive.shape[1], alive.shape[1] + steps))
        found = []
        for sample in range(len(alive)):
            images = (alive & visual)[sample].nonzero()[:, 0].tolist()
            text = (alive & ~visual)[sample].nonzero()[:, 0].tolist()
            if stage.visual_attention == "full":
                found.append([sorted(text + images) + generated])
            else:
                found.append([text + generated, *([token] for token in images)])
        return found


def _widened(flags: Tensor, steps: int, value: bool) -> Tensor:
    """Flags of the prompt's tokens and, all alike, of the generated ones."""
    return torch.nn.functional.pad(flags, (0, steps), value=value)
