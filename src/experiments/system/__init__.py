"""The process and its machine: start-up, signals, progress, paths, hardware, redaction of credentials."""
