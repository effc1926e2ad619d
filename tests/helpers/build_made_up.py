"""`python build_made_up.py CONFIG`: `python -m dataset_webperson.build` with the stand-ins of `made_up_persons`."""

import sys

from made_up_persons import stub_crop_shard

from dataset_webperson import build

if __name__ == "__main__":
    build.crop_shard = stub_crop_shard
    sys.exit(build.main(sys.argv[1:]))
