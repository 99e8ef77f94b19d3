"""First answer tokens against accepted answers, as rows of a table and as proportions."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from calibrate.inputs.batches import Batch
from calibrate.probes.stats import Array, proportion
from calibrate.running.execute import first_token_right


def right(batch: Batch, tokens: Tensor) -> Array:
    """``[B]`` 1 where a token starts an accepted answer, 0 where not, NaN without an answer."""
    found = np.asarray(first_token_right(batch.encoder, batch.samples, tokens), np.float32)
    return np.where([bool(sample.answers) for sample in batch.samples], found, np.float32(np.nan))


def shares(hits: Array) -> list[dict[str, Any]]:
    """Proportion per column of ``[samples, columns]``, NaN left out."""
    return [proportion(int(np.nansum(column)), int((~np.isnan(column)).sum())) for column in hits.T]
