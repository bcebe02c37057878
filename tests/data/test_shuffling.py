"""Tokens in a random order: against plain whole numbers, one token after the other, and through the cache."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
from omegaconf import OmegaConf
from running import documents, write_csv

from textbed.data.datamodule import TextDataModule
from textbed.data.shuffling import shuffle_key, shuffled
from textbed.schema import TOKENIZERS, DataConfig

ALL_BITS = 2**64 - 1


def mixed(value: int) -> int:
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & ALL_BITS
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & ALL_BITS
    return value ^ (value >> 31)


def plain_order(size: int, row: int, key: int) -> list[int]:
    """Which token stands in each place of a document."""
    step = 0x9E3779B97F4A7C15
    stream = mixed(row * step + key & ALL_BITS)
    return sorted(range(size), key=lambda place: mixed(stream + (place + 1) * step & ALL_BITS) >> 32)


def shuffle(texts: list[list[int]], rows: list[int], key: int) -> list[list[int]]:
    starts = np.cumsum([0, *(len(texts[row]) for row in rows)])
    tokens = np.array([token for row in rows for token in texts[row]], np.int32)
    after = shuffled(tokens, starts, np.array(rows, np.int64), key)
    assert after.dtype == np.int32
    return [after[a:b].tolist() for a, b in pairwise(starts)]


def test_one_document_at_a_time_in_any_batch():
    texts = [list(range(100, 100 + size)) for size in (5, 0, 1, 300, 2, 17)]
    key = shuffle_key(0, 0)
    expected = [[text[i] for i in plain_order(len(text), row, key)] for row, text in enumerate(texts)]
    for rows in ([0, 1, 2, 3, 4, 5], [3], [5, 0, 3], [4, 4, 1, 4], []):
        assert shuffle(texts, rows, key) == [expected[row] for row in rows]
    assert expected[3] != texts[3]
    # figures that must never change: a run of today is to be compared with one of next year
    assert key == 5857645148978988075
    assert expected[0] == [103, 104, 100, 101, 102]


def test_every_order_is_as_likely():
    rows = list(range(6000))
    orders = shuffle([[0, 1, 2]] * 6000, rows, shuffle_key(3, 0))
    counts = {order: orders.count(list(order)) for order in permutations(range(3))}
    assert sum(counts.values()) == 6000
    assert (
        sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 20.5
    )  # chi-square, one in a thousand


def test_each_seed_and_each_text_of_a_pair_has_its_own_order():
    texts = [list(range(40))] * 3
    made = [shuffle(texts, [0, 1, 2], shuffle_key(seed, column)) for seed in (0, 1) for column in (0, 1)]
    orders = {tuple(order) for orders in made for order in orders}
    assert len(orders) == 12


# Through the data module


def module_of(folder, path, kind="words", given=None, seed=0, **settings) -> TextDataModule:
    data = OmegaConf.merge(OmegaConf.create(DataConfig(source="csv")), {"path": path, **settings})
    tokenizer = OmegaConf.merge(OmegaConf.structured(TOKENIZERS[kind]), given or {})
    module = TextDataModule(data, tokenizer, folder / "cache", seed)
    module.setup()
    return module


def texts_of(module: TextDataModule, split: str) -> dict[int, list[list[int]]]:
    """The texts of each row, by the loader of the split."""
    loader = getattr(module, f"{'val' if split == 'validation' else split}_dataloader")()
    found: dict[int, list[list[int]]] = {}
    for batch in loader:
        parts = [batch.ids[a:b].tolist() for a, b in pairwise(batch.offsets.tolist())]
        rows = batch.rows.tolist()
        for number, row in enumerate(rows):
            found[row] = parts[number :: len(rows)]
    return found


KINDS = {
    "words": {"min_count": 1},
    "words, unknown dropped": {"kind": "words", "min_count": 6, "unknown": "drop"},
    "words, cut": {"kind": "words", "min_count": 1, "max_tokens": 5, "keep": "both"},
    "characters": {},
    "subwords": {"vocabulary_size": 300},
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("pairs", [False, True])
def test_bags_stay_and_orders_go_whatever_the_tokenizer(name, pairs, tmp_path):
    given, kind = KINDS[name], KINDS[name].get("kind", name)
    rows = documents(60)
    more = {"text": ["text", "other"]} if pairs else {}
    if pairs:
        rows = [(text, text, label) for text, label in rows]  # two texts that are the same
    path = str(write_csv(tmp_path / "a.csv", rows, ("text", *(["other"] if pairs else []), "label")))
    plain = module_of(tmp_path, path, kind, given, **more)
    made = sorted((tmp_path / "cache").rglob("*"))
    mixed_up = module_of(tmp_path, path, kind, given, shuffle_words=True, **more)
    assert sorted((tmp_path / "cache").rglob("*")) == made  # nothing is encoded or stored anew
    again = module_of(
        tmp_path, path, kind, given, shuffle_words=True, seed=5, batch_size=3, eval_batch_size=7, **more
    )
    other = module_of(tmp_path, path, kind, given, shuffle_words=True, shuffle_seed=1, **more)
    assert plain.fingerprint == mixed_up.fingerprint
    assert plain.tokenizer.tokens == mixed_up.tokenizer.tokens
    assert plain.train_counts.tolist() == mixed_up.train_counts.tolist()
    for split in ("train", "validation", "test"):
        before, after = texts_of(plain, split), texts_of(mixed_up, split)
        assert before != after
        assert {row: [sorted(text) for text in texts] for row, texts in before.items()} == {
            row: [sorted(text) for text in texts] for row, texts in after.items()
        }
        assert texts_of(again, split) == after
        assert texts_of(other, split) != after
        assert plain.sets[split].lengths.tolist() == mixed_up.sets[split].lengths.tolist()
        if pairs:
            assert all(first == second for first, second in before.values())
            assert any(first != second for first, second in after.values())
    assert "random order" in " ".join(mixed_up.notes)
    assert "random order" not in " ".join(plain.notes)


def test_the_order_is_that_of_all_tokens_also_where_some_are_left_out(tmp_path):
    """And where words join the vocabulary later: what is left stands the same way round."""
    train = write_csv(tmp_path / "a.csv", documents(60))
    test = write_csv(tmp_path / "b.csv", [("owl zebra owl yak the gnu of owl", "birds")] * 3)
    path = {"train": str(train), "test": str(test)}
    keep, drop = (
        module_of(tmp_path, path, given={"min_count": 9, "unknown": unknown}, shuffle_words=True)
        for unknown in ("keep", "drop")
    )
    for split in ("train", "test"):
        kept, dropped = texts_of(keep, split), texts_of(drop, split)
        assert any(1 in text for (text,) in kept.values())
        assert dropped == {row: [[i for i in text if i != 1]] for row, (text,) in kept.items()}
    unseen = keep.unseen_words
    before = texts_of(keep, "test")
    keep.add_words(unseen)
    size = len(keep.tokenizer) - len(unseen)
    after = texts_of(keep, "test")
    assert any(i >= size for (text,) in after.values() for i in text)
    assert before == {row: [[i if i < size else 1 for i in text]] for row, (text,) in after.items()}
