"""Many runs as one: planned, run apart from each other, resumed, concluded."""
