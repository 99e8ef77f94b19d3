"""What is measured: one file a probe. `base` says what a probe is and which there are."""
