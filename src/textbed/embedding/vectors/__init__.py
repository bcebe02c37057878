"""Pretrained vectors of every common format, told apart by content: what is in a file, and the rows of words.

``peek`` says how wide a file's rows are, ``read`` gives the rows of a vocabulary, ``open_vectors`` the file
itself, to walk through. To add a format: a class like those of ``text.py``, derived from ``Source``, and its
line in ``lookup._format_of``.
"""

from textbed.embedding.vectors.lookup import CASES, is_hub_id, open_vectors, peek, read

__all__ = ["CASES", "is_hub_id", "open_vectors", "peek", "read"]
