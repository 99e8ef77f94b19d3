"""What an entry's dropped tokens become, token by token."""

from __future__ import annotations

from torch import Tensor

from planner.schedule import Select
from tests.reference.attention import Record
from tests.reference.pictures import cells
from tests.reference.scores import Prompt, best_of, pieces


def joins(select: Select, prompt: Prompt, alive: Tensor, record: Record) -> list[dict[int, list[int]]]:
    """For each sample the kept tokens that become a mean, and the tokens it is the mean of; nothing without a merge."""
    found: list[dict[int, list[int]]] = []
    for sample in range(len(alive)):
        found.append({})
        for visual, lies in pieces(select, prompt, alive, sample):
            stays = best_of(select, -1, prompt, alive, record, sample, visual, lies)
            gone = [token for token in visual if token not in stays]
            members = {token: [token] for token in stays}
            if select.merge == "mean" and stays:
                members[stays[-1]] += gone
            elif select.merge == "nearest" and stays:
                inputs = record.inputs[sample]
                for token in gone:
                    members[max(sorted(stays), key=lambda other: _cosine(inputs[token], inputs[other]))].append(token)
            elif select.merge == "cell":
                members = {visual[cell[0]]: [visual[i] for i in cell] for cell in cells(lies, len(stays))}
            found[-1] |= members
    return found if select.merge != "none" else []


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))
