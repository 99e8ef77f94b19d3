"""Damaged and hostile files: whatever is in them, a reader takes them or refuses them with cause and remedy.

A short run is part of the tests; the long one, whose figures stand in ``reports/reliability.md``:

    python -m tests.fuzz 100000
"""
