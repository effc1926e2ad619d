"""A small Hub on the loopback address: repositories in memory that the real client libraries create, fill and read."""

import base64
import hashlib
import json
import os
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from places import REPO

TOKEN = "hf_secret_of_the_tests"
ROUTES = []  # (methods, pattern, name of the handler's method)
LFS_SUFFIXES = (".safetensors", ".parquet", ".png", ".pt", ".pth", ".onnx")


def environment(endpoint: str, cache: Path, token: str | None = None) -> dict[str, str]:
    """Of a process that knows the Hub at `endpoint` only; with a `token` it may write there."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    if token:
        own["HF_TOKEN"] = token
    return {**kept, **own, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}


def is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


def oid_of(path: str, body: bytes) -> str:
    """As git names a file, or LFS a large one."""
    if is_lfs(path) and body:
        return hashlib.sha256(body).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


class Repository:
    """Every commit keeps its whole tree, `{path: bytes}`; branches and tags point at commits."""

    def __init__(self):
        self.trees: dict[str, dict[str, bytes]] = {}
        self.log: dict[str, list[tuple[str, str]]] = {}  # commit -> (commit, title), newest first
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}

    def commit(self, branch: str, tree: dict[str, bytes], title: str) -> str:
        before = self.log.get(self.branches.get(branch, ""), [])
        names = "".join(f"{path} {oid_of(path, body)}\n" for path, body in sorted(tree.items()))
        sha = hashlib.sha1(f"{branch}\n{len(before)}\n{before[:1]}\n{title}\n{names}".encode()).hexdigest()
        self.trees[sha], self.log[sha], self.branches[branch] = tree, [(sha, title), *before], sha
        return sha

    def find(self, revision: str) -> str | None:
        known = {**self.tags, **self.branches, **{sha: sha for sha in self.trees}}
        return known.get(revision)

    def tree(self, revision: str = "main") -> dict[str, bytes]:
        return self.trees[self.find(revision)]

    def titles(self, revision: str = "main") -> list[str]:
        return [title for _, title in self.log[self.find(revision)]]


class Hub:
    """What the server holds. `watch`, if set, is called with the method and path of each request before its answer."""

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.watch = None
        self.endpoint = ""

    def __getitem__(self, key: str) -> Repository:
        """`hub["datasets/org/name"]`"""
        kind, _, name = key.partition("/")
        return self.repositories[kind, name]


def route(methods: str, pattern: str):
    """`{repo}` matches `models/org/name`, or in addresses of files `org/name`, `datasets/org/name`, ..."""

    def register(function):
        expression = pattern.replace("{api}", "/api/(models|datasets|spaces)/([^/]+/[^/]+)")
        expression = expression.replace("{repo}", "/(?:(datasets|spaces)/)?([^/]+/[^/]+)")
        ROUTES.append((methods.split(), re.compile(expression), function.__name__))
        return function

    return register


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub
    lock = threading.Lock()

    def log_message(self, *args):
        pass

    def answer(self):
        address = urlsplit(self.path)
        self.query = parse_qs(address.query)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {address.path}")
        if self.hub.watch:
            self.hub.watch(self.command, address.path)
        for methods, expression, name in ROUTES:
            if self.command in methods and (match := expression.fullmatch(address.path)):
                groups = [unquote(group) if group else group for group in match.groups()]
                if self.command in ("POST", "DELETE") and not name.startswith("read"):
                    if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                        return self.reply(b'{"error": "a token that may write is needed"}', 401)
                with self.lock:
                    return getattr(self, name)(*groups)
        return self.missing("RepoNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def reply(self, body: bytes, status: int = 200, **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, content, status: int = 200):
        self.reply(json.dumps(content).encode(), status, Content_Type="application/json")

    def missing(self, code):
        self.reply(b"{}", 404, X_Error_Code=code, X_Error_Message=code)

    def found(self, kind, name, revision=None):
        """The repository and the commit; or `None`, and the answer is given."""
        repository = self.hub.repositories.get((kind or "models", name))
        commit = repository and repository.find(revision or "main")
        if not commit:
            self.missing("RevisionNotFound" if repository else "RepoNotFound")
            return None
        return repository, commit

    # ---- repositories

    @route("GET", "/api/whoami-v2")
    def whoami(self):
        self.json({"type": "user", "name": "org", "fullname": "org", "orgs": [], "auth": {"type": "access_token"}})

    @route("POST", "/api/validate-yaml")
    def read_yaml(self):
        self.json({"errors": [], "warnings": []})

    @route("POST", "/api/repos/create")
    def create(self):
        form = json.loads(self.body)
        kind, name = f"{form.get('type') or 'model'}s", f"{form.get('organization') or 'org'}/{form['name']}"
        url = f"{self.hub.endpoint}/{'' if kind == 'models' else kind + '/'}{name}"
        if (kind, name) in self.hub.repositories:
            return self.json({"error": "exists", "url": url}, 409)
        self.hub.repositories[kind, name] = repository = Repository()
        repository.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return self.json({"url": url, "name": name})

    @route("GET", "{api}(?:/revision/([^/]+))?")
    def info(self, kind, name, revision):
        if found := self.found(kind, name, revision):
            facts = {"_id": "1", "id": name, "sha": found[1], "private": False, "gated": False, "tags": []}
            facts |= {"downloads": 0, "likes": 0, "disabled": False, "lastModified": "2026-01-01T00:00:00.000Z"}
            self.json(facts | {"siblings": [{"rfilename": path} for path in sorted(found[0].trees[found[1]])]})

    @route("GET", "{api}/refs")
    def refs(self, kind, name):
        if found := self.found(kind, name):
            listed = {"converts": [], "branches": [], "tags": []}
            for sort, folder in (("branches", "heads"), ("tags", "tags")):
                for ref, sha in getattr(found[0], sort).items():
                    listed[sort].append({"name": ref, "ref": f"refs/{folder}/{ref}", "targetCommit": sha})
            self.json(listed)

    @route("GET", "{api}/commits/([^/]+)")
    def commits(self, kind, name, revision):
        if found := self.found(kind, name, revision):
            entries = found[0].log[found[1]]
            date = "2026-01-01T00:00:00.000Z"
            self.json([{"id": s, "title": t, "message": "", "authors": [], "date": date} for s, t in entries])

    @route("POST", "{api}/(branch|tag)/([^/]+)")
    def create_ref(self, kind, name, sort, where):
        form = json.loads(self.body)
        ref, start = (where, form.get("startingPoint")) if sort == "branch" else (form["tag"], where)
        if found := self.found(kind, name, start):
            refs = found[0].branches if sort == "branch" else found[0].tags
            if ref in refs:
                return self.json({"error": "exists"}, 409)
            refs[ref] = found[1]
            self.json({})

    # ---- writing

    @route("POST", "{api}/preupload/([^/]+)")
    def preupload(self, kind, name, revision):
        if found := self.found(kind, name, revision):
            tree, files = found[0].trees[found[1]], []
            for path in (file["path"] for file in json.loads(self.body)["files"]):
                oid = oid_of(path, tree[path]) if path in tree else None
                mode = "lfs" if is_lfs(path) else "regular"
                files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
            self.json({"files": files})

    @route("POST", "{repo}[.]git/info/lfs/objects/batch")
    def batch(self, kind, name):
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            if wanted["oid"] not in self.hub.blobs:
                href = f"{self.hub.endpoint}/blobs/{wanted['oid']}"
                wanted = {**wanted, "actions": {"upload": {"href": href, "header": {}}}}
            objects.append(wanted)
        self.json({"transfer": "basic", "objects": objects})

    @route("PUT", "/blobs/([0-9a-f]{64})")
    def blob(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.json({"error": "another content than announced"}, 422)
        self.hub.blobs[oid] = self.body
        self.json({})

    @route("POST", "{api}/commit/([^/]+)")
    def commit(self, kind, name, branch):
        if not (found := self.found(kind, name, branch)):
            return
        repository, parent = found
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        tree = dict(repository.trees[parent])
        if header["value"].get("parentCommit") not in (None, parent):
            return self.json({"error": "the branch has moved on"}, 412)
        for key, value in ((operation["key"], operation["value"]) for operation in operations):
            if key == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                tree[value["path"]] = self.hub.blobs[value["oid"]]
            else:
                gone = [path for path in tree if path == value["path"] or path.startswith(value["path"] + "/")]
                for path in gone:
                    del tree[path]
        sha = repository.commit(branch, tree, header["value"]["summary"])
        self.json({"success": True, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{sha}", "commitOid": sha})

    # ---- reading

    def entry(self, path, body):
        facts = {"type": "file", "path": path, "oid": oid_of(path, body), "size": len(body)}
        if is_lfs(path) and body:
            facts["lfs"] = {"oid": facts["oid"], "size": len(body), "pointerSize": 130}
        return facts

    @route("GET", "{api}/tree/([^/]+)(?:/(.+))?")
    def tree(self, kind, name, revision, folder):
        if not (found := self.found(kind, name, revision)):
            return
        prefix, recursive = f"{folder}/" if folder else "", "true" in str(self.query.get("recursive")).lower()
        entries = {}
        for path, body in found[0].trees[found[1]].items():
            if path.startswith(prefix):
                parts = path.removeprefix(prefix).split("/")
                for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                    inner = prefix + "/".join(parts[:depth])
                    entries[inner] = {"type": "directory", "path": inner, "oid": "0" * 40, "size": 0}
                if recursive or len(parts) == 1:
                    entries[path] = self.entry(path, body)
        if folder and not entries:
            return self.missing("EntryNotFound")
        self.json([entries[path] for path in sorted(entries)])

    @route("POST", "{api}/paths-info/([^/]+)")
    def read_paths(self, kind, name, revision):
        if not (found := self.found(kind, name, revision)):
            return
        if self.headers["Content-Type"].startswith("application/json"):
            paths = json.loads(self.body)["paths"]
        else:
            paths = parse_qs(self.body.decode())["paths"]
        tree, listed = found[0].trees[found[1]], []
        for path in paths:
            if path in tree:
                listed.append(self.entry(path, tree[path]))
            elif any(other.startswith(f"{path}/") for other in tree):
                listed.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        self.json(listed)

    @route("GET HEAD", "{repo}/resolve/([^/]+)/(.+)")
    def resolve(self, kind, name, revision, path):
        if not (found := self.found(kind, name, revision)):
            return
        body = found[0].trees[found[1]].get(path)
        if body is None:
            return self.missing("EntryNotFound")
        facts = {"X_Repo_Commit": found[1], "Accept_Ranges": "bytes", "ETag": f'"{oid_of(path, body)}"'}
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, stop = int(part[1]), min(int(part[2] or len(body) - 1), len(body) - 1)
            facts["Content_Range"] = f"bytes {start}-{stop}/{len(body)}"
            return self.reply(body[start : stop + 1], 206, **facts)
        self.reply(body, **facts)


@contextmanager
def running_hub():
    """An empty [`Hub`], served at its `endpoint`."""
    state = Hub()
    handler = type("HandlerOfThisHub", (Handler,), {"hub": state, "lock": threading.Lock()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    state.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def hub(repository: str, branches: dict[str, Path]):
    """Serve `{branch: folder}` as the dataset `repository`; gives the address for `HF_ENDPOINT`."""
    with running_hub() as state:
        state.repositories["datasets", repository] = served = Repository()
        for branch, folder in branches.items():
            files = (file for file in sorted(Path(folder).rglob("*")) if file.is_file())
            tree = {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
            served.commit(branch, tree, "as the folder")
        yield state.endpoint
