"""Data shipped with the planner, importable as the package planner.profiles."""
