"""What came back from each host, and what sites say of the use of their pictures, where it was kept."""

import json
import tarfile
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from urllib.robotparser import RobotFileParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up_persons import GOOD, STUB_CROP, picture, stub_crop_shard
from made_up_webperson import add_member

from dataset_webperson.construction.hosts import SCHEMA, add_up_hosts, top_hosts
from dataset_webperson.construction.preflight import check_files
from dataset_webperson.construction.reservations import Robots, RobotsOptions, reserved_by
from dataset_webperson.construction.shards import read_rows
from dataset_webperson.construction.source_scan import scan_shard
from dataset_webperson.construction.sources import find_shards
from dataset_webperson.findings import DataError

TEXT = """
# every picture but those of the press
User-agent: *
Disallow: /private
Allow: /private/press
Disallow: /*.gif$

User-agent: CCBot
User-agent: GPTBot
Disallow: /

User-agent: polite
Disallow:
Crawl-delay: 5
"""


@pytest.mark.parametrize(
    "agent, path, allowed",
    [
        ("img2dataset", "/", True),
        ("img2dataset", "/private/a.jpg", False),
        ("img2dataset", "/private/press/a.jpg", True),  # the longest rule decides
        ("img2dataset", "/%70rivate/a.jpg", False),
        ("img2dataset", "/a.gif", False),
        ("img2dataset", "/a.gif?size=2", True),
        ("ccbot", "/a.jpg", False),
        ("gptbot", "/private/press/a.jpg", False),  # a group of one's own replaces the one for all
        ("polite", "/private/a.jpg", True),
    ],
)
def test_robots_txt_is_read_as_the_standard_has_it(agent, path, allowed):
    assert Robots(TEXT).allows(agent, path) == allowed
    assert Robots("<html>not found</html>").allows(agent, path)


def test_rules_without_stars_are_those_of_python_s_own_parser():
    random = np.random.default_rng(0)
    for _ in range(50):
        paths = sorted({"/" + "/".join(random.choice(list("abc"), random.integers(1, 4))) for _ in range(4)})
        rules = [f"{random.choice(['Allow', 'Disallow'])}: {path}" for path in sorted(paths, key=len, reverse=True)]
        text = "\n".join(["User-agent: *", *rules])  # the longest first, for Python's takes the first that matches
        parser = RobotFileParser()
        parser.parse(text.splitlines())
        for path in (*paths, "/", "/a/b/c/a", "/b?c", "/c/a"):
            assert Robots(text).allows("any", path) == parser.can_fetch("any", f"https://a.org{path}")


@pytest.mark.parametrize(
    "headers, reason",
    [
        ({"x-robots-tag": "noai, nofollow"}, "reserved_robots_tag"),
        ({"X-Robots-Tag": ["nofollow", "NoImageIndex"]}, "reserved_robots_tag"),
        ([["X-Robots-Tag", "CCBot: noai"]], "reserved_robots_tag"),
        ({"X-Robots-Tag": "otherbot: noai"}, ""),  # said to somebody else
        ({"X-Robots-Tag": "unavailable_after: 25 Jun 2030 15:00:00 PST, noindex"}, "reserved_robots_tag"),
        ({"X-Robots-Tag": "max-image-preview: large"}, ""),
        ({"TDM-Reservation": 1}, "reserved_tdm"),
        ('{"tdm-reservation": "1"}', "reserved_tdm"),
        ({"TDM-Reservation": "0", "Content-Type": "noai"}, ""),
        ("not json", ""),
        (7, ""),
        (None, ""),
    ],
)
def test_headers_reserve_a_picture(headers, reason):
    assert reserved_by(headers) == reason


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    """Six pictures of three hosts as a tar, as parquet, and as files, of which two have a header; failures beside."""
    root = tmp_path_factory.mktemp("downloads")
    facts = []
    for number in range(6):
        headers = {1: {"X-Robots-Tag": "noimageai"}, 2: {"tdm-reservation": "1"}}.get(number, {})
        facts.append({"key": f"{number}", "url": f"https://h{number % 3}.org/{number}.png", "headers": headers})
    for name in ("tars", "parquets", "files"):
        (root / name).mkdir()
    rows = []
    with tarfile.open(root / "tars" / "a.tar", "w") as tar:
        for one in facts:
            data = picture(GOOD, seed=int(one["key"]))
            for ending, part in ((".png", data), (".json", json.dumps(one).encode())):
                add_member(tar, one["key"] + ending, part)
                (root / "files" / (one["key"] + ending)).write_bytes(part)
            rows.append(one | {"headers": json.dumps(one["headers"]), "jpg": data, "error_message": None})
    failed = [
        {"key": "7", "url": "https://h0.org/7.png", "status": "failed_to_download", "error_message": message}
        for message in ("HTTP Error 404: Not Found", "Use of image disallowed by X-Robots-Tag directive")
    ]
    pq.write_table(pa.Table.from_pylist(failed), root / "tars" / "a.parquet")
    pq.write_table(pa.Table.from_pylist([*rows, *failed]), root / "parquets" / "a.parquet")
    (root / "robots").mkdir()
    (root / "robots" / "h0.org.txt").write_text("User-agent: CCBot\nDisallow: /3")
    return root


