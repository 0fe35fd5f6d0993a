"""The command line: one module a noun, each command thin over a library call."""
