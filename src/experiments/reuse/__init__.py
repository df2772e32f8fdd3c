"""`resume=RUN`, `like=RUN` and `continue=RUN`: a recorded run's command, or its configuration, used again."""
