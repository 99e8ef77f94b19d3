"""What depends on an image alone: telling images apart, their hidden states, keeping them."""