@pytest.mark.parametrize("kind", ["tars", "parquets", "files"])
def test_reserved_pictures_are_named_and_every_result_is_counted_for_its_host(downloads, tmp_path, kind):
    (source,), _ = find_shards(str(downloads / kind), str(tmp_path / "lists"))
    options = replace(STUB_CROP, robots=RobotsOptions(str(downloads / "robots")))
    counts = stub_crop_shard(source, str(tmp_path / "1_crop" / "a.parquet"), options)
    reserved = {name: count for name, count in counts.items() if name.startswith("reserved")}
    assert reserved == {"reserved_robots_tag": 1, "reserved_tdm": 1, "reserved_robots_txt": 1}
    assert counts["rows_out"] == 3 and counts.get("not_downloaded", 0) == (0 if kind == "files" else 2)
    named = list(read_rows(str(tmp_path / "1_crop" / "rejected" / "a.parquet")))
    assert sorted(row["reason"] for row in named) == sorted(reserved)
    add_up_hosts(str(tmp_path / "1_crop" / "hosts"), str(tmp_path / "hosts.parquet"))
    table = pq.read_table(tmp_path / "hosts.parquet")
    found = {(row["host"], row["result"]): row["images"] for row in table.to_pylist()}
    expected = {("h0.org", "downloaded"): 1, ("h0.org", "reserved_robots_txt"): 1, ("h1.org", "downloaded"): 1}
    expected |= {("h1.org", "reserved_robots_tag"): 1, ("h2.org", "reserved_tdm"): 1, ("h2.org", "downloaded"): 1}
    if kind != "files":
        expected |= {("h0.org", "http_404"): 1, ("h0.org", "robots_tag"): 1}
    assert found == expected
    if kind != "files":
        scanned = scan_shard(source, str(tmp_path / "scan" / "a.parquet"), None)
        assert scanned["images"] == (4 if kind == "tars" else 6)  # of a parquet without bytes, failures are not known


def test_counts_of_many_shards_are_added_up(tmp_path):
    random = np.random.default_rng(0)
    expected: dict[tuple[str, str], int] = {}
    for shard in range(70):
        rows = {(f"h{random.integers(9)}.org", f"r{random.integers(3)}"): int(random.integers(1, 9)) for _ in range(9)}
        for place, count in rows.items():
            expected[place] = expected.get(place, 0) + count
        table = [{"host": host, "result": result, "images": count} for (host, result), count in rows.items()]
        (tmp_path / "hosts").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(table, schema=SCHEMA), tmp_path / "hosts" / f"{shard}.parquet")
    add_up_hosts(str(tmp_path / "hosts"), str(tmp_path / "all.parquet"))
    rows = pq.read_table(tmp_path / "all.parquet").to_pylist()
    assert {(row["host"], row["result"]): row["images"] for row in rows} == expected
    assert [row["images"] for row in rows] == sorted(expected.values(), reverse=True)
    hosts: Counter[str] = Counter()
    for (host, _), count in expected.items():
        hosts[host] += count
    shown = top_hosts(str(tmp_path / "all.parquet"), 4)
    largest = [host for host, _ in sorted(hosts.items(), key=lambda item: (-item[1], item[0]))[:4]]
    assert shown.keys() == {"", *largest} and sum(shown[""].values()) == sum(expected.values())
    for host in largest:
        assert shown[host] == {result: count for (name, result), count in expected.items() if name == host}
    add_up_hosts(str(tmp_path / "none"), str(tmp_path / "none.parquet"))
    assert top_hosts(str(tmp_path / "none.parquet")) == top_hosts(str(tmp_path / "nowhere")) == {}


def test_a_folder_of_robots_that_is_not_there_is_told_before_the_first_stage(tmp_path):
    missing = RobotsOptions(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere: no such folder; check `crop.robots.folder`"):
        check_files(SimpleNamespace(opt_out=None, crop=SimpleNamespace(robots=missing)))
    assert not missing.forbids("https://[bad") and not missing.forbids(None) and not missing.forbids("https://a.org/x")
