"""The probes, one file or folder each; `base` has their interface and registry."""
