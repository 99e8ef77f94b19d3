"""The frozen plan: which tokens a model drops where, what that saves, and the accuracy that was measured with it.

plan.json
├── model         what the plan fits, weights included; a runtime refuses any other model
├── decision      policy and schedule: the only block the runtime reads
├── prediction    dense against planned cost, per workload and convention (analytic, exact)
├── evidence      what is promised, proven and measured (`planner.evidence`); absent if nothing was
├── processor     image settings, tokenizer and chat template it was measured with
├── created_with  versions
└── plan_sha256   over all of the above: an edited plan is refused
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from planner.document import Document
from planner.errors import PlanMismatchError
from planner.evidence import Evidence, upgraded
from planner.hub import local
from planner.profile import Json, ModelIdentity, without_absent
from planner.schedule import Schedule, dense
from planner.weights import compare
from planner.workload import Workload

if TYPE_CHECKING:
    from planner.runtime import Handle, ImageStream
    from planner.spec import ModelSpec

_log = logging.getLogger(__name__)


class _Block(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Decision(_Block):
    """What the runtime executes.

    Attributes:
        policy: the spelling that gives this schedule (`planner.policies.parse`).
        schedule: the stages.
        seed: for selections that draw at random.
    """

    policy: str
    schedule: Schedule
    seed: Annotated[int, Field(ge=0)] = 0


class Figures(_Block):
    """Analytic cost of one request (FLOPs count a multiply-add as the convention says; bytes are bytes).

    `visual_attention_flops` is the attention work in which visual tokens take part; `visual_tokens_per_layer` is what
    reports draw as a staircase.
    """

    prefill_flops: float
    decode_flops_per_token: float
    kv_cache_bytes: float
    visual_attention_flops: float
    visual_tokens_per_layer: tuple[float, ...]


class Prediction(_Block):
    """Dense against planned for one workload under one convention."""

    workload: Workload
    convention: str
    dense: Figures
    planned: Figures

    @property
    def prefill_ratio(self) -> float:
        """Planned over dense prefill FLOPs."""
        return self.planned.prefill_flops / self.dense.prefill_flops

    @property
    def kv_cache_ratio(self) -> float:
        """Planned over dense KV-cache bytes."""
        return self.planned.kv_cache_bytes / self.dense.kv_cache_bytes


def _with_evidence_upgraded(body: dict[str, Any]) -> dict[str, Any]:
    evidence = body.get("evidence")
    policy = body["decision"]["policy"]
    return {**body, "schema_version": 2, "evidence": None if evidence is None else upgraded(evidence, policy)}


class Plan(Document):
    """A frozen plan. Build with `Plan(...).sealed()`, read with `load_plan`."""

    KIND: ClassVar[str] = "plan"
    DIGEST_FIELD: ClassVar[str] = "plan_sha256"
    REMAKE: ClassVar[str] = "Plans are not edited: make a new one with `plan freeze` or `plan calibrate`"
    SCHEMA_VERSION: ClassVar[int] = 2
    UPGRADES: ClassVar[Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]] = {1: _with_evidence_upgraded}

    schema_version: int = 2
    model: ModelIdentity
    decision: Decision
    prediction: tuple[Prediction, ...] = ()
    evidence: Evidence | None = None
    processor: dict[str, Json] | None = None
    created_with: dict[str, str] = Field(default_factory=dict)
    plan_sha256: str = ""

    @model_serializer(mode="wrap")
    def _without_absent(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without_absent(handler(self), "processor")

    def __repr__(self) -> str:
        state = "proven" if self.proven else "not proven"
        return f"<Plan {self.decision.policy} for {self.model.id}, {state}, {self.plan_sha256[:12]}>"

    __str__ = __repr__

    @property
    def proven(self) -> bool:
        """Whether what the plan promises was proven when it was made (`planner.evidence.Promise`)."""
        promise = None if self.evidence is None else self.evidence.promise
        rung = None if promise is None else promise.rung(self.decision.policy)
        return promise is not None and promise.proven and rung is not None and rung.proven

    @property
    def measured(self) -> bool:
        """Whether its answers were compared with the dense model's."""
        if self.evidence is None:
            return False
        promise = self.evidence.promise
        tested = promise is not None and promise.rung(self.decision.policy) is not None
        return tested or self.evidence.row("plan") is not None

    @property
    def assumes_image_cache(self) -> bool:
        """Whether it was chosen for several questions about each image, whose shallow layers a cache keeps."""
        several = self.evidence is not None and self.evidence.questions > 1
        return several and self.decision.schedule.stages[0].visual_attention in ("prefix", "self")

    def check(self, config: Mapping[str, Any] | str | os.PathLike[str]) -> None:
        """Refuse a model this plan was not made for.

        Args:
            config: the model's Hugging Face config as a dict (``model.config.to_dict()``), or where to read one:
                config.json, a model directory, a shipped name.

        Raises:
            PlanMismatchError: naming the first fact that differs.
        """
        from planner.spec import ModelSpec

        spec = ModelSpec.from_config(config)
        found = {
            "family": spec.family,
            "layers": spec.layers,
            "hidden_size": spec.hidden_size,
            "image_token_id": spec.image_token_id,
            "config_digest": spec.digest,
        }
        for name, actual in found.items():
            wanted = getattr(self.model, name)
            if wanted != actual:
                raise PlanMismatchError(
                    f"the plan is for {self.model.id} ({name} {wanted}), this model has {name} {actual}",
                    "Load that model, or run `plan calibrate` on this one",
                )

    def check_model(self, model: Any, allow_other_weights: bool = False, full_digest: bool = False) -> str:
        """Refuse a loaded model this plan was not made for: another configuration, or other weights.

        What counts as the same weights, quantised or in another number format: `planner.weights`. Taking a model's
        fingerprint reads all of its weights once; the next time it is at hand.

        Args:
            model: a transformers model.
            allow_other_weights: for a fine-tune, whose answers the plan's evidence does not speak of.
            full_digest: compare all bytes too, where the plan has a digest over them.

        Returns:
            What a user should know: that other weights were allowed, or that the plan is bound to none; else nothing.

        Raises:
            PlanMismatchError: naming the fact or the weights that differ.
            InputError: weights are not finite.
            UnsupportedModelError: weights are on no device.
        """
        from planner.runtime.model.weights import names_of, weights_of

        self.check(model.config.to_dict())
        if self.model.weights is None:
            return "the plan was made before plans were bound to weights: it fits any of this configuration"
        found = compare(self.model.weights, weights_of(model, full_digest))
        if not found.reason:
            alike = self.model.weights.dtype == weights_of(model, full_digest).dtype
            return "" if alike or not full_digest else "digests over all bytes are of two number formats: not compared"
        named = names_of(model, found.different[:1])
        cause = f"{found.reason}{f', {named[0]} for one' if named else ''}"
        if allow_other_weights:
            return (
                f"other weights than those of {self.model.id} are allowed ({cause}): what was measured is not of these"
            )
        raise PlanMismatchError(
            f"the plan was made with other weights of {self.model.id}: {cause}",
            "Load the weights it was made with, or run `plan calibrate` on these. For a fine-tune that is to run "
            "unmeasured, allow_other_weights=True (--allow-other-weights)",
        )

    def attach(self, model: Any, *, allow_other_weights: bool = False, **options: Any) -> Handle:
        """Apply this plan to a loaded transformers model until ``handle.detach()``.

        A plan that was chosen for several questions about each image (`plan calibrate --questions`) gets an image cache
        of the default size, unless one is passed, or None.

        Args:
            model: an unmodified transformers model in evaluation mode.
            allow_other_weights: take a fine-tune of the model; it is logged as a warning where weights differ.
            options: passed on to `planner.runtime.attach`.

        Raises:
            PlanMismatchError: the plan is for another model, or for other weights.
            UnsupportedModelError: the model lacks a part the runtime needs.
            InputError: weights are not finite.
        """
        from planner.policies.on_model import warn_of_kept
        from planner.runtime import ImageCache, attach

        note = self.check_model(model, allow_other_weights)
        if note:
            _log.log(logging.WARNING if self.model.weights else logging.INFO, note)
        if not self.measured:
            warn_of_kept(self.decision.schedule)
        if self.assumes_image_cache and not {"image_cache", "image_stream"} & options.keys():
            options["image_cache"] = ImageCache()
            _log.warning(
                "the plan was chosen for %d questions about each image: an image cache of up to %.2g GB keeps what "
                "they share (image_cache=None: none)",
                self.evidence.questions if self.evidence else 1,
                options["image_cache"].max_bytes / 1e9,
            )
        return attach(model, self.decision.schedule, seed=self.decision.seed, **options)

    @contextlib.contextmanager
    def apply(self, model: Any, *, allow_other_weights: bool = False, **options: Any) -> Iterator[Handle]:
        """`attach` inside a ``with`` block; the model is restored at its end, also after an exception."""
        handle = self.attach(model, allow_other_weights=allow_other_weights, **options)
        try:
            yield handle
        finally:
            handle.detach()

    def encode_image(self, model: Any, *, allow_other_weights: bool = False, **inputs: Any) -> ImageStream:
        """Run the plan's shallow layers on the images of a prompt, independent of any question after them.

            stream = plan.encode_image(model, **inputs)      # stream.bytes, stream.save(path)
            with plan.apply(model, image_stream=stream):
                model.generate(**inputs)

        Args:
            model: an unmodified transformers model in evaluation mode.
            allow_other_weights: as in `attach`.
            inputs: what the processor gives for any prompt that holds the images. What comes after them does not
                matter; where visual tokens see the text before them (`visual_attention` ``prefix``), that must be what
                will stand before them.

        Raises:
            PlanMismatchError: the plan is for another model, or for other weights.
            InputError: the prompt holds no image, the plan's visual tokens do not start isolated, or the model lets
                text before the image see the question.
        """
        with self.apply(model, allow_other_weights=allow_other_weights, image_cache=None) as handle:
            return handle.encode_image(**inputs)


