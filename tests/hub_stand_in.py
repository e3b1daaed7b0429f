"""A small Hub on the loopback interface, spoken to over real HTTP: repositories, preupload, LFS, commits, trees, downloads, tags.

Enough of the protocol for `huggingface_hub`'s create_repo, upload_folder, snapshot_download and tags. `fail` makes it misbehave.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

LFS_FROM = 2000  # bytes from which a file goes through LFS
PUSHING = {  # the steps of a push and of a download, by the requests that they are made of
    "create_repo": ("POST", "/api/repos/create"),
    "validate": ("POST", "/api/validate-yaml"),
    "preupload": ("POST", "/preupload/"),
    "lfs batch": ("POST", "/lfs/objects/batch"),
    "lfs upload": ("PUT", "/objects/"),
    "commit": ("POST", "/commit/"),
    "delete tag": ("DELETE", "/tag/"),
    "tag": ("POST", "/tag/"),
}
PULLING = {"revision": ("GET", "/revision/"), "list": ("GET", "/tree/"), "head": ("HEAD", "/resolve/"), "get": ("GET", "/resolve/")}
GATED = (403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model is restricted and you are not in the authorized list."})


def at(step: str, wrong):
    """A `fail` that makes one step go wrong: with a status, (status, headers), "cut" before the answer, "half" of it, or "garbage" for JSON."""
    method, part = (PUSHING | PULLING)[step]
    return lambda asked, path: wrong if asked == method and part in path else None


class Repository:
    def __init__(self, private: bool):
        self.private = private
        self.commits: dict[str, dict[str, bytes]] = {"0" * 40: {}}
        self.refs = {"main": "0" * 40}

    def commit(self, files: dict[str, bytes]) -> str:
        digest = hashlib.sha1(repr(sorted((name, hashlib.sha256(data).hexdigest()) for name, data in files.items())).encode()).hexdigest()
        self.commits[digest] = files
        self.refs["main"] = digest
        return digest

    def at(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)


class Hub:
    """State shared by all requests. `puts` counts LFS uploads; `token` is asked for where it is set."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.puts: list[str] = []
        self.requests: list[tuple[str, str]] = []
        self.token: str | None = None
        self.fail = None  # (method, path) -> what goes wrong, or None: see `at`
        self.address = ""
        self.served: dict[str, int] = {}  # bytes that were sent of each file


