"""The `serial` device: a board behind a serial line."""
