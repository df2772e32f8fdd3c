"""The verbs of `experiments`: thin, each with a main() that reads sys.argv."""
