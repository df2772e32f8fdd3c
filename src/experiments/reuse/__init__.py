"""`resume=RUN` and `like=RUN`: a recorded run's command, or its configuration, used again."""
