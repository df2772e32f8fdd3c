"""The configuration: schema, validation, Hydra's errors and overrides."""
