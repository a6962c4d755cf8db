"""Reads run folders and compares them: paired bootstrap, tables, curves, one self-contained HTML file. No torch."""
