"""Words plus hashed n-grams of words and of characters, as in fastText.

Shape letters: B documents, N tokens of all of them, U different words among these, V rows of the table of
words, D width of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from textbed.batch import Reduction, TokenBatch
from textbed.embedding import bag
from textbed.embedding.ngram_hash import ngram_rows, word_hashes
from textbed.embedding.table import FrontEnd, Initialisation, Table
from textbed.errors import UserError

MULTIPLIER = 116049371
"""fastText's: the hash of n words is that of the first n - 1 times this, plus that of the last."""
_WORDS_AT_ONCE = 1 << 16
"""Words whose character n-grams are hashed together: at 25 of them a word 100 MB of numbers in between."""


class NGrams(FrontEnd):
    """One row per word, and ``buckets`` rows that word n-grams and character n-grams share by their hash.

    Word n-grams say which words stand together (Joulin et al. 2017, arXiv:1607.01759), character n-grams
    which words look alike (Bojanowski et al. 2017, arXiv:1607.04606). Hashes are fastText's own, so that a
    bucket holds the same n-grams as in a fastText model of as many buckets. A word's character n-grams are
    those of the word between the marks < and >. A hash depends on the words' text, never on their numbers.
    All unknown words are one word here, and the word ``padding_idx`` is part of no n-gram: its neighbours
    meet. No n-gram reaches from one document into the next.

    ``pool`` reduces words and n-grams together, all with the same say: a mean divides by the number of both.
    With ``ngram_dim`` each is reduced by itself, and the n-grams' values stand beside the words': wide
    pretrained rows then keep a mean of their own, and n-grams cost what narrow rows cost. A token's weight
    is a factor on its own row and on its character n-grams; a word n-gram has the mean of its words'
    weights, which keeps their scale whatever it is.

    Args:
        num_embeddings: V, rows of the table of words.
        dim: D, width of a word's row; None takes the vectors' width.
        tokens: (V,) the words.
        vectors, found, appended: pretrained rows of words, see :class:`Table`.
        trainable: whether training moves the words' rows. Those of the n-grams it always does.
        init, scale: how words' rows without a vector start, see :class:`Table`.
        padding_idx: the word whose row is zero, is never trained, and is not counted.
        word_ngrams: most words of a word n-gram; 1 for none.
        min_char, max_char: least and most characters of a character n-gram, marks included; None for none.
        ngram_dim: width of an n-gram's row, which then stands beside the words': ``forward`` and ``pool``
            give D + ngram_dim values. None: n-grams are D wide too, and added to the words.
        buckets: rows that the n-grams share.
        ngram_init, ngram_scale: how those start, see :class:`Table`. From zeros an n-gram that training never
            saw says nothing; fastText's own start is uniform with a scale of 1 / D.
        sparse: give sparse gradients, of both tables.

    Raises:
        UserError: a setting that cannot be, or vectors of another size than the table.
    """

    hashes: Tensor
    """(V,) int32: the hash of each word."""
    char_rows: Tensor
    """int32: the buckets of the character n-grams of all words, end to end."""
    char_begins: Tensor
    """(V,) int32: where those of each word begin."""
    char_counts: Tensor
    """(V,) int32: how many each word has."""

    def __init__(
        self,
        num_embeddings: int,
        dim: int | None = None,
        *,
        tokens: Sequence[str],
        vectors: Tensor | None = None,
        found: Tensor | None = None,
        appended: int = 0,
        trainable: bool = True,
        init: Initialisation = "normal",
        scale: float | None = None,
        padding_idx: int | None = None,
        word_ngrams: int = 2,
        min_char: int | None = None,
        max_char: int | None = None,
        ngram_dim: int | None = None,
        buckets: int = 2_000_000,
        ngram_init: Initialisation = "zeros",
        ngram_scale: float | None = None,
        sparse: bool = False,
    ) -> None:
        super().__init__()
        if len(tokens) != num_embeddings:
            raise ValueError(f"{len(tokens)} tokens for {num_embeddings} rows")
        if word_ngrams < 1:
            raise UserError(f"embedding.word_ngrams is {word_ngrams}; expected at least 1, which is none")
        if (min_char is None) != (max_char is None):
            given, other = ("min_char", "max_char") if max_char is None else ("max_char", "min_char")
            raise UserError(f"embedding.{given} is given without embedding.{other}; give both, or none")
        if min_char is not None and max_char is not None and not 1 <= min_char <= max_char:
            raise UserError(
                f"embedding.min_char is {min_char} and embedding.max_char {max_char}; expected "
                "1 <= min_char <= max_char"
            )
        if word_ngrams == 1 and max_char is None:
            raise UserError(
                "embedding.word_ngrams is 1 and embedding.max_char null: there are no n-grams; give one of "
                "them, or choose embedding=random"
            )
        if ngram_dim is not None and ngram_dim < 1:
            raise UserError(f"embedding.ngram_dim is {ngram_dim}; expected null or a width of at least 1")
        if not 1 <= buckets < 2**31:
            raise UserError(f"embedding.buckets is {buckets}; expected 1 to {2**31 - 1}")
        # The words first: they get the random numbers that a plain table gets.
        self.words = Table(
            num_embeddings,
            dim,
            vectors=vectors,
            found=found,
            appended=appended,
            trainable=trainable,
            init=init,
            scale=scale,
            padding_idx=padding_idx,
            sparse=sparse,
        )
        self.beside = ngram_dim is not None
        self.dim = self.words.dim + (ngram_dim or 0)
        self.padding_idx = padding_idx
        self.ngrams = Table(buckets, ngram_dim or self.dim, init=ngram_init, scale=ngram_scale, sparse=sparse)
        self.word_ngrams, self.min_char, self.max_char, self.buckets = (
            word_ngrams,
            min_char,
            max_char,
            buckets,
        )

        # What follows from the tokens is in no checkpoint, since they are kept beside it. Of 100,000 it takes
        # a second.
        words = [token.encode() for token in tokens]
        hashes = word_hashes(words).view(np.int32)
        self.register_buffer("hashes", torch.from_numpy(hashes), persistent=False)
        rows, counts = _character_rows(words, min_char or 0, max_char or 0, buckets)
        begins = np.cumsum(counts, dtype=np.int32) - counts
        for name, array in (("char_rows", rows), ("char_begins", begins), ("char_counts", counts)):
            self.register_buffer(name, torch.from_numpy(array), persistent=False)

    def forward(self, batch: TokenBatch) -> Tensor:
        """A row for each token, (N, D), times its weight: what a head reads that goes from word to word.

        It is the mean of the word's row, its character n-grams and the word n-grams that end at it; with
        ``ngram_dim`` the word's row and then the mean of its n-grams, zeros where it has none.
        """
        kept = batch.without(self.padding_idx)
        words = TokenBatch(kept.ids, kept.offsets)
        ngrams, counts_N = self._word_ngrams(words)
        rows_ND, characters = self._pool_ngrams(TokenBatch(ngrams.ids, _begins(counts_N)), words)
        own_ND = self.words(words)
        if not self.beside:
            rows_ND, counts_N = rows_ND + own_ND, counts_N + 1
        if characters is not None:
            rows_ND = rows_ND + bag.look_up(*characters)
            counts_N = counts_N + self._count_characters(words.ids)
        rows_ND = rows_ND / counts_N.clamp(min=1).unsqueeze(1)
        if self.beside:
            rows_ND = torch.cat([own_ND, rows_ND], dim=1)
        if kept.weights is not None:
            rows_ND = rows_ND * kept.weights.unsqueeze(1)
        if kept is batch:
            return rows_ND
        assert self.padding_idx is not None
        places = (batch.ids != self.padding_idx).nonzero().squeeze(1)
        return rows_ND.new_zeros(batch.ids.shape[0], self.dim).index_put((places,), rows_ND)

    def pool(self, batch: TokenBatch, mode: Reduction) -> Tensor:
        """The sum, mean or maximum of the rows of each document's words and n-grams, (B, D).

        With ``ngram_dim`` that of its words and then that of its n-grams, zeros where it has none.
        """
        batch = batch.without(self.padding_idx)
        ngrams, _ = self._word_ngrams(batch)
        if mode == "max":
            return self._maximum(batch, ngrams)
        total_BD, characters = self._pool_ngrams(ngrams, batch)
        words_BD = self.words.pool(batch, mode if self.beside else "sum")
        if not self.beside:
            total_BD = total_BD + words_BD
        if characters is not None:
            total_BD = total_BD + bag.pool(*characters, "sum")
        if mode == "mean":
            counts_B = ngrams.lengths if self.beside else ngrams.lengths + batch.lengths
            if characters is not None:
                counts_B = counts_B + _begins(self._count_characters(batch.ids))[batch.offsets].diff()
            total_BD = total_BD / counts_B.clamp(min=1).unsqueeze(1)
        return torch.cat([words_BD, total_BD], dim=1) if self.beside else total_BD

    def multiply_adds(
        self, lengths: Sequence[int], counts: Tensor, pools: Sequence[Reduction] | None = None
    ) -> int:
        """As of :class:`FrontEnd`: each token is a mean of its own row and those of its n-grams, which are
        reduced with the document's where the head pools. Beside the words there is no own row in it."""
        ngrams = int((counts * self.char_counts).sum())
        for words in range(2, self.word_ngrams + 1):
            ngrams += sum(max(length - words + 1, 0) for length in lengths)
        if pools is not None:
            if self.beside:
                ngrams -= sum(lengths)  # the head counts one for each token, at the whole width
            ngrams *= len(pools)
        elif not self.beside:
            ngrams += sum(lengths)
        return self.ngrams.dim * ngrams

    def _maximum(self, batch: TokenBatch, ngrams: TokenBatch) -> Tensor:
        words_BD = self.words.pool(batch, "max")
        parts = [ngrams]
        if self.max_char is not None:
            rows, begins = self._characters(batch.ids)
            weights = batch.weights
            if weights is not None:
                weights = _spread(weights, begins.diff(), rows.shape[0])
            parts.append(TokenBatch(rows, begins[batch.offsets], weights=weights))
        pooled = [(part.lengths > 0, self.ngrams.pool(part, "max")) for part in parts]
        if not self.beside:
            pooled.insert(0, (batch.lengths > 0, words_BD))
        has_B, most_BD = pooled[0]
        for part_has_B, part_BD in pooled[1:]:
            # A document may have none of these, and zeros are no maximum then.
            both_B1 = (has_B & part_has_B).unsqueeze(1)
            either_BD = torch.where(part_has_B.unsqueeze(1), part_BD, most_BD)
            has_B, most_BD = has_B | part_has_B, torch.where(both_B1, most_BD.maximum(part_BD), either_BD)
        return torch.cat([words_BD, most_BD], dim=1) if self.beside else most_BD

    def _pool_ngrams(
        self, ngrams: TokenBatch, batch: TokenBatch
    ) -> tuple[Tensor, tuple[Tensor, TokenBatch] | None]:
        """The sums of ``ngrams``' rows, (B, D), and of the character n-grams of each word, (U, D), together
        with ``batch`` in numbers of these U rows; None without character n-grams.

        A word's characters are summed once however often it comes: a fifth of the work on film reviews. Both
        sums are one call, since each would give a gradient as large as the table.
        """
        if self.max_char is None:
            return self.ngrams.pool(ngrams, "sum"), None
        used_V = torch.zeros_like(self.char_counts, dtype=torch.bool)
        used_V[batch.ids] = True
        numbers_V = used_V.cumsum(0, dtype=batch.ids.dtype) - 1
        rows, begins = self._characters(used_V.nonzero().squeeze(1))
        weights = ngrams.weights
        if weights is not None:
            weights = torch.cat([weights, weights.new_ones(rows.shape[0])])
        both = TokenBatch(
            torch.cat([ngrams.ids, rows]),
            torch.cat([ngrams.offsets, begins[1:] + ngrams.offsets[-1]]),
            weights=weights,
        )
        ngrams_BD, characters_UD = self.ngrams.pool(both, "sum").split([len(ngrams), begins.shape[0] - 1])
        words = TokenBatch(numbers_V.index_select(0, batch.ids), batch.offsets, weights=batch.weights)
        return ngrams_BD, (characters_UD, words)

    def _count_characters(self, ids: Tensor) -> Tensor:
        """How many character n-grams each word has."""
        return self.char_counts.index_select(0, ids)

    @torch.compiler.disable  # sizes depend on the words
    def _characters(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The buckets of the words' character n-grams, word after word, and where each word's begin."""
        counts = self._count_characters(ids)
        begins = _begins(counts)
        size = int(begins[-1])
        places = _spread(self.char_begins.index_select(0, ids) - begins[:-1], counts, size)
        return self.char_rows.index_select(0, places + _range(places)), begins

    @torch.compiler.disable
    def _word_ngrams(self, batch: TokenBatch) -> tuple[TokenBatch, Tensor]:
        """The documents as their word n-grams, and how many end at each token, (N,).

        Those of a document are in the order of their last words, then of their lengths. No token of ``batch``
        is ``padding_idx``.
        """
        places_N = _range(batch.ids) - _spread(batch.offsets[:-1], batch.lengths, batch.ids.shape[0])
        counts_N = places_N.clamp(max=self.word_ngrams - 1)
        if self.word_ngrams == 1:
            none = None if batch.weights is None else batch.weights[:0]
            return TokenBatch(batch.ids[:0], torch.zeros_like(batch.offsets), weights=none), counts_N
        # In whole numbers that wrap around at 64 bits: so does fastText.
        own_N = self.hashes.index_select(0, batch.ids).long()
        hashed_N, weight_N = own_N, batch.weights
        hashes, weights = [], []
        for words in range(2, self.word_ngrams + 1):
            # The n-gram that ends at a token is the shorter one that ends before it, and its own word.
            hashed_N = torch.cat([own_N[:1], hashed_N[:-1] * MULTIPLIER + own_N[1:]])
            hashes.append(hashed_N)
            if batch.weights is not None:
                assert weight_N is not None
                weight_N = torch.cat([batch.weights[:1], weight_N[:-1] + batch.weights[1:]])
                weights.append(weight_N / words)
        # An n-gram of n words ends at the nth token of its document or later. Taking rows by number costs a
        # third of taking them by a mask.
        reach = torch.arange(1, self.word_ngrams, dtype=places_N.dtype, device=places_N.device)
        inside = (places_N.unsqueeze(1) >= reach).flatten().nonzero().squeeze(1)
        rows = _unsigned_remainder(_interleaved(hashes).index_select(0, inside), self.buckets)
        return TokenBatch(
            rows.to(batch.ids.dtype),
            _begins(counts_N)[batch.offsets],
            weights=_interleaved(weights).index_select(0, inside) if weights else None,
        ), counts_N

    def extra_repr(self) -> str:
        return f"word_ngrams={self.word_ngrams}, min_char={self.min_char}, max_char={self.max_char}"


def _character_rows(
    words: Sequence[bytes], shortest: int, longest: int, buckets: int
) -> tuple[np.ndarray, np.ndarray]:
    """The buckets of the words' character n-grams, word after word, and how many each has; both int32."""
    rows, counts = [np.zeros(0, np.int32)], []
    for begin in range(0, len(words), _WORDS_AT_ONCE):
        some = words[begin : begin + _WORDS_AT_ONCE]
        owner, found = ngram_rows(some, shortest, longest, buckets)
        rows.append(found[np.argsort(owner, kind="stable")].astype(np.int32))
        counts.append(np.bincount(owner, minlength=len(some)).astype(np.int32))
    return np.concatenate(rows), np.concatenate(counts)


def _begins(counts: Tensor) -> Tensor:
    """Where each of N runs of ``counts`` begins, and the end of all, (N + 1,) of the same type."""
    return F.pad(counts.cumsum(0, dtype=counts.dtype), (1, 0))


def _spread(values: Tensor, counts: Tensor, size: int) -> Tensor:
    """Each value as often as its count says; ``size`` is the sum of the counts."""
    return torch.repeat_interleave(values, counts, output_size=size)


def _range(like: Tensor) -> Tensor:
    return torch.arange(like.shape[0], dtype=like.dtype, device=like.device)


def _interleaved(columns: list[Tensor]) -> Tensor:
    """The first of each column, then the second of each, and so on."""
    return torch.stack(columns, 1).flatten()


def _unsigned_remainder(values: Tensor, divisor: int) -> Tensor:
    """``values`` modulo ``divisor``, int64 read as numbers of 64 bits without a sign, for want of uint64."""
    # A negative number is 2**64 larger then. A shift by 63 makes -1 of it, all bits, and 0 of any other.
    remainder = values.remainder(divisor) + ((values >> 63) & (2**64 % divisor)) - divisor
    return remainder + ((remainder >> 63) & divisor)
