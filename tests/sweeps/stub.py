"""Stands in for train.py: leaves a run folder within milliseconds, or fails as it is told to.

``x=0.3`` is the best that it can be given; ``do=`` says what becomes of it, ``epochs=`` and ``pause=``
(seconds for each) how long it takes. With ``holds=x=1,2`` those with one of these ``x`` wait before their
fifth epoch to be told to end, with ``meets=2`` each waits until two have begun. Every start is a line in
``calls.txt`` beside the runs.
"""

import fcntl
import json
import os
import secrets
import signal
import sys
import time
from pathlib import Path

given = dict(one.lstrip("+").split("=", 1) for one in sys.argv[1:])
if "resume" in given:
    run = Path(given["resume"])
    given = json.loads((run / "given.json").read_text()) | given
else:
    run = Path(given["paths.runs"]) / "stub" / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
do, epochs, pause = given.get("do", "fine"), int(given.get("epochs", 1)), float(given.get("pause", 0))
with open(Path(given["paths.runs"]) / "calls.txt", "a") as calls:
    calls.write(json.dumps({"given": sys.argv[1:], "device": os.environ.get("CUDA_VISIBLE_DEVICES")}) + "\n")
while len(Path(given["paths.runs"], "calls.txt").read_text().splitlines()) < int(given.get("meets", 0)):
    time.sleep(0.01)
if do == "mistake":
    print("error: x=: expected a number.", file=sys.stderr)
    sys.exit(1)


def write(name: str, content: object) -> None:
    temporary = run / f".{name}"
    temporary.write_text(content if isinstance(content, str) else json.dumps(content))
    temporary.rename(run / name)


if "resume" not in given:
    run.mkdir(parents=True)
    seed = given.get("seed", "0")
    write(
        "config.yaml",
        f"name: stub\nseed: {seed}\nx: {given.get('x', 0)}\nhead: {given.get('head', 'none')}\n",
    )
    write("given.json", given)
    write("run.json", {"format": 1, "status": "running", "started": "", "pid": os.getpid()})
    temporary = f"{os.environ['TEXTBED_RUN_LINK']}.new"
    os.symlink(run, temporary)
    os.replace(temporary, os.environ["TEXTBED_RUN_LINK"])
lock = open(run / "log.txt", "a")  # noqa: SIM115
fcntl.flock(lock, fcntl.LOCK_EX)


def end(status: str, error: str | None = None) -> None:
    write("run.json", {"format": 1, "status": status, "error": error, "seed": int(given.get("seed", "0"))})


def interrupted(*_: object) -> None:
    end("interrupted")
    sys.exit(130)


signal.signal(signal.SIGTERM, signal.SIG_IGN if do == "hang" else interrupted)
best = 1 - (float(given.get("x", 0.3)) - 0.3) ** 2 + int(given.get("seed", "0")) / 1000
record = run / "metrics.jsonl"
key, _, value = given.get("holds", "holds=never").partition("=")
done = len(record.read_text().splitlines()) if record.exists() else 0
for epoch in range(done, epochs):
    if do == "once" and "resume" not in given:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(pause)
    if epoch == 4 and "resume" not in given and given.get(key) in value.split(","):
        time.sleep(600)
    with record.open("a") as file:
        file.write(json.dumps({"epoch": epoch, "val/accuracy": best * (epoch + 1) / epochs}) + "\n")
if do == "raise":
    end("failed", "RuntimeError: no luck")
    raise RuntimeError("no luck")
if do == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if do == "nan":
    end("failed", "the training loss became NaN in epoch 1, batch 1: a smaller optimizer.lr may help")
    sys.exit(1)
if do == "memory":
    end("failed", "OutOfMemoryError")
    raise MemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
if do == "hang":
    time.sleep(600)
figures = {"val/accuracy": best, "seconds/fit": float(given.get("x", 0.3))}
if given.get("test") != "false":
    figures["test/accuracy"] = best - 0.1
write("metrics.json", {} if do == "nothing" else figures)
end("finished")
print(run)
