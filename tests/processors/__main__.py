"""The user path on the real processors: `python -m tests.processors [FAMILY...] [--out FILE]`.

Needs torchvision, and num2words for SmolVLM. Exit status 1: something is wrong.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import torch
import transformers

from planner.errors import PlannerError
from tests.processors import build, samples
from tests.processors.checkpoint import POLICY, Checkpoint
from tests.processors.families import FAMILIES
from tests.processors.steps import MAY_REFUSE, STEPS, WITH_VIDEO
from tests.processors.table import Finding, Result, render


def main() -> int:
    """Build, walk, render, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=f"default: {' '.join(FAMILIES)}")
    parser.add_argument("--out", type=Path, help="write the table here; default: print it")
    parser.add_argument("--trace", action="store_true", help="print tracebacks of what is wrong")
    options = parser.parse_args()
    unknown = set(options.families) - set(FAMILIES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(FAMILIES)}")
    torch.set_num_threads(1)  # threads that wait for each other take longer than models as small as these
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    results = [_walk(family, options.trace) for family in options.families or FAMILIES]
    if options.out is None:
        print(render(results, POLICY))
    else:
        options.out.write_text(render(results, POLICY), encoding="utf-8")
    return int(any(finding.status == "wrong" for result in results for finding in result.findings.values()))


def _walk(family: str, trace: bool) -> Result:
    start, findings = time.perf_counter(), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build.write(family, folder / "model")
        samples.write(folder)
        checkpoint = Checkpoint(family, folder)
        for step in STEPS:
            if step in WITH_VIDEO and FAMILIES[family].video_processor is None:
                findings[step] = Finding("none", "")
                continue
            findings[step] = _finding(step, checkpoint, trace)
            if findings[step].status != "ok":
                print(f"{family}, {step}: {findings[step].status}: {findings[step].note}", file=sys.stderr)
    print(f"{family}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return Result(family, type(checkpoint.loaded.processor).__name__, findings)


def _finding(step: str, checkpoint: Checkpoint, trace: bool) -> Finding:
    try:
        STEPS[step](checkpoint)
    except Exception as error:  # whatever it is, the table has to name it
        if isinstance(error, PlannerError) and step in MAY_REFUSE:
            return Finding("refused", str(error).splitlines()[0])
        if trace:
            traceback.print_exc()
        return Finding("wrong", f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}")
    return Finding("ok", "")


if __name__ == "__main__":
    sys.exit(main())
