"""The reference models, the samples they are calibrated and judged on, and the code that made both."""
