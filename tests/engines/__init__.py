"""Plans on real inference engines: what is shown needs the engine, so that it is run by hand (`python -m
tests.engines`)."""
