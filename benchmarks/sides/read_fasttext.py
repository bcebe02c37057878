"""fastText's reader over a prepared file: words counted into its dictionary, by one thread.

A training of no epochs reads the file once, and makes a table one column wide, which takes little beside it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import fasttext
from measuring import CLOCKS, peak_mb

clock = CLOCKS[sys.argv[1]]
start = clock()
model = fasttext.train_supervised(
    input=sys.argv[2], epoch=0, dim=1, minCount=2, bucket=0, thread=1, verbose=0, wordNgrams=1
)
seconds = clock() - start
_, counts = model.get_words(include_freq=True)
figures = {"seconds": seconds, "peak_mb": peak_mb(), "tokens": int(sum(counts)), "vocabulary": len(counts)}
print(json.dumps(figures))
