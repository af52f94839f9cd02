"""A data set to screen recipes on without its test persons: some of Market-1501's training persons are held
out as query and gallery. Prints the list that `maskreid convert csv` takes; DATASET is the data set's folder.

python launch/studies/held_out.py DATASET > DATASET/held_out.csv
maskreid convert csv DATASET/held_out.csv shards/walkers_held_out --masks '{folder}_seg/{stem}.png' \
  --on-bad-mask full --shard-size 4MB
"""

import csv
import random
import sys
from collections import defaultdict
from pathlib import Path

HELD_OUT = 70  # persons
FOLDER = "bounding_box_train"


def main() -> None:
    dataset = Path(sys.argv[1])
    images = sorted((dataset / FOLDER).glob("*.jpg"))
    held_out = _held_out(dataset / "identities.csv", {image.name[:4] for image in images})
    asked: set[tuple[str, str]] = set()
    print("path,pid,camid,split")
    for image in images:
        pid, camera = image.name[:4], image.name[6]
        split = "train"
        if pid in held_out:  # the first image of each camera is a query
            split = "gallery" if (pid, camera) in asked else "query"
            asked.add((pid, camera))
        print(f"{FOLDER}/{image.name},{int(pid)},{camera},{split}")


def _held_out(identities: Path, persons: set[str]) -> set[str]:
    """About HELD_OUT of them, drawn once; look-alikes stay together."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    with identities.open(newline="") as file:
        for row in csv.DictReader(file):
            if row["pid"] in persons:
                groups[row["lookalike_group"] or row["pid"]].append(row["pid"])
    order = sorted(groups)
    random.Random(0).shuffle(order)
    chosen: set[str] = set()
    for name in order:
        if len(chosen) < HELD_OUT:
            chosen.update(groups[name])
    return chosen


if __name__ == "__main__":
    main()
