"""Typed, frozen configurations: defaults < YAML file < key=value. Imports the standard library and yaml only."""
