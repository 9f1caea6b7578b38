"""Encoders: camera frames in, token maps out, refined as far as it pays."""
