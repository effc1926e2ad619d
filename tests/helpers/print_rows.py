"""Prints rows as JSON, for several versions of `datasets`: print_rows.py '[["path", {"option": 1}]]'"""

import hashlib
import json
import sys

import datasets


def describe(row):
    image = row.pop("image")
    return [image.mode, image.size, hashlib.sha256(image.tobytes()).hexdigest()[:16], row]


if __name__ == "__main__":
    found = []
    for path, options in json.loads(sys.argv[1]):
        rows = datasets.load_dataset(path, split="train", **options)
        found.append({"columns": list(rows.features), "rows": [describe(row) for row in rows]})
    sys.stdout.write(json.dumps({"version": datasets.__version__, "found": found}) + "\n")
