"""The host link: a serial line, frames on it, and commands that reach a board's memory and registers."""
