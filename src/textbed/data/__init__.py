"""From a data set to batches of token ids: sources, tokenizers, encoded columns, loading."""
