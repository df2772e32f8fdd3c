"""The verbs of `experiments`: one thin module each, with a main() that reads sys.argv."""
