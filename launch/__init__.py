"""Puts a command on machines. Renders what will run, and runs it; never imports what it starts."""
