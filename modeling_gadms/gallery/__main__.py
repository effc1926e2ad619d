"""Galleries from the command line: made, extended, asked, measured, and shown in a browser.

    python -m modeling_gadms.gallery create people --model runs/demo
    python -m modeling_gadms.gallery add people photos --metadata photos.csv --num_workers 2
    python -m modeling_gadms.gallery search people "a man with a blue backpack" --where "camera = 3"
    python -m modeling_gadms.gallery serve people --port 7860

`add`, `sync` and `rebuild` go on where an interrupted call stopped, and share the work among the processes of
`accelerate launch -m modeling_gadms.gallery`. Search only images of people who agreed to it: see the model card.
"""

import argparse
import getpass
import json
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState

from dataset_webperson import DataError
from dataset_webperson.command_line import CommandParser, command
from dataset_webperson.images import open_image
from dataset_webperson.near_duplicates import perceptual_hash

from ..distributed_gadms import num_processes
from .exporting import EXPORTS
from .gallery import Gallery
from .qdrant import QdrantGallery
from .reports import Report
from .rows import INDEXES
from .searching import Hit


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def _create(args: argparse.Namespace) -> None:
    options = {"dtype": args.dtype, "index": args.index, "image_tower": args.image_tower}
    gallery = Gallery.create(args.gallery, args.model, **options)
    _say(f"empty gallery for the model {gallery.model_facts['id']} in {args.gallery}")


def _add(args: argparse.Namespace) -> None:
    _reported(args, lambda gallery, options: gallery.add(args.source, args.metadata, **options))


def _sync(args: argparse.Namespace) -> None:
    _reported(args, lambda gallery, options: gallery.sync(args.folder, **options))


def _rebuild(args: argparse.Namespace) -> None:
    _reported(args, lambda gallery, options: gallery.rebuild(args.model, image_tower=args.image_tower, **options))