def predict(spec: ModelSpec, workload: Workload, schedule: Schedule, convention: str = "exact") -> Prediction:
    """Dense beside planned cost of one workload."""
    from planner.cost import cost

    def figures(of: Schedule) -> Figures:
        found = cost(spec, workload, of, convention)
        return Figures(
            prefill_flops=found.prefill_flops,
            decode_flops_per_token=found.decode_flops_per_token,
            kv_cache_bytes=found.kv_cache_bytes,
            visual_attention_flops=found.visual_attention,
            visual_tokens_per_layer=found.visual_tokens_per_layer,
        )

    return Prediction(
        workload=workload, convention=convention, dense=figures(dense(spec.layers)), planned=figures(schedule)
    )


def load_plan(path: str | Path) -> Plan:
    """Read a plan and check that it is whole.

    Args:
        path: a file or its folder, ``hf://user/repo@revision`` on the Hugging Face Hub, or the name of a bundled model,
            ``reference/windowed``.

    Raises:
        InputError: the file cannot be read, or had from the hub.
        PlanError: it is not a plan, was edited, or is of a newer schema; the message says which and what to do.
    """
    return Plan.load(local(path))


def created_with(packages: Sequence[str] = ("vlm-planner", "torch", "transformers", "numpy")) -> dict[str, str]:
    """Versions of what made a document."""
    versions = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions
