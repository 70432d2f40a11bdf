"""The proof that ours computes what the official code does: `speechzoo verify`."""
