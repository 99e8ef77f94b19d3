"""The model under a schedule: answers compared with the dense model's, time, memory."""
