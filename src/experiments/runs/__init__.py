"""Run directories: the names and formats of a run's files, and the run that a process executes in one."""
