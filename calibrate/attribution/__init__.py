"""Which attention heads carry the image into the answer (S4, head attribution), by replaying the text rows only."""
