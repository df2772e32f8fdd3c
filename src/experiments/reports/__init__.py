"""Reports of runs: figures, tables of text, HTML pages."""
