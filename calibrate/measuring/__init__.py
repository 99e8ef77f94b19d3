"""Probes over samples: cost beforehand, one shared pass, states on disk, profiles."""
