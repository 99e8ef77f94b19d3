"""One request on its way: what it asks for, the tokens it gets, the text they make, and how it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

#: Half a character: its tokens are not complete yet.
_INCOMPLETE = "\ufffd"


@dataclass
class Growth:
    """Text that grows token by token.

    Attributes:
        decode: all tokens so far to text.
        stops: texts before which the answer ends.
        stopped: one of them has come.
    """

    decode: Callable[[list[int]], str]
    stops: tuple[str, ...] = ()
    stopped: bool = False
    _shown: str = ""

    def read(self, tokens: list[int], final: bool = False) -> str:
        """What is new in the text. What may yet change, or be the start of a stop, is held back until `final`."""
        text = self.decode(tokens)
        ends = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if ends:
            text, self.stopped = text[: min(ends)], True
        elif not final:
            text = text.rstrip(_INCOMPLETE)
            text = text[: len(text) - max((_overlap(text, stop) for stop in self.stops), default=0)]
        if not text.startswith(self._shown):
            return ""
        new, self._shown = text[len(self._shown) :], text
        return new


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of a text that a stop begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


@dataclass(eq=False)
class Job:
    """A request that the scheduler answers; a `planner.runtime.batched.Row`.

    Attributes:
        model: name of what it is answered by.
        inputs: model inputs of its prompt alone, ``[1, n]``.
        shape: what jobs of one batch have in common.
        prompt_tokens, visual_tokens: of the prompt, as the dense model would run it.
        limit, temperature, top_p, seed: as `planner.runtime.batched.Row` has them.
        ends: tokens that end the answer.
        growth: its text.
        watched: pieces of text are wanted as they come.
        counted: so are its tokens, at the end.
        tell: called with each new piece of text, and with None at the end; from the scheduler's thread.
        tokens: of the answer, the end token included.
        layers: visual tokens that each layer has run; empty without a plan or an image.
        finish: why the answer ended: stop or length; empty before.
        error: why there is none.
    """

    model: str
    inputs: Any
    shape: Hashable
    prompt_tokens: int
    visual_tokens: int
    limit: int
    temperature: float
    top_p: float
    seed: int | None
    ends: frozenset[int]
    growth: Growth
    watched: bool
    counted: bool = False
    tell: Callable[[str | None], None] = lambda _: None
    tokens: list[int] = field(default_factory=list)
    layers: tuple[int, ...] = ()
    finish: str = ""
    error: BaseException | None = None
    cancelled: bool = False
    arrived: float = field(default_factory=time.monotonic)

    @property
    def bytes(self) -> int:
        """Of its inputs."""
        return sum(int(tensor.nbytes) for tensor in self.inputs.values())

    @property
    def width(self) -> int:
        """Tokens of the prompt and the longest answer."""
        return self.prompt_tokens + self.limit

    @property
    def kept(self) -> float:
        """Visual tokens that ran, in the mean over layers."""
        return sum(self.layers) / len(self.layers) if self.layers else float(self.visual_tokens)

    def begin(self, visual: tuple[int, ...]) -> None:
        """The prompt is done."""
        self.layers = visual

    def take(self, token: int) -> bool:
        """The next token. True: the answer has ended."""
        if self.cancelled:
            return True
        self.tokens.append(token)
        ended = token in self.ends
        if self.watched or self.growth.stops:
            if new := self.growth.read(self.tokens):
                self.tell(new)
            ended = ended or self.growth.stopped
        if ended or len(self.tokens) >= self.limit:
            self.close("stop" if ended else "length")
            return True
        return False

    def close(self, finish: str) -> None:
        """The answer is complete."""
        rest = self.growth.read(self.tokens, final=True)
        self.finish = "stop" if self.growth.stopped else finish
        if rest:
            self.tell(rest)
        self.inputs = {}
        self.tell(None)

    def fail(self, error: BaseException) -> None:
        """There will be no answer."""
        self.error = error
        self.inputs = {}
        self.tell(None)

    @property
    def over(self) -> bool:
        """Nothing more comes, or nobody waits for it."""
        return self.cancelled or bool(self.finish) or self.error is not None

    def usage(self) -> dict[str, Any]:
        """Tokens as OpenAI's clients read them, and as an extension the visual tokens that ran."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": len(self.tokens),
            "total_tokens": self.prompt_tokens + len(self.tokens),
            "visual_tokens": {
                "prompt": self.visual_tokens,
                "kept": self.kept,
                "per_layer": list(self.layers),
            },
        }
