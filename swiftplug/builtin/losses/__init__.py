"""The losses that ship: each is a function of one position's logits and target."""
