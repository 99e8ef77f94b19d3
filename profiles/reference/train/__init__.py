"""Make the reference models and their sample sets again: ``python -m planner.profiles.reference.train``."""
