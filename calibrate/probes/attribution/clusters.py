"""Heads grouped by the samples that use them (head attribution C.5, figure 10)."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage

from calibrate.probes.stats import Array, plain

#: A head is used by a sample if its coefficient is above this, and looked at if some sample uses it.
USED = 0.1
#: Heads that are shown at most: the strongest.
MOST = 60


def head_clusters(coefficients: Array) -> dict[str, Any] | None:
    """Two clusters of heads by their coefficients over samples: used by most samples, or by some.

    A head's vector is its coefficient in each sample; heads with one above `USED` are clustered by Ward's method on the
    Euclidean distance, and the two uppermost clusters are named by the share of samples that use their heads.

    Args:
        coefficients: ``[S, L, H]``.

    Returns:
        JSON entries: the heads in the order of the tree with their vectors (`MOST` strongest at most), and of each
        cluster its heads and the mean share of samples that use one. None with fewer than two samples or three heads.
    """
    samples, _, heads = coefficients.shape
    vectors = coefficients.reshape(samples, -1).T
    chosen = np.flatnonzero((vectors > USED).any(axis=1))
    if samples < 2 or len(chosen) < 3:
        return None
    strongest = np.argsort(-vectors[chosen].mean(axis=1), kind="stable")[:MOST]
    chosen = np.sort(chosen[strongest])
    tree = linkage(vectors[chosen], method="ward", optimal_ordering=True)
    order, groups = leaves_list(tree), fcluster(tree, 2, criterion="maxclust")
    used = (vectors[chosen] > USED).mean(axis=1)
    clusters = sorted((groups == group for group in np.unique(groups)), key=lambda mine: -used[mine].mean())

    def named(numbers: Array) -> list[list[int]]:
        return [[int(number) // heads, int(number) % heads] for number in numbers]

    return {
        "heads": named(chosen[order]),
        "vectors": plain(vectors[chosen[order]]),
        "clusters": [
            {
                "heads": named(chosen[mine]),
                "used_by": float(used[mine].mean()),
                "mean": float(vectors[chosen[mine]].mean()),
            }
            for mine in clusters
        ],
    }
