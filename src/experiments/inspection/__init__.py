"""Reports and figures of `experiments inspect`: one module for each part of a configuration or of a run."""
