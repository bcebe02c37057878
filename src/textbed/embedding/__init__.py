"""The front end: lookup tables from token ids to rows, and the vectors that fill them."""
