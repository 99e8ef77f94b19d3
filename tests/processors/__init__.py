"""The whole user path on checkpoints with the real processors of each family; needs torchvision.

`python -m tests.processors` runs it and writes the table of `reports/processors.md`.
"""
