"""Which tokens stay: the rows of a prefill, their scores, the selection, and redistribution."""
