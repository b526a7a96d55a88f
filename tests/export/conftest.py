"""Makes the graphs of this folder, int8_graphs.py and others, importable in the folders below it."""
