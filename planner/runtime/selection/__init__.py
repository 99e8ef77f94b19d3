"""Which tokens stay: the rows at hand, their scores, the choice, and redistribution among them."""
