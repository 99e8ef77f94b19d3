"""Probes over samples: cost estimate, one shared pass, states on disk, profiles."""
