"""Make the pretrained reference model, or rebuild it: ``python -m planner.profiles.reference.train.pretrained``."""
