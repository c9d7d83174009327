"""The command `load`: many orders at once, made up or from a file, each with its outcome."""
