"""The model run under a schedule: its answers beside the dense model's, its time, its memory."""
