"""What a schedule means, slowly and obviously: the other side of every equality test of the runtime.

The unmodified layers run over the whole sequence, prompt and generated tokens together, without a cache. No row ever
leaves: a dropped token is one that nobody may attend to. Who may attend to whom is written out as one mask a layer, and
attention itself is a softmax over a full matrix. A recurrent layer runs over the rows that are left, sample by sample.
Where a selection needs scores, the whole prompt runs once more.

    outcome = run(model, inputs, schedule, generated_ids)
    outcome.prefill, outcome.steps[t]           logits that the runtime must give

Nothing here is shared with the runtime.
"""

from tests.reference.run import Outcome, run

__all__ = ["Outcome", "run"]
