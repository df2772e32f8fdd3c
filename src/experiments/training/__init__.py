"""Training: `fit`, learning rates, losses, checkpoints, pruning, use of the hardware."""
