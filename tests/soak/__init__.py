"""The soak: everything at once, for as long as one likes; `make soak` runs it."""
