"""The commands of ``tidings``, a module each; `base` has what they share, `cli` puts them together."""
