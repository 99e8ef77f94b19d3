"""What depends on an image alone: its digest, its hidden states, and caching them."""
