"""Context pruning: how much text beside the image can go, and what that does to attention."""