def _reported(args: argparse.Namespace, change: Callable[[Gallery, dict[str, Any]], Report]) -> None:
    """Run what may take hours, in all processes, and let the first say what came of it."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        PartialState(cpu=not torch.cuda.is_available())  # joins the processes of the launcher
    options = {"batch_size": args.batch_size, "num_workers": args.num_workers, "progress": sys.stderr.isatty()}
    gallery = Gallery.open(args.gallery)
    report = change(gallery, options)
    if num_processes() == 1 or dist.get_rank() == 0:
        for uri, reason in report.skipped[:20]:
            _say(f"skipped {uri}: {reason}")
        if len(report.skipped) > 20:
            _say(f"and {len(report.skipped) - 20:,} more, listed in {gallery.path / 'skipped.tsv'}")
        _say(f"{report}; {len(gallery):,} images in {args.gallery}")


def _remove(args: argparse.Namespace) -> None:
    gallery = Gallery.open(args.gallery)
    removed = gallery.remove(args.ids, args.where)
    _say(f"{removed:,} removed; {len(gallery):,} images in {args.gallery}")


def _update(args: argparse.Namespace) -> None:
    try:
        values = json.loads(args.values)
    except ValueError as error:
        raise DataError(f"--values {args.values!r:.60}: not JSON ({error}); write e.g. '{{\"camera\": 3}}'") from error
    if not isinstance(values, dict):
        raise DataError(f"--values {args.values!r:.60}: not an object; write e.g. '{{\"camera\": 3}}'")
    _say(f"{Gallery.open(args.gallery).update(args.ids, values):,} updated in {args.gallery}")


def _opened(args: argparse.Namespace) -> Gallery:
    """The gallery that is asked: its own rows, those of a copy on object storage, or those in Qdrant."""
    if args.url is not None:
        if "://" in args.gallery:
            raise DataError(f"{args.gallery}: --url asks Qdrant with a gallery that lies here; give that, or no --url")
        if "://" not in args.url and not os.path.isdir(args.url):
            raise DataError(
                f"--url {args.url!r}: no address, and no folder of Qdrant; write e.g. http://localhost:6333"
            )
        return QdrantGallery(args.gallery, args.url, args.collection, args.model)
    return Gallery.open(args.gallery, args.model)


def _search(args: argparse.Namespace) -> None:
    gallery = _opened(args)
    options = {"k": args.top, "where": args.where, "exact": args.exact}
    with gallery.audit.asked(getpass.getuser(), " | ".join([*args.texts, *args.image]), args.purpose) as hits:
        hits += gallery.search(args.texts, args.image, unlike=args.unlike, collapse=args.collapse, **options)
    if isinstance(gallery, QdrantGallery):
        gallery.close()
    if args.json:
        _say(json.dumps([vars(hit) for hit in hits], indent=2))
        return
    for place, hit in enumerate(hits, 1):
        share = "" if hit.probability is None else f"  {hit.probability:4.0%}"
        _say(f"{place:3}  {hit.score:.3f}{share}  {hit.id}  {hit.uri}")
    if not hits:
        _say("no image satisfies the filter" if args.where else "the gallery is empty")
    elif hits[0].probability is not None and hits[0].probability < gallery.threshold:
        _say(f"nobody here fits: the best match is true in {hits[0].probability:.0%} of such cases")


def _explain(args: argparse.Namespace) -> None:
    gallery = Gallery.open(args.gallery)
    with gallery.audit.asked(getpass.getuser(), f"explain {' | '.join(args.texts)}", args.purpose) as shown:
        found = gallery.explain(args.texts, args.id)
        hit = Hit(args.id, gallery.uri(args.id), found.score, None, {})
        shown.append(hit)
    _say(f"{found.score:.3f}  {hit.id}  {hit.uri}")
    for word, fall in found.words:
        _say(f"{fall:+.3f}  {word}")
    for word, nats in found.against or ():
        _say(f"the image speaks against {word!r} ({nats:.2f})")


def _check(args: argparse.Namespace) -> None:
    found = Gallery.open(args.gallery).check(args.captions, sample=args.sample)
    how = f"index over {found['indexed']:,} rows" if found["indexed"] else "no index, every search is exact"
    _say(f"recall@10 {found['text_recall']:.3f} for captions, {found['vector_recall']:.3f} for stored vectors ({how})")


def _calibrate(args: argparse.Namespace) -> None:
    gallery = Gallery.open(args.gallery)
    facts = gallery.calibrate(args.captions, same=args.same, threshold=args.threshold)
    _say(
        f"calibrated on {facts['captions']:,} captions, of whose ten best images {facts['true_share']:.0%} are true; "
        f"expected calibration error {facts['error']:.3f} [{facts['error_low']:.3f}, {facts['error_high']:.3f}]"
    )


def _export(args: argparse.Namespace) -> None:
    options = {}
    if args.to == "qdrant":
        names = ("collection", "shard_number", "replication_factor", "quantization")
        options = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    count = Gallery.open(args.gallery).export(args.to, args.target, **options)
    _say(f"{count:,} rows to {args.target}")


def _stats(args: argparse.Namespace) -> None:
    gallery = Gallery.open(args.gallery)
    if args.skipped:
        for uri, reason in gallery.skipped:
            _say(f"{uri}: {reason}")
        return
    for name, value in gallery.stats().items():
        _say(f"{name:16} {json.dumps(value) if isinstance(value, dict) else value}")


def _serve(args: argparse.Namespace) -> None:
    try:
        from .server import serve
    except ImportError as error:
        raise DataError(f"the page needs {error.name}, which is not installed; pip install gadms[gallery]") from error
    serve(_opened(args), host=args.host, port=args.port, token=args.token, audit=args.audit)


def _opt_out(args: argparse.Namespace) -> None:
    entries = [f"sha256:{value}" for value in args.sha256] + [f"uri:{pattern}" for pattern in args.uri]
    entries += [f"phash:{perceptual_hash(open_image(path)):016x}" for path in args.image]
    added, removed = Gallery.open(args.gallery).opt_out(entries)
    _say(f"{added:,} new entries on the opt-out list, {removed:,} images removed")


def _audit(args: argparse.Namespace) -> None:
    gallery = Gallery.open(args.gallery)
    if args.switch:
        gallery.audit.switch(args.switch == "on")
    _say(f"queries are {'recorded in ' + gallery.audit.path if gallery.audit.enabled else 'not recorded'}")


def _parser() -> CommandParser:
    parser = CommandParser(prog="python -m modeling_gadms.gallery", description=__doc__)
    kinds = parser.add_subparsers(dest="command", required=True, metavar="command", parser_class=CommandParser)

    def kind(name: str, run: Callable[[argparse.Namespace], None], text: str) -> CommandParser:
        added = kinds.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        added.add_argument("gallery", help="folder of the gallery, or s3://... of a copy on object storage")
        return added

    create = kind("create", _create, "make an empty gallery for a model")
    create.add_argument("--model", required=True, help="folder or Hub id")
    create.add_argument("--dtype", default="float16", choices=["float16", "float32"], help="of the vectors on disk")
    create.add_argument("--index", default="compact", choices=INDEXES, help="of large galleries, kept in memory")

    add = kind("add", _add, "add images; those that are there already are not encoded again")
    add.add_argument("source", help="folder of images, .parquet or .tar files or a folder of them, or a Hub id")
    add.add_argument("--metadata", metavar="FILE", help="csv, jsonl or parquet with a column uri")
    sync = kind("sync", _sync, "bring the gallery to the state of a folder: new, changed and vanished images")
    sync.add_argument("folder", help="a folder that was added")
    rebuild = kind("rebuild", _rebuild, "encode everything again by another model; the old answers until then")
    rebuild.add_argument("--model", required=True, help="folder or Hub id")
    for maker in (create, rebuild):
        maker.add_argument(
            "--image_tower",
            default="float32",
            metavar="TOWER",
            help="what encodes images: float32, bfloat16, or an .onnx file of the model (default: %(default)s)",
        )
    for long in (add, sync, rebuild):
        long.add_argument("--batch_size", type=int, default=32, help="images at a time (default: %(default)s)")
        long.add_argument("--num_workers", type=int, default=0, help="processes that read images ahead")

    remove = kind("remove", _remove, "remove images, from the disk too")
    remove.add_argument("--ids", nargs="+", help="of rows")
    remove.add_argument("--where", metavar="FILTER", help="such as \"uri like 'old/%%'\"")
    update = kind("update", _update, "change metadata")
    update.add_argument("--ids", nargs="+", required=True, help="of rows")
    update.add_argument("--values", metavar="JSON", required=True, help="such as '{\"camera\": 3}'")

    search = kind("search", _search, "the images that fit a description best")
    search.add_argument("texts", nargs="*", help="a description, or several phrasings of one")
    search.add_argument("--image", nargs="+", default=[], help="files, or id:... of rows, that are like it")
    search.add_argument("--unlike", nargs="+", default=[], metavar="ID", help="rows to move away from")
    search.add_argument("--where", metavar="FILTER", help="such as \"camera = 3 and time > '2024-01-01'\"")
    search.add_argument("--top", type=int, default=10, help="number of images (default: %(default)s)")
    search.add_argument("--collapse", metavar="COLUMN", help="one image of each value, or phash")
    search.add_argument("--exact", action="store_true", help="compare every row")
    search.add_argument("--purpose", help="what the search is for, where queries are recorded")
    search.add_argument("--json", action="store_true", help="print the results as JSON")

    explain = kind("explain", _explain, "how far the match falls without each word")
    explain.add_argument("id", help="of the row, as a search names it")
    explain.add_argument("texts", nargs="+", help="a description, or several phrasings of one")
    explain.add_argument("--purpose", help="what it is for, where queries are recorded")

    check = kind("check", _check, "how many of the ten best images the approximate search finds")
    check.add_argument("--captions", required=True, metavar="FILE", help="csv, jsonl or parquet: uri and caption")
    check.add_argument("--sample", type=int, default=200, help="queries of each kind (default: %(default)s)")
    calibrate = kind("calibrate", _calibrate, "learn from captions how likely a match is true")
    calibrate.add_argument("--captions", required=True, metavar="FILE", help="csv, jsonl or parquet: uri and caption")
    calibrate.add_argument("--same", metavar="COLUMN", help="equal for images of which the same captions are true")
    calibrate.add_argument(
        "--threshold", type=float, default=0.5, help="share under which nobody fits (default: %(default)s)"
    )

    export = kind("export", _export, "copy the rows to another engine or place")
    export.add_argument("--to", required=True, choices=list(EXPORTS), help="which engine")
    export.add_argument(
        "--target",
        "--url",
        required=True,
        help="file or folder to write, or the address of a Qdrant server or an object storage",
    )
    export.add_argument("--collection", help="qdrant: its name (default: gallery)")
    export.add_argument("--shard_number", type=int, help="qdrant: shards of the collection")
    export.add_argument("--replication_factor", type=int, help="qdrant: copies of each shard")
    export.add_argument(
        "--quantization", choices=["int8", "none"], help="qdrant: of the vectors in memory (default: int8)"
    )
    stats = kind("stats", _stats, "counts, sizes and settings")
    stats.add_argument("--skipped", action="store_true", help="list the images that could not be read")

    serve = kind("serve", _serve, "a web page and an API over the gallery")
    serve.add_argument("--host", default="127.0.0.1", help="address; any but this one needs --token")
    serve.add_argument("--port", type=int, default=7860, help="port (default: %(default)s)")
    serve.add_argument("--token", help="what a browser must give")
    serve.add_argument("--audit", action="store_true", help="record queries, with their purpose")

    for asked in (search, serve):
        asked.add_argument("--url", help="ask the rows that were exported to this Qdrant server")
        asked.add_argument("--collection", default="gallery", help="of that server (default: %(default)s)")
        asked.add_argument("--model", help="where the gallery's model lies, if not where it was made")

    opt_out = kind("opt_out", _opt_out, "put images on the opt-out list, and remove them")
    opt_out.add_argument("--sha256", nargs="+", default=[], help="of image files")
    opt_out.add_argument("--uri", nargs="+", default=[], metavar="PATTERN", help="names; * and ? as in a shell")
    opt_out.add_argument(
        "--image", nargs="+", default=[], metavar="FILE", help="pictures; copies of them are found too"
    )
    audit = kind("audit", _audit, "say whether queries are recorded, or switch it")
    audit.add_argument("--switch", choices=["on", "off"], help="from now on")
    return parser


@command
def main(arguments: list[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    for name in ("batch_size", "top", "sample"):
        if getattr(args, name, 1) < 1:
            raise DataError(f"--{name} must be at least 1; got {getattr(args, name)}")
    args.run(args)


if __name__ == "__main__":
    sys.exit(main())
