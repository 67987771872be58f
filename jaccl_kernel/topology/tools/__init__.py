"""The macOS tools that a probe runs: each command, and the pure parsers that turn its output into facts."""