@contextmanager
def running():
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _handle(self):
        path = unquote(urlparse(self.path).path)
        self.hub.requests.append((self.command, path))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        wrong = self.hub.fail(self.command, path) if self.hub.fail else None
        if wrong == "cut":
            self.close_connection = True
            self.connection.close()
            return
        if wrong == "half":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b'{"half')
            self.wfile.flush()
            self.close_connection = True
            return self.connection.close()
        if wrong == "garbage":
            return self._answer(b"<html>log in to the hotel's network</html>", headers=(("Content-Type", "text/html"),))
        if isinstance(wrong, tuple):
            return self._answer({"error": "as told"}, wrong[0], [("Content-Type", "application/json"), *wrong[1].items()])
        if wrong:
            return self._answer({"error": "as told", "url": f"{self.hub.address}/me/policy"}, wrong)
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}" and not path.startswith("/objects/"):
            return self._answer({"error": "who are you?"}, 401)
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(self.body))
        if path.startswith("/objects/"):
            return self._object(path.rpartition("/")[2])
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(self.body))
        if path.startswith("/api/"):
            return self._api(path.removeprefix("/api/"))
        return self._download(path.strip("/"))

    do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = _handle

    def _answer(self, content, status=200, headers=()):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers or (("Content-Type", "application/json"),):
            self.send_header(name, value)
        if status == 404 and not any(name == "X-Error-Code" for name, _ in headers):
            self.send_header("X-Error-Code", "RepoNotFound" if not self._known else "RevisionNotFound")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    _known = False

    def _create(self, asked):
        kind = asked.get("type") or "model"
        name = f"{kind}s/{asked['organization']}/{asked['name']}" if asked.get("organization") else f"{kind}s/{asked['name']}"
        url = f"{self.hub.address}/{'' if kind == 'model' else kind + 's/'}{name.partition('/')[2]}"
        if name in self.hub.repositories:
            return self._answer({"error": "exists", "url": url}, 409)
        self.hub.repositories[name] = Repository(bool(asked.get("private") or asked.get("visibility") == "private"))
        return self._answer({"url": url})

    def _batch(self, asked):
        objects = []
        for one in asked["objects"]:
            known = one["oid"] in self.hub.objects
            actions = {} if known else {"actions": {"upload": {"href": f"{self.hub.address}/objects/{one['oid']}"}}}
            objects.append({**one, **actions})
        return self._answer({"transfer": "basic", "objects": objects}, headers=(("Content-Type", "application/vnd.git-lfs+json"),))

    def _object(self, oid):
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.objects[oid] = self.body
        self.hub.puts.append(oid)
        return self._answer({})

    def _api(self, path):
        kind, owner, name, *rest = path.split("/")
        repository = self.hub.repositories.get(f"{kind}/{owner}/{name}")
        if repository is None:
            return self._answer({"error": "no such repository"}, 404)
        self._known = True
        verb, revision = (rest + ["revision", "main"])[:2] if rest else ("revision", "main")
        if verb == "tag":
            return self._tag(repository, revision)
        commit = repository.at(revision)
        if commit is None:
            return self._answer({"error": "no such revision"}, 404)
        files = repository.commits[commit]
        if verb == "revision":
            siblings = [{"rfilename": file} for file in files]
            return self._answer({"id": f"{owner}/{name}", "sha": commit, "private": repository.private, "siblings": siblings})
        if verb == "tree":
            return self._answer([_entry(path, data) for path, data in files.items()])
        if verb == "preupload":
            return self._answer({"files": [_mode(asked, files) for asked in json.loads(self.body)["files"]]})
        if verb == "commit":
            return self._commit(repository, dict(files), f"{owner}/{name}" if kind == "models" else f"{kind}/{owner}/{name}")
        return self._answer({"error": verb}, 400)

    def _commit(self, repository, files, where):
        for line in self.body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                files.pop(value["path"])
        commit = repository.commit(files)
        return self._answer({"commitUrl": f"{self.hub.address}/{where}/commit/{commit}", "commitOid": commit, "success": True})

    def _tag(self, repository, name):
        if self.command == "DELETE":
            if name not in repository.refs:
                return self._answer({"error": "no such tag"}, 404)
            del repository.refs[name]
            return self._answer({})
        tag = json.loads(self.body)["tag"]
        if tag in repository.refs:
            return self._answer({"error": "exists"}, 409)
        repository.refs[tag] = repository.refs[name]
        return self._answer({})

    def _download(self, path):
        kind = "datasets" if path.startswith("datasets/") else "models"
        owner, name, _, revision, *rest = path.removeprefix("datasets/").split("/")
        repository = self.hub.repositories.get(f"{kind}/{owner}/{name}")
        self._known = repository is not None
        commit = repository and repository.at(revision)
        data = repository.commits[commit].get("/".join(rest)) if commit else None
        if data is None:
            return self._answer({"error": "no such file"}, 404)
        tag = hashlib.sha256(data).hexdigest() if len(data) >= LFS_FROM else _blob(data)
        headers = (("X-Repo-Commit", commit), ("ETag", f'"{tag}"'))
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        part = data[int(asked[1]) : int(asked[2]) + 1] if asked else data
        if self.command == "GET":
            self.hub.served["/".join(rest)] = self.hub.served.get("/".join(rest), 0) + len(part)
        return self._answer(part, 206 if asked else 200, headers)


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: str, data: bytes) -> dict:
    entry = {"type": "file", "path": path, "size": len(data), "oid": _blob(data)}
    if len(data) >= LFS_FROM:
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


def _mode(asked: dict, files: dict[str, bytes]) -> dict:
    large = asked["size"] >= LFS_FROM
    known = files.get(asked["path"])
    oid = None if known is None else hashlib.sha256(known).hexdigest() if large else _blob(known)
    return {"path": asked["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}
