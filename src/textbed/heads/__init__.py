"""What reads the rows of a document and returns one vector for it."""
