"""The command line: one or two files per panel of the help."""
