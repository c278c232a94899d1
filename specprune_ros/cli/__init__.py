"""The specprune command line."""
