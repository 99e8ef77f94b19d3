"""One forward under a schedule: the hooks, a prefill layer by layer, decode steps, what is refused."""
