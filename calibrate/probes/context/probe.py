"""Context pruning: how much text beside the image can be dropped, and what that does to attention.

Each sample is asked its question after contexts of several lengths, built from the set's other annotations (or the
user's long texts). For every length and rate the pruned model is *executed* by the runtime, and its first answer
token compared with the dense model's at that length and with the accepted answers. The best rate against length is
fitted by a quadratic, which a plan with ``rate: "auto"`` reads.

Beside the grid, at the default rate: ranking by the mean over heads or at random instead of the maximum (figure 9),
pruning over the first 7 or 13 layers of 32 instead of 10 (figure 13, scaled to the model's depth) or over middle or
deep layers (figure 12), entropy and variance of attention before and after (proposition 1, eq. 8), visual dependency
(eq. 2), information flow (eq. 18-23), which tokens stay (figures 10 and 17), and accuracy by the size of what is asked
for (figure 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from calibrate.inputs.batches import Batch
from calibrate.inputs.encode import Inputs, to_device
from calibrate.inputs.identity import Model, identify
from calibrate.inputs.samples import Sample
from calibrate.probes.base import ExecutedProbe
from calibrate.probes.context.attention import Attended, attended
from calibrate.probes.context.fit import ADJACENT, best_rate, fit_rates
from calibrate.probes.context.flow import FLOWS
from calibrate.probes.context.schedule import DEPTHS, LAYERS, OTHER_LAYERS, pruning
from calibrate.probes.context.sizes import by_size, shares_of
from calibrate.probes.context.survivors import INTERVALS, KINDS, kept_by_kind, kept_by_place
from calibrate.probes.context.texts import ContextTexts, read_texts
from calibrate.probes.stats import Array, mean, plain, proportion
from calibrate.running.execute import accepted_first_tokens, divergence, first_logits
from planner.errors import CalibrationError, InputError
from planner.policies.base import PUBLISHED_DEPTH, relative_layers
from planner.profile import PromptShape
from planner.schedule import Schedule
from planner.spec import ModelSpec

RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
DEFAULT_RATE = 0.3
#: By default five lengths, equally spaced up to the paper's longest or to what the model has positions for.
LENGTHS, LONGEST = 5, 2500
#: How the variants at the default rate are called.
VARIANTS = (
    *("max", "mean", "random"),
    *(f"first {layers} of {PUBLISHED_DEPTH} layers" for layers in OTHER_LAYERS),
    *DEPTHS,
)


class ContextProbe(ExecutedProbe):
    """Grid of rates and lengths, fit, and what happens to attention.

    Args:
        samples: how many of the first samples.
        lengths: context lengths in tokens, ascending; None for five up to 2,500 or what fits.
        rates: shares of the context dropped, ascending; 0 is the dense model.
        texts: a text file with long texts; None for the set's other annotations.
        flow: also measure information flow, which runs a backward pass.
        seed: of contexts and random selections.

    Raises:
        InputError: invalid lengths or rates.
    """

    name: ClassVar[str] = "context"
    default_samples: ClassVar[int] = 16
    alone: ClassVar[bool] = True

    def __init__(
        self,
        samples: int | None = None,
        lengths: Sequence[int] | None = None,
        rates: Sequence[float] = RATES,
        texts: str | None = None,
        flow: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(samples)
        if lengths is not None and (not lengths or min(lengths) < 1 or list(lengths) != sorted(set(lengths))):
            raise InputError(f"context lengths must ascend from 1, got {list(lengths)}", "The paper uses 500 to 2500")
        if len(rates) < ADJACENT or list(rates) != sorted(set(rates)) or rates[0] < 0 or rates[-1] >= 1:
            raise InputError(
                f"{list(rates)} are not {ADJACENT} or more ascending rates from 0 to below 1", "The paper uses 0 to 0.9"
            )
        self.lengths = None if lengths is None else tuple(lengths)
        self.rates, self.texts, self.flow, self.seed = tuple(rates), texts, flow, seed
        self._made: tuple[ContextTexts, Model] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "lengths": None if self.lengths is None else list(self.lengths),
            "rates": list(self.rates),
            "texts": self.texts,
            "flow": self.flow,
            "seed": self.seed,
        }

    def check(self, spec: ModelSpec, samples: int, positions: int | None) -> None:
        super().check(spec, samples, positions)
        if self.lengths is not None:
            _check_room(self.lengths[-1], positions, None if positions is None else positions - 1)

    def forwards(self, layers: int) -> int:
        lengths = LENGTHS if self.lengths is None else len(self.lengths)
        return lengths * self._passes

    @property
    def _passes(self) -> int:
        """Per length: the dense answer, the grid, the variants, and attention with and without pruning."""
        return 1 + len(self.rates) + len(VARIANTS) + 2

    def work(self, layers: int, prompt: PromptShape) -> float:
        """Passes over prompts with a context, two of them with gradients, which cost twice as much again."""
        tokens = prompt.system_tokens + prompt.visual_tokens + prompt.text_tokens
        lengths = _spaced(LONGEST) if self.lengths is None else self.lengths
        return (self._passes + 4 * self.flow) * sum(1 + length / tokens for length in lengths)

    def run(self, batch: Batch) -> None:
        """Measure the batch's samples one by one: their contexts differ in length.

        Raises:
            InputError: a length that the model has no positions for, or texts that cannot be read.
            SampleError: a sample for which no context can be made.
        """
        if self._made is None:
            own = "" if self.texts is None else read_texts(self.texts)
            texts = ContextTexts(batch.sample_set, batch.encoder.tokenizer, own, self.seed)
            self._made = texts, identify(batch.model, "")
        texts, known = self._made
        for position, sample in enumerate(batch.ids):
            if not self.wants(sample) or sample in self.table:
                continue
            short = to_device(batch.encoder([batch.samples[position]]), batch.model)
            rows = [
                self._at_length(batch, sample, short, texts.lengthened(sample, length), known)
                for length in self._lengths(batch.model, short)
            ]
            self.table.add(sample, **{name: np.stack([row[name] for row in rows]) for name in rows[0]})

    def _lengths(self, model: Any, short: Inputs) -> Sequence[int]:
        positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        # A few tokens of slack: text cut by tokens does not always encode to the same number again.
        room = None if positions is None else int(positions * 0.97) - short["input_ids"].shape[1]
        if self.lengths is None:
            return _spaced(LONGEST if room is None else min(LONGEST, room))
        _check_room(self.lengths[-1], positions, room)
        return self.lengths

    def _at_length(self, batch: Batch, number: int, short: Inputs, sample: Sample, known: Model) -> dict[str, Array]:
        model = batch.model
        inputs = to_device(batch.encoder([sample]), model)
        ids = inputs["input_ids"]
        protect = _common_suffix(short["input_ids"][0], ids[0])
        accepted = accepted_first_tokens(batch.encoder, sample)
        dense = first_logits(model, inputs)
        answer = int(dense.argmax())

        def judged(logits: torch.Tensor) -> list[float]:
            token = int(logits.argmax())
            right = float(token in accepted) if accepted else np.nan
            return [float(token == answer), right, float(divergence(dense, logits)[0])]

        def schedule(rate: float, **options: Any) -> Schedule | None:
            return None if rate == 0 else pruning(known.spec, rate, protect, **options)

        pruned_run = schedule(DEFAULT_RATE)
        target = next(iter(sorted(accepted & {answer} or accepted)), answer) if accepted else answer
        with_flow = target if self.flow else None
        pruned = attended(model, known.parts, inputs, protect, pruned_run, answer=with_flow)
        before = attended(model, known.parts, inputs, protect, answer=with_flow, split=pruned)
        mean_pooled = attended(model, known.parts, inputs, protect, pruned_run, pooling="mean")
        variants = [
            first_logits(model, inputs, pruned_run),
            mean_pooled.logits.float().log_softmax(-1)[None].cpu(),
            first_logits(model, inputs, schedule(DEFAULT_RATE, rank_by="random"), seed=self.seed + number),
            *(first_logits(model, inputs, schedule(DEFAULT_RATE, of_layers=layers)) for layers in OTHER_LAYERS),
            *(first_logits(model, inputs, schedule(DEFAULT_RATE, depth=depth)) for depth in DEPTHS.values()),
        ]
        text = (pruned.preserved | pruned.pruned).nonzero().flatten().tolist()
        context = text[: len(text) - (protect - 1)]  # the last row is in neither
        left = pruned.kept[:, context].cpu().numpy()
        return {
            "context": np.asarray(ids.shape[1] - short["input_ids"].shape[1]),
            "grid": np.asarray([judged(first_logits(model, inputs, schedule(rate))) for rate in self.rates]),
            "variants": np.asarray([judged(logits) for logits in variants]),
            "entropy": np.stack([before.entropy, pruned.entropy]),
            "variance": np.stack([before.variance, pruned.variance]),
            "kept_by_place": kept_by_place(left),
            "kept_by_kind": kept_by_kind(left, ids[0, context].tolist(), batch.encoder.tokenizer.decode),
            "object_size": np.asarray(sample.object_size),
            "visual": np.stack([before.visual, pruned.visual]),
            "flow": np.stack([_flow(before), _flow(pruned)]),
        }

    def summary(self) -> dict[str, Any]:
        context, grid, variants = (self.table.column(name) for name in ("context", "grid", "variants"))
        answered = not np.isnan(grid[..., 1]).all()
        measure = 1 if answered else 0
        lengths = context.mean(axis=0).tolist()
        performance = np.nanmean(grid[..., measure], axis=0)  # [lengths, rates]
        best = [best_rate(self.rates, row) for row in performance]
        try:
            fit = fit_rates(lengths, best, self.rates[-1]).as_json()
        except CalibrationError as error:
            fit = {"none": error.cause}
        entropy, visual = self.table.column("entropy"), self.table.column("visual")
        (after,) = relative_layers((LAYERS,), entropy.shape[-1])
        variance = self.table.column("variance")
        return {
            "lengths": lengths,
            "rates": list(self.rates),
            "layers": {
                f"{layers} of {PUBLISHED_DEPTH}": relative_layers((layers,), entropy.shape[-1])[0]
                for layers in (LAYERS, *OTHER_LAYERS)
            },
            "judged_by": "first_token_accuracy" if answered else "agreement",
            "agreement": shares_of(grid[..., 0]),
            "first_token_accuracy": shares_of(grid[..., 1]),
            "kl": mean(grid[..., 2]),
            "best_rates": best,
            "fit": fit,
            "variants": {
                name: {
                    "agreement": shares_of(variants[:, :, number, 0]),
                    "first_token_accuracy": shares_of(variants[:, :, number, 1]),
                    "kl": mean(variants[:, :, number, 2]),
                }
                for number, name in enumerate(VARIANTS)
            },
            "object_sizes": by_size(
                self.table.column("object_size")[:, 0], grid[:, :, 0, measure], visual[:, :, 0].mean(-1)
            ),
            "kept": self._kept(),
            "variance": {"dense": mean(variance[:, :, 0]), "pruned": mean(variance[:, :, 1])},
            "variance_rises": _rises(variance, after),
            "entropy": {"dense": mean(entropy[:, :, 0]), "pruned": mean(entropy[:, :, 1])},
            "entropy_rises": _rises(entropy, after),
            "visual_dependency": {"dense": mean(visual[:, :, 0].mean(-1)), "pruned": mean(visual[:, :, 1].mean(-1))},
            "visual_dependency_per_layer": {"dense": mean(visual[:, :, 0]), "pruned": mean(visual[:, :, 1])},
            "flow": self._flow_summary() if self.flow else None,
        }

    def _kept(self) -> dict[str, Any]:
        """Shares of the context that stay at the longest length: by place after the last layer, by kind per layer."""
        place, kind = (self.table.column(f"kept_by_{what}")[:, -1] for what in ("place", "kind"))
        return {
            "place": {"intervals": INTERVALS, **mean(place[:, -1])},
            "kind": {name: mean(kind[:, :, number]) for number, name in enumerate(KINDS)},
        }

    def _flow_summary(self) -> dict[str, Any]:
        """Mean over samples, per length and layer."""
        flow = self.table.column("flow").mean(axis=0)  # [lengths, 2, L, 6]
        return {
            run: {f"S_{name}": plain(flow[:, number, :, which]) for which, name in enumerate(FLOWS)}
            for number, run in enumerate(("dense", "pruned"))
        }


def _check_room(longest: int, positions: int | None, room: int | None) -> None:
    """Refuse a context that is longer than what the model has room for, beside its prompt where that is known."""
    if room is not None and longest > room:
        raise InputError(
            f"{longest} tokens of context do not fit: the model has {positions} positions", f"Use lengths up to {room}"
        )


def _spaced(longest: int) -> list[int]:
    """Equally spaced lengths up to the longest."""
    return [longest * (step + 1) // LENGTHS for step in range(LENGTHS)]


def _rises(values: Array, after: int) -> dict[str, Any] | None:
    """In how many cases (samples, lengths) the mean over the layers from `after` on is higher pruned than dense.

    Args:
        values: ``[S, lengths, 2, L]``, dense and pruned.
    """
    change = values[:, :, 1, after:] - values[:, :, 0, after:]
    return proportion(int((change.mean(axis=-1) > 0).sum()), change[..., 0].size) if change.size else None


def _flow(run: Attended) -> Array:
    return np.full((len(run.entropy), len(FLOWS)), np.nan) if run.flow is None else run.flow


def _common_suffix(one: torch.Tensor, other: torch.Tensor) -> int:
    """Equal tokens at the end of two prompts: question and role tokens, whatever the context before them."""
    shared = min(len(one), len(other))
    equal = one[len(one) - shared :].flip(0) == other[len(other) - shared :].flip(0)
    return int(equal.long().cumprod(0).sum())
