"""The long run: ``python -m tests.fuzz 100000``. Prints a Markdown table; exits 1 if anything is wrong."""

from __future__ import annotations

import sys
import time
from collections import Counter

from tests.fuzz.run import run
from tests.fuzz.targets import targets

COLUMNS = ("refused", "read", "traceback", "hang", "believed")


def main(total: int, start: int = 0) -> int:
    chosen, sums = targets(), Counter[str]()
    print(f"| file | mutants | {' | '.join(COLUMNS)} | s |\n|---|{'---|' * (len(COLUMNS) + 2)}")
    for target in chosen:
        begun = time.perf_counter()
        found = run(target, -(-total // len(chosen)), start)
        sums += found.outcomes
        cells = " | ".join(f"{found.outcomes[name]:,}" for name in COLUMNS)
        print(
            f"| {target.name} | {found.outcomes.total():,} | {cells} | {time.perf_counter() - begun:.0f} |", flush=True
        )
        for place, times in Counter(found.faults).most_common(8):
            print(f"{times} x {place}\n", file=sys.stderr, flush=True)
    print(f"| all | {sums.total():,} | {' | '.join(f'{sums[name]:,}' for name in COLUMNS)} | |")
    return int(bool(sums["traceback"] + sums["hang"] + sums["believed"]))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:3])))
