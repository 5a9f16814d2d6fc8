"""File formats: bytes on one side, named arrays on the other, hostile files refused in between."""
