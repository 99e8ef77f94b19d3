"""The reading of the papers on the pretrained reference model.

python -m tests.reading heads MODEL --out FILE      attribute the set of look-alikes, compare its heads
python -m tests.reading contexts --out FOLDER       questions with text beside the picture, short and long
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from tests.reading.contexts import write
from tests.reading.heads import attribute_pictures, compare

SAMPLES = Path(__file__).resolve().parents[2] / "profiles" / "reference" / "pretrained"


@click.group()
def main() -> None:
    """Read the papers' claims on the pretrained reference model."""


@main.command("heads")
@click.argument("model")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="JSON of the comparison.")
@click.option("--state", type=click.Path(path_type=Path), help="Rows that are done; OUT.rows.jsonl if left out.")
@click.option("--masks", default=800, show_default=True, help="Ablations per picture.")
@click.option("--mean-images", default=60, show_default=True)
@click.option("--dtype", default="bfloat16", show_default=True)
def heads_command(model: str, out: Path, state: Path | None, masks: int, mean_images: int, dtype: str) -> None:
    """Attribute every picture of the set of look-alikes, and compare the heads."""
    from calibrate.inputs.encode import Encoder
    from calibrate.inputs.identity import identify
    from calibrate.inputs.load import load
    from calibrate.inputs.load_options import LoadOptions

    loaded = load(model, LoadOptions(dtype=dtype))
    encoder = Encoder(loaded.processor, identify(loaded.model, loaded.id).visual_ids)
    rows = attribute_pictures(
        loaded.model,
        encoder,
        SAMPLES / "pairs.jsonl",
        SAMPLES / "calibration.jsonl",
        masks=masks,
        mean_images=mean_images,
        state=state or out.with_suffix(".rows.jsonl"),
    )
    done = [row for row in rows if "coefficients" in row]
    found = {
        "pictures": len(rows),
        "answered_rightly": len(done),
        "masks": masks,
        "mean_r2": sum(row["r2"] for row in done) / len(done),
        "cosines": {name: asdict(compared) for name, compared in compare(rows).items()},
    }
    out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    click.echo(json.dumps(found, indent=2))


@main.command("contexts")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the four files.")
def contexts_command(out: Path) -> None:
    """Write the questions with text beside the picture."""
    write(SAMPLES, out)


if __name__ == "__main__":
    main()
