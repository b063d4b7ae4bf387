# SPDX-License-Identifier: Apache-2.0
"""A small Hub on loopback: what the real client calls to push and load a model, with faults on demand.

Repositories are lists of commits, each a complete mapping of paths to contents; a commit appears whole or not at all.
"""

import base64
import hashlib
import json
import socket
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlparse

TOKEN = "hf_" + "T0ken" * 7
# As the Hub's default .gitattributes: these go to large file storage.
LARGE = (".safetensors", ".png")


def git_hash(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Fault:
    """What happens to the next ``times`` requests of a route: a status, a cut after half the bytes, or a delay."""

    status: int = 0
    cut: bool = False
    delay: float = 0.0
    times: int = 1
    skip: int = 0


@dataclass
class Repo:
    private: bool
    commits: list = field(default_factory=lambda: [("0" * 40, {})])

    def files(self, revision="main"):
        return self.commits[-1][1] if revision == "main" else dict(self.commits).get(revision)

    @property
    def head(self):
        return self.commits[-1][0]


class Hub:
    """Start with ``with Hub() as hub``; ``hub.requests`` counts requests by route."""

    def __init__(self):
        self.repos, self.objects, self.faults, self.requests = {}, {}, {}, {}
        self.lock = threading.Lock()

    def __enter__(self):
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()  # s to see its end
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def count(self, route):
        """Requests to a route so far; forgets them."""
        return self.requests.pop(route, 0)

    def fault(self, route):
        with self.lock:
            self.requests[route] = self.requests.get(route, 0) + 1
            fault = self.faults.get(route)
            if fault is None or fault.times == 0:
                return None
            if fault.skip:
                fault.skip -= 1
                return None
            fault.times -= 1
            return fault

    def commit(self, repo, lines):
        """Apply a commit's ndjson lines; returns its id, or a status where it does not fit."""
        header = next(line["value"] for line in lines if line["key"] == "header")
        if header.get("parentCommit") not in (None, repo.head):
            return 412
        files = dict(repo.files())
        for line in lines:
            key, value = line["key"], line["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.objects:
                    return 400
                files[value["path"]] = self.objects[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        oid = hashlib.sha1(json.dumps([repo.head, sorted((p, git_hash(c)) for p, c in files.items())]).encode())
        repo.commits.append((oid.hexdigest(), files))
        return oid.hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer's second packet waits 40 ms for a word about the first
    hub: Hub

    def log_message(self, *_):
        pass

    # ---- plumbing ----------------------------------------------------------------------------------------------

    def answer(self, content=b"", status=200, **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers.setdefault("Content-Type", "application/json")
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def error(self, status, code="", message=""):
        headers = {"X_Error_Code": code, "X_Error_Message": message}
        self.answer({"error": message or code}, status, **{k: v for k, v in headers.items() if v})

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def cut(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def faulty(self, route):
        """Count the request, and act out the fault that is set for its route; True if it was answered."""
        fault = self.hub.fault(route)
        if fault is None:
            return False
        time.sleep(fault.delay)
        if fault.cut:
            self.rfile.read(int(self.headers["Content-Length"]) // 2)
            self.cut()
            return True
        if fault.status:
            self.body()
            message = "Invalid credentials in Authorization header" if fault.status == 401 else "fault"
            self.error(fault.status, message=message)
            return True
        return False

    def allowed(self, repo=None, write=False):
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token == TOKEN or (not token and not write and repo is not None and not repo.private):
            return True
        self.body()
        if token:
            self.error(401, message="Invalid credentials in Authorization header")
        else:
            self.error(401, code="RepoNotFound")
        return False

    # ---- routes ------------------------------------------------------------------------------------------------

    def do_GET(self):
        parts = [unquote(p) for p in urlparse(self.path).path.strip("/").split("/")]
        if parts == ["api", "whoami-v2"]:
            if not self.faulty("whoami") and self.allowed(write=True):
                self.answer({"name": "me", "type": "user", "auth": {"accessToken": {"role": "write"}}})
        elif parts[:2] == ["api", "models"]:
            self.model_api(parts[2:])
        elif parts[2:3] == ["resolve"]:
            self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self.error(404)

    do_HEAD = do_GET

    def model_api(self, parts):
        name, rest = "/".join(parts[:2]), parts[2:]
        repo = self.hub.repos.get(name)
        if not self.allowed(repo):
            return
        if repo is None:
            return self.error(404, "RepoNotFound")
        revision = rest[1] if len(rest) > 1 else "main"
        files = repo.files(revision)
        if files is None:
            return self.error(404, "RevisionNotFound")
        if rest[:1] == ["tree"]:
            return self.answer([self.entry(path, content) for path, content in sorted(files.items())])
        sha = repo.head if revision == "main" else revision
        siblings = [{"rfilename": path} for path in sorted(files)]
        return self.answer({"id": name, "modelId": name, "sha": sha, "private": repo.private, "siblings": siblings})

    def entry(self, path, content):
        out = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
        if path.endswith(LARGE):
            out["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return out

    def resolve(self, name, revision, path):
        repo = self.hub.repos.get(name)
        if self.faulty("resolve") or not self.allowed(repo):
            return None
        files = repo.files(revision)
        if files is None:
            return self.error(404, "RevisionNotFound")
        if path not in files:
            return self.error(404, "EntryNotFound")
        content = files[path]
        large = path.endswith(LARGE)
        etag = hashlib.sha256(content).hexdigest() if large else git_hash(content)
        headers = {"ETag": f'"{etag}"', "X_Repo_Commit": repo.head if revision == "main" else revision}
        wanted = self.headers.get("Range")
        if wanted and self.command == "GET":
            content = content[int(wanted.removeprefix("bytes=").partition("-")[0]) :]
        return self.answer(content, 206 if wanted else 200, **headers)

    def do_POST(self):
        url = urlparse(self.path)
        parts = [unquote(p) for p in url.path.strip("/").split("/")]
        route = parts[-1] if parts[-1] in ("create", "validate-yaml", "batch", "verify") else ""
        route = route or (parts[4] if len(parts) > 4 else "")
        if self.faulty(route) or not self.allowed(write=True):
            return None
        if route == "validate-yaml":
            self.body()
            return self.answer({"errors": [], "warnings": []})
        if route == "create":
            return self.create(json.loads(self.body()))
        if route == "batch":
            return self.batch(json.loads(self.body()))
        if route == "verify":
            wanted = json.loads(self.body())
            content = self.hub.objects.get(wanted["oid"], b"")
            return self.answer({}) if len(content) == wanted["size"] else self.error(400)
        repo = self.hub.repos.get("/".join(parts[2:4]))
        if repo is None:
            self.body()
            return self.error(404, "RepoNotFound")
        if route == "preupload":
            return self.preupload(repo, json.loads(self.body()))
        if route == "paths-info":
            wanted = parse_qs(self.body().decode()).get("paths", [])
            return self.answer([self.entry(p, c) for p, c in repo.files().items() if p in wanted])
        if route == "commit":
            done = self.hub.commit(repo, [json.loads(line) for line in self.body().splitlines()])
            if isinstance(done, int):
                return self.error(done)
            name = "/".join(parts[2:4])
            return self.answer({"commitUrl": f"{self.hub.url}/{name}/commit/{done}", "commitOid": done})
        return self.error(404)

    def create(self, wanted):
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        if name in self.hub.repos:
            return self.answer({"url": f"{self.hub.url}/{name}", "error": "You already created this model repo"}, 409)
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.hub.repos[name] = Repo(bool(private))
        return self.answer({"url": f"{self.hub.url}/{name}"})

    def preupload(self, repo, wanted):
        out = []
        for item in wanted["files"]:
            large = item["path"].endswith(LARGE)
            old = repo.files().get(item["path"])
            oid = None if old is None else hashlib.sha256(old).hexdigest() if large else git_hash(old)
            mode = "lfs" if large else "regular"
            out.append({"path": item["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer({"files": out})

    def batch(self, wanted):
        out = []
        for item in wanted["objects"]:
            answer = dict(item)
            if item["oid"] not in self.hub.objects:
                upload = {"href": f"{self.hub.url}/lfs/{item['oid']}"}
                verify = {"href": f"{self.hub.url}/lfs/verify"}
                answer["actions"] = {"upload": upload, "verify": verify}
            out.append(answer)
        self.answer({"transfer": "basic", "objects": out})

    def do_PUT(self):
        if self.faulty("upload"):
            return
        oid, content = self.path.rpartition("/")[2], self.body()
        if hashlib.sha256(content).hexdigest() != oid:
            return self.error(400)
        self.hub.objects[oid] = content
        self.answer()
