"""A small read-only Hub on the loopback address: dataset repositories whose branches are folders."""

import hashlib
import json
import os
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


def commit_of(branch: str) -> str:
    return hashlib.sha1(branch.encode()).hexdigest()


def environment(endpoint: str, cache: Path) -> dict[str, str]:
    """Of a process that knows the Hub at `endpoint` only."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {**kept, **own, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}


@contextmanager
def hub(repository: str, branches: dict[str, Path]):
    """Serve `{branch: folder}` as the dataset `repository`; gives the address for `HF_ENDPOINT`."""
    folders = branches | {commit_of(branch): folder for branch, folder in branches.items()}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def reply(self, body: bytes, status: int = 200, **headers):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            if match := re.fullmatch(rf"/api/datasets/{repository}(?:/revision/(.+))?", path):
                return self.info(match[1] or "main")
            if match := re.fullmatch(rf"/api/datasets/{repository}/tree/([^/]+)/?(.*)", path):
                return self.tree(match[1], match[2])
            if match := re.fullmatch(rf"/datasets/{repository}/resolve/([^/]+)/(.+)", path):
                return self.resolve(match[1], match[2])
            return self.missing("RepoNotFound")

        do_HEAD = do_GET

        def do_POST(self):
            form = self.rfile.read(int(self.headers["Content-Length"]))
            match = re.fullmatch(rf"/api/datasets/{repository}/paths-info/([^/]+)", unquote(self.path))
            if not match or match[1] not in folders:
                return self.missing("RevisionNotFound")
            if self.headers["Content-Type"].startswith("application/json"):
                paths = json.loads(form)["paths"]
            else:
                paths = [unquote(part.split("=")[1]) for part in form.decode().split("&") if part.startswith("paths=")]
            files = [folders[match[1]] / path for path in paths]
            return self.json([self.entry(folders[match[1]], file) for file in files if file.exists()])

        def json(self, content):
            self.reply(json.dumps(content).encode(), Content_Type="application/json")

        def missing(self, code):
            self.reply(b"{}", 404, X_Error_Code=code, X_Error_Message=code)

        def info(self, revision):
            if revision not in folders:
                return self.missing("RevisionNotFound")
            names = [
                str(file.relative_to(folders[revision])) for file in folders[revision].rglob("*") if file.is_file()
            ]
            sha = revision if len(revision) == 40 else commit_of(revision)
            facts = {"_id": "1", "id": repository, "sha": sha, "private": False, "gated": False, "tags": []}
            facts |= {"downloads": 0, "likes": 0, "disabled": False, "lastModified": "2026-01-01T00:00:00.000Z"}
            return self.json(facts | {"siblings": [{"rfilename": name} for name in sorted(names)]})

        def entry(self, root, file):
            path = str(file.relative_to(root))
            if file.is_dir():
                return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
            oid = hashlib.sha1(file.read_bytes()).hexdigest()
            return {"type": "file", "path": path, "oid": oid, "size": file.stat().st_size}

        def tree(self, revision, path):
            if revision not in folders:
                return self.missing("RevisionNotFound")
            root = folders[revision]
            if not (root / path).is_dir():
                return self.missing("EntryNotFound")
            found = (root / path).rglob("*") if "recursive=true" in self.path.lower() else (root / path).iterdir()
            return self.json([self.entry(root, file) for file in sorted(found)])

        def resolve(self, revision, path):
            if revision not in folders or not (folders[revision] / path).is_file():
                return self.missing("EntryNotFound")
            body = (folders[revision] / path).read_bytes()
            facts = {
                "X_Repo_Commit": revision if len(revision) == 40 else commit_of(revision),
                "Accept_Ranges": "bytes",
            }
            facts["ETag"] = f'"{hashlib.sha1(body).hexdigest()}"'
            if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                start, stop = int(part[1]), min(int(part[2] or len(body) - 1), len(body) - 1)
                facts["Content_Range"] = f"bytes {start}-{stop}/{len(body)}"
                return self.reply(body[start : stop + 1], 206, **facts)
            return self.reply(body, **facts)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
