"""The machine: files, locks, digests, other ranks, the CPU, the terminal. Knows nothing of speech."""
