"""What no question changes: an image's digest, what stands before it, its hidden states, and caching them."""
