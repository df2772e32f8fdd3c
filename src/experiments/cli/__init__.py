"""The verbs of the command `experiments`: one thin module each, with a main() that parses sys.argv."""
