"""Which samples propose, which select, and which certify: three parts that share no picture.

A proof is helped by nothing but samples, but what it is tried on is only as good as the search. Two fifths of the
samples for the search make plans up to a quarter cheaper at 256 than a tenth does, no dearer at 512 (``python -m
tests.simulate_decisions`` on either). Where misses are counted, certify gets not one more than its last allowed miss
needs: of two sizes that allow equally many, the smaller passes more easily (`calibrate.deciding.power`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from calibrate.deciding.power import allowed, few, least, plenty
from calibrate.inputs.samples import SampleSet
from planner.errors import InputError

#: Pictures that propose and select at least, where there are twice as many; and their share, as far as a proof is
#: possible with the others.
SEARCH_PICTURES, SEARCH_SHARE = 24, 0.4
#: Without these there are no three parts.
FEWEST_PICTURES = 4


@dataclass(frozen=True)
class Split:
    """A sample set in three parts.

    Attributes:
        propose, select: samples that the search may use as it likes; propose is what probes may read.
        certify: samples that are opened once, by the proof.
        pictures: of each certify sample, for `calibrate.deciding.proof.prove`: samples with equal numbers show one
            picture.
    """

    propose: SampleSet
    select: SampleSet
    certify: SampleSet
    pictures: tuple[int, ...]

    @property
    def independent(self) -> int:
        """Certify pictures: what a proof counts."""
        return len(set(self.pictures))

    @property
    def single(self) -> bool:
        """Every certify sample has a picture of its own."""
        return self.independent == len(self.certify)

    @property
    def parts(self) -> dict[str, SampleSet]:
        """Each part by its name."""
        return {"propose": self.propose, "select": self.select, "certify": self.certify}

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each part by its name."""
        return {name: part.digest for name, part in self.parts.items()}


def split(samples: SampleSet, limit: float, confidence: float, binary: bool = True) -> Split:
    """Propose, select and certify, in this order within `by_picture`.

    Args:
        samples: in random order, as `SampleSet.choose` draws them by its seed.
        limit, confidence: what is to be proven (`calibrate.deciding.proof`).
        binary: losses will be 0 or 1, as far as is known.

    Raises:
        InputError: there are too few pictures for three parts.
    """
    groups = _groups(samples)
    if len(groups) < FEWEST_PICTURES:
        shown = "one picture" if len(groups) == 1 else f"{len(groups)} pictures"
        raise InputError(
            f"all {len(samples)} samples are about {shown}: nothing that holds for other pictures can be learned",
            "Give samples about different pictures",
        )
    counted = binary and (len(groups) == len(samples) or few(len(groups) - SEARCH_PICTURES, limit, confidence))
    propose, select, _ = sizes(len(groups), limit, confidence, counted)
    parts = (groups[:propose], groups[propose : propose + select], groups[propose + select :])
    sets = [SampleSet(tuple(samples[i] for group in part for i in group), samples.source) for part in parts]
    pictures = tuple(number for number, group in enumerate(parts[2]) for _ in group)
    return Split(sets[0], sets[1], sets[2], pictures)


def by_picture(samples: SampleSet) -> SampleSet:
    """The same samples, those about one picture together, in the order in which pictures come first."""
    return SampleSet(tuple(samples[i] for group in _groups(samples) for i in group), samples.source)


def count_pictures(samples: SampleSet) -> int:
    """How many independent pictures samples are about."""
    return len(_groups(samples))


def sizes(pictures: int, limit: float, confidence: float, counted: bool = True) -> tuple[int, int, int]:
    """How many pictures propose, select and certify; `counted`: the proof counts misses, one question a picture."""
    proof = (least if counted else plenty)(limit, confidence)
    search = min(max(SEARCH_PICTURES, min(round(SEARCH_SHARE * pictures), pictures - proof)), pictures // 2)
    certify = pictures - search
    misses = allowed(certify, limit, confidence)
    if counted and misses >= 0:
        certify = _smallest_with(misses, certify, limit, confidence)
    search = pictures - certify
    return search // 2, search - search // 2, certify


def _smallest_with(misses: int, most: int, limit: float, confidence: float) -> int:
    """The fewest certify pictures of which so many may lose."""
    low, high = least(limit, confidence) - 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if allowed(middle, limit, confidence) >= misses else (middle, high)
    return high


def _groups(samples: SampleSet) -> list[list[int]]:
    """Samples that are linked by pictures they share, in the order of their first samples."""
    number: dict[bytes, int] = {}
    links = [
        (i, number.setdefault(one, len(number))) for i, sample in enumerate(samples) for one in sample.image_digests
    ]
    rows, columns = np.array(links).T
    shape = (len(samples), len(number))
    shows = coo_matrix((np.ones(len(links)), (rows, columns)), shape)
    _, labels = connected_components(shows @ shows.T, directed=False)
    groups: dict[int, list[int]] = {}
    for i, label in enumerate(labels):
        groups.setdefault(int(label), []).append(i)
    return list(groups.values())
