"""What `experiments inspect` looks at: one module for each part of a configuration, or of a run."""
