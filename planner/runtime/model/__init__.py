"""The model that a plan is attached to: its parts, its attention, its cache, its weights."""
