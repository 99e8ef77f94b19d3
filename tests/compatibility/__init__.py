"""What works on which release of transformers: `python -m tests.compatibility`."""
