"""Sweeps: planning, launchers, search, ladder, summary."""
