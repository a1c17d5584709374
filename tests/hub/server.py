"""A small Hub on the loopback: the part of its protocol that publishing and loading use.

It keeps repositories, branches, commits and large files in memory, and notes every request, so
that a test can say what arrived. Faults are put into it by hand: `cut` closes the connection in
the middle of a request, `lose` after it was served, `fail` answers with a status.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_" + "loopback" * 4 + "ab"
LOST = 0
REGULAR_BYTES = 4096
"""Larger files, and weights of any size, go the way of large files."""


@dataclass
class Repo:
    """One model: branches lead to commits, commits hold whole trees."""

    private: bool = False
    branches: dict = field(default_factory=dict)
    commits: dict = field(default_factory=dict)
    messages: list = field(default_factory=list)

    def commit(self, branch, files, message):
        """A new commit on a branch; returns its id."""
        text = f"{len(self.commits)}{branch}{sorted(files)}{message}"
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid] = dict(files)
        self.branches[branch] = oid
        self.messages.append(message)
        return oid

    def files(self, revision="main"):
        """The tree of a branch or commit; `None` where there is none."""
        return self.commits.get(self.branches.get(revision, revision))


class Hub(ThreadingHTTPServer):
    """The server. `owners` are whom the token may write for."""

    daemon_threads = True

    def __init__(self, owners=("me", "my-organisation")):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.owners, self.repos, self.blobs = owners, {}, {}
        self.requests, self.faults, self.lock = [], [], threading.RLock()
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """A client that goes away is no fault of the server's."""

    def cut(self, method, path, times=1):
        """Close the connection in the middle of the next requests whose path holds `path`."""
        self.faults += [(method, path, None)] * times

    def fail(self, method, path, status, times=1):
        """Answer the next requests whose path holds `path` with a status."""
        self.faults += [(method, path, status)] * times

    def lose(self, method, path):
        """Do what the next request whose path holds `path` asks, and close without an answer."""
        self.faults.append((method, path, LOST))

    def add_repo(self, name, files=(), private=False):
        """A repository that is there already."""
        repo = self.repos[name] = Repo(private)
        repo.commit("main", {".gitattributes": b"", **dict(files)}, "initial commit")
        return repo

    def names(self, repo, revision="main"):
        """The files of a repository, as a set of names."""
        return set(self.repos[repo].files(revision)) - {".gitattributes"}

    def asked(self, part):
        """How many requests there were for a path that holds `part`."""
        return sum(part in path for _, path in self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = -1, True  # else every answer waits for an acknowledgement
    server: Hub

    def log_message(self, *args):
        """Nothing goes to the terminal."""

    def handle_any(self):
        self.url = urlsplit(self.path)
        self.route = unquote(self.url.path)
        with self.server.lock:
            self.server.requests.append((self.command, self.route))
            fault = next(
                (f for f in self.server.faults if f[0] == self.command and f[1] in self.route), None
            )
            if fault:
                self.server.faults.remove(fault)
        length = int(self.headers.get("Content-Length") or 0)
        if fault and fault[2] is None:
            self.rfile.read(length // 2)
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.body = self.read_chunks() if self.chunked() else self.rfile.read(length)
        self.lost = fault is not None and fault[2] == LOST
        if fault and not self.lost:
            self.answer(fault[2], {"error": "a fault of the test"})
            return
        for method, pattern, action in _ROUTES:
            found = re.fullmatch(pattern, self.route)
            if found and self.command in method:
                with self.server.lock:
                    getattr(self, action)(*found.groups())
                return
        self.answer(404, {"error": f"no route {self.command} {self.route}"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

    def chunked(self):
        return "chunked" in self.headers.get("Transfer-Encoding", "")

    def read_chunks(self):
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def answer(self, status, body=b"", **headers):
        if self.lost:
            self.close_connection = True
            self.connection.shutdown(2)
            return
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # Who asks.

    @property
    def token(self):
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def refused(self, owner=None):
        """Answer and return true where the token is not good for writing to an owner's."""
        if self.token != TOKEN:
            message = "Invalid credentials in Authorization header"
            self.answer(401, {"error": message}, X_Error_Message=message)
        elif owner is not None and owner not in self.server.owners:
            message = f"You don't have the rights to write under {owner}"
            self.answer(403, {"error": message}, X_Error_Message=message)
        else:
            return False
        return True

    def found(self, name):
        """The repository, or `None` after an answer that says that there is none."""
        repo = self.server.repos.get(name)
        hidden = repo is not None and repo.private and self.token != TOKEN
        if repo is None or hidden:
            self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        return repo

    # Before anything is sent.

    def whoami(self):
        if not self.refused():
            first, *orgs = self.server.owners
            self.answer(200, {"name": first, "orgs": [{"name": name} for name in orgs]})

    def create_repo(self):
        wanted = json.loads(self.body)
        owner = wanted.get("organization") or self.server.owners[0]
        name = f"{owner}/{wanted['name']}"
        if self.refused(owner):
            return
        url = {"url": f"{self.server.endpoint}/{name}"}
        if name in self.server.repos:
            self.answer(409, {**url, "error": "You already created this model repo"})
            return
        self.server.add_repo(name, private=wanted.get("visibility") == "private")
        self.answer(200, url)

    def validate_yaml(self):
        content = json.loads(self.body)["content"]
        block = re.match(r"---\n(.*?)\n---", content, re.DOTALL)
        data = yaml.safe_load(block.group(1)) if block else {}
        errors = []
        if not re.fullmatch(r"[a-z0-9.-]+", data.get("license", "mit")):
            errors.append({"message": '"license" must be one of the licences'})
        if not isinstance(data.get("tags", []), list):
            errors.append({"message": '"tags" must be an array'})
        self.answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def create_branch(self, name, branch):
        repo = None if self.refused(name.split("/")[0]) else self.found(name)
        if repo is None:
            return
        if branch in repo.branches:
            self.answer(409, {"error": f"Reference already exists: {branch}"})
            return
        repo.branches[branch] = repo.branches["main"]
        self.answer(200, {"success": True})

    # Sending.

    def preupload(self, name, branch):
        repo = None if self.refused(name.split("/")[0]) else self.found(name)
        if repo is None:
            return
        tree = repo.files(branch) or {}
        answers = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if _is_large(file["path"], file["size"]) else "regular",
                "shouldIgnore": False,
                "oid": _oid(file["path"], tree[file["path"]]) if file["path"] in tree else None,
            }
            for file in json.loads(self.body)["files"]
        ]
        self.answer(200, {"files": answers})

    def lfs_batch(self, name):
        if self.refused(name.split("/")[0]):
            return
        objects = [
            {"oid": wanted["oid"], "size": wanted["size"]}
            | ({} if wanted["oid"] in self.server.blobs else {"actions": self.actions(wanted)})
            for wanted in json.loads(self.body)["objects"]
        ]
        self.answer(200, {"transfer": "basic", "objects": objects})

    def actions(self, wanted):
        place = f"{self.server.endpoint}/lfs/{wanted['oid']}"
        return {"upload": {"href": place}, "verify": {"href": f"{place}/verify"}}

    def lfs_upload(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            self.answer(400, {"error": "other bytes than promised"})
            return
        self.server.blobs[oid] = self.body
        self.answer(200)

    def lfs_verify(self, oid):
        wanted = json.loads(self.body)
        whole = len(self.server.blobs.get(oid, b"")) == wanted["size"]
        self.answer(200 if whole else 404, {})

    def commit(self, name, branch):
        repo = None if self.refused(name.split("/")[0]) else self.found(name)
        if repo is None:
            return
        if branch not in repo.branches:
            self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
            return
        files, message = dict(repo.files(branch)), ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        oid = repo.commit(branch, files, message)
        url = f"{self.server.endpoint}/{name}/commit/{oid}"
        self.answer(200, {"commitUrl": url, "commitOid": oid, "success": True})

    # Reading.

    def info(self, name, revision=None):
        repo = self.found(name)
        tree = repo and repo.files(revision or "main")
        if tree is None:
            if repo is not None:
                self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
            return
        sha = repo.branches.get(revision or "main", revision)
        siblings = [{"rfilename": path} for path in sorted(tree)]
        self.answer(
            200, {"id": name, "sha": sha, "private": repo.private, "tags": [], "siblings": siblings}
        )

    def tree(self, name, revision, below=None):
        repo = self.found(name)
        if repo is None:
            return
        files = repo.files(revision)
        if files is None:
            self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
            return
        inside = {p: b for p, b in files.items() if below is None or p.startswith(f"{below}/")}
        if below is not None and not inside:
            self.answer(404, {"error": "no such folder"}, X_Error_Code="EntryNotFound")
            return
        recursive = parse_qs(self.url.query).get("recursive", [""])[0].lower() == "true"
        self.answer(
            200,
            [
                {"type": "file", "path": path, "size": len(blob), "oid": _oid(path, blob)}
                for path, blob in sorted(inside.items())
                if recursive or "/" not in path.removeprefix(f"{below}/")
            ],
        )

    def resolve(self, name, revision, path):
        repo = self.found(name)
        if repo is None:
            return
        files = repo.files(revision)
        sha = repo.branches.get(revision, revision)
        if files is None:
            self.answer(404, X_Error_Code="RevisionNotFound")
        elif path not in files:
            self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        else:
            etag = f'"{_oid(path, files[path])}"'
            self.answer(200, files[path], ETag=etag, X_Repo_Commit=sha)


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES = [
    ("GET", "/api/whoami-v2", "whoami"),
    ("POST", "/api/repos/create", "create_repo"),
    ("POST", "/api/validate-yaml", "validate_yaml"),
    ("POST", f"/api/models/{_NAME}/branch/(.+)", "create_branch"),
    ("POST", f"/api/models/{_NAME}/preupload/(.+)", "preupload"),
    ("POST", f"/{_NAME}[.]git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(\w+)", "lfs_upload"),
    ("POST", r"/lfs/(\w+)/verify", "lfs_verify"),
    ("POST", f"/api/models/{_NAME}/commit/(.+)", "commit"),
    ("GET", f"/api/models/{_NAME}/tree/([^/]+)/?", "tree"),
    ("GET", f"/api/models/{_NAME}/tree/([^/]+)/(.+)", "tree"),
    ("GET", f"/api/models/{_NAME}/revision/(.+)", "info"),
    ("GET", f"/api/models/{_NAME}", "info"),
    ("HEAD GET", f"/{_NAME}/resolve/([^/]+)/(.+)", "resolve"),
]


def _is_large(path, size):
    return size > REGULAR_BYTES or path.endswith((".safetensors", ".onnx", ".png"))


def _oid(path, blob):
    """As git names a small file, and as large files are named."""
    if _is_large(path, len(blob)):
        return hashlib.sha256(blob).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()
